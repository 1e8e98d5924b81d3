"""CORS: preflight requests and response headers."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog.testing

from tests.support.answers import UNKNOWN, sealed
from tests.support.service import Api, serving
from tocsin.catalogue import Catalogue

ORIGIN = "https://crm.example.com"


ASKING = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}


class TestOrigins:
    @pytest.fixture
    async def open_api(self, url: str, catalogue: Catalogue) -> AsyncIterator[Api]:
        async with serving(url, catalogue, with_worker=False, cors_origins=f"http://localhost:5173,{ORIGIN}") as api:
            yield api

    async def test_cors_preflight_needs_no_token_and_lists_what_is_allowed(self, open_api: Api) -> None:
        for path in ("/notifications", f"/notifications/{UNKNOWN}/read", "/events", "/nothing"):
            answer = await open_api.call("OPTIONS", path, headers=ASKING)
            assert (answer.status_code, answer.content) == (204, b"")
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert answer.headers["access-control-allow-methods"] == "GET, POST, PUT, PATCH, DELETE"
            assert set(answer.headers["access-control-allow-headers"].split(", ")) == {
                *("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "X-Request-Id"),
            }
            assert answer.headers["access-control-max-age"] == "600"
            assert answer.headers.get_list("vary") == ["Authorization, Origin"]
            assert "access-control-allow-credentials" not in answer.headers
            assert answer.headers["x-request-id"]

    async def test_every_response_to_known_origin_has_cors_headers(
        self, open_api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("a bug")

        await open_api.people(1)
        of_page: dict[str, Any] = {"headers": {"Origin": ORIGIN}}
        answers = [
            await open_api.as_user(1, "GET", "/notifications", **of_page),
            await open_api.call("GET", "/notifications", **of_page),
            await open_api.as_user(1, "GET", "/nothing", **of_page),
            await open_api.as_user(1, "GET", "/notifications?page=x", **of_page),
        ]
        with monkeypatch.context() as patch, structlog.testing.capture_logs():
            patch.setattr("tocsin.pages.Pages.of", broken)
            answers.append(await open_api.as_user(1, "GET", "/notifications", **of_page))
        await open_api.app_state.database.close()
        answers.append(await open_api.as_user(1, "GET", "/notifications", **of_page))
        assert [answer.status_code for answer in answers] == [200, 401, 404, 422, 500, 503]
        for answer in answers:
            assert answer.headers.get_list("access-control-allow-origin") == [ORIGIN]
            assert answer.headers.get_list("vary") == ["Authorization, Origin"]
            exposed = set(answer.headers["access-control-expose-headers"].split(", "))
            assert {"ETag", "Retry-After", "X-Request-Id", "RateLimit", "RateLimit-Policy"} <= exposed
            assert "access-control-allow-credentials" not in answer.headers

    async def test_unknown_origin_gets_no_cors_headers(self, open_api: Api) -> None:
        for origin in ("https://evil.example.com", f"{ORIGIN}.evil.com", f"{ORIGIN}:444", "null", "http" + ORIGIN[5:]):
            for method, more in (("GET", {}), ("OPTIONS", ASKING)):
                answer = await open_api.call(method, "/healthz", headers={**more, "Origin": origin})
                assert "access-control-allow-origin" not in answer.headers, origin
                assert answer.headers.get_list("vary") == ["Authorization, Origin"]

    async def test_no_cors_headers_without_configured_origins(self, api: Api) -> None:
        answer = await api.call("OPTIONS", "/notifications", headers=ASKING)
        assert answer.status_code == 405
        assert sealed(answer)
        assert not [name for name in answer.headers if name.startswith("access-control")]
