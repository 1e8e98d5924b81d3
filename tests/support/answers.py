"""Common checks of API responses."""

import asyncio
from typing import Any

import httpx
from fastapi.routing import iter_route_contexts

from tests.support.service import Api
from tests.support.waiting import LONGEST_WAIT
from tocsin.api import pages
from tocsin.api.app import build


def field_errors(answer: httpx.Response) -> list[tuple[str, str]]:
    assert answer.status_code == 422, answer.text
    return [
        (field_error["field"], field_error["code"].removeprefix("validation."))
        for field_error in answer.json()["errors"]
    ]


UNKNOWN = "00000000-0000-4000-8000-000000000000"


def errors_of(answer: httpx.Response) -> list[tuple[str, str | None]]:
    """Return code and field of each error of a response, which must be a problem document."""
    assert answer.headers["content-type"] == "application/json", (answer.status_code, answer.text[:200])
    body = answer.json()
    assert set(body) - {"more"} == {"errors"}
    assert body["errors"]
    for error in body["errors"]:
        expected = {"message", "code"}
        expected |= {"field"} if error["code"].startswith("validation.") else set()
        expected |= {"id"} if error["code"] == "error" else set()
        assert set(error) == expected
        assert error["message"].strip()
    return [(error["code"], error.get("field")) for error in body["errors"]]


def codes_of(answer: httpx.Response) -> tuple[int, list[tuple[str, str | None]]]:
    """Return an answer's status, and code and field of each of its errors, of which a success has none."""
    return answer.status_code, [] if answer.is_success else errors_of(answer)


def sealed(answer: httpx.Response, cache: str = "no-store") -> bool:
    """Return whether a response has the common headers."""
    found = [answer.headers.get(name) for name in ("vary", "x-content-type-options", "cache-control")]
    return found == ["Authorization", "nosniff", cache] and bool(answer.headers.get("x-request-id"))


def assert_page_headers(answer: httpx.Response) -> None:
    """Check the security headers of a page."""
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    features = set(answer.headers["permissions-policy"].split(", "))
    assert {"camera=()", "geolocation=()", "microphone=()", "payment=()", "usb=()"} <= features


def routes_of(api: Api) -> set[tuple[str, str]]:
    """Return method and path of every route that the service has."""
    return {
        (method, str(context.path).replace(":path}", "}"))
        for context in iter_route_contexts(build(api.app_state).routes)
        for method in (context.methods or set()) - {"HEAD"}
    }


async def exchanged(port: int, sent: bytes) -> httpx.Response:
    """Send bytes as they are, and return the answer, after which the connection must end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    answer = await asyncio.wait_for(reader.read(), LONGEST_WAIT)
    writer.close()
    await writer.wait_closed()
    start, _, rest = answer.partition(b"\r\n\r\n")
    status, *headers = start.decode("latin-1").split("\r\n")
    pairs = [(name, value) for name, _, value in (header.partition(": ") for header in headers)]
    return httpx.Response(int(status.split(" ")[1]), headers=pairs, content=rest)


async def raw(api: Api, head: str, body: bytes = b"") -> httpx.Response:
    """Send a request whose head is written out, of latin-1, and return its answer."""
    sent = head.replace("\n", "\r\n").encode("latin-1") + b"Host: x\r\nConnection: close\r\n\r\n" + body
    return await exchanged(int(api.http.base_url.port or 0), sent)


FILES = ["/inbox-{version}.js", *(f"/{name}" for name in pages.FILES)]
"""The files of the web inbox."""

CONSOLE = ["/console", "/console/{name}", *(f"/console/{name}" for name in ("sign-in", "signed-in", "session"))]
"""The console, its files, and its routes for sessions."""


async def mine(api: Api, method: str, path: str, **more: Any) -> httpx.Response:
    return await api.as_user(1, method, f"/notifications{path}", **more)
