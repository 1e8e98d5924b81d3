"""Cache headers of responses and trace ids of log lines."""

import asyncio
from typing import Any

import pytest

from tests.support.answers import FILES, routes_of, sealed
from tests.support.service import HOUR, SECRET, Api
from tocsin.api.middleware import Envelope
from tocsin.auth.minting import mint_service, mint_user
from tocsin.logs import with_ids
from tocsin.metrics import Metrics


async def test_only_the_inbox_list_may_be_cached(api: Api) -> None:
    await api.people(1)
    user, service = mint_user(SECRET, 1, HOUR), mint_service(SECRET, "crm", ["events:write", "operations"], HOUR)
    gets = {path for method, path in routes_of(api) if method == "GET" and "stream" not in path} - set(FILES)
    gets -= {"/console", "/console/{name}"}  # a page, which has no secrets
    assert "/notifications" in gets
    for path in sorted(gets):
        asked = "/".join("1" if part.startswith("{") else part for part in path.split("/"))
        for token in (None, user, service):
            answer = await api.call("GET", asked, token)
            is_list = path == "/notifications" and token == user
            assert sealed(answer, "private, no-cache" if is_list else "no-store"), (asked, answer.headers)


@pytest.mark.parametrize(
    ("sent", "due"),
    [
        (b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "4bf92f3577b34da6a3ce929d0e0e4736"),
        (b"00-4bf92f3577b34da6\x1b[31m", None),
        (b"", None),
    ],
)
async def test_request_log_lines_carry_the_callers_trace_id(sent: bytes, due: str | None) -> None:
    seen: dict[str, Any] = {}

    async def app(*_: Any) -> Any:
        seen.update(with_ids(None, "info", {}))

    scope = {"type": "http", "method": "GET", "path": "/healthz", "headers": [(b"traceparent", sent)]}
    await asyncio.create_task(Envelope(app, Metrics())(scope, app, app))
    assert seen.get("trace_id") == due
    assert seen["request_id"]
