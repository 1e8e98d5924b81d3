"""What stands around the service: browsers of other origins, proxies, a prefix, odd bytes, and its end."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import structlog.testing

from tests.support.answers import FILES, UNKNOWN, codes_of, exchanged, routes_of, sealed
from tests.support.processes import Program, data_folder
from tests.support.service import HOUR, SECRET, Api, serving
from tests.support.waiting import until
from tocsin import fanout, jobs, logs
from tocsin.api.app import service
from tocsin.api.middleware import Envelope
from tocsin.api.protocol import MAX_HEAD_BYTES
from tocsin.api.server import Server
from tocsin.auth.minting import mint_service, mint_user
from tocsin.catalogue import Catalogue
from tocsin.errors import Refusal
from tocsin.metrics import Metrics
from tocsin.settings import read_settings

ORIGIN = "https://crm.example.com"
FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "crm.example.com:8443"}
ASKING = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}


async def next_url(api: Api, path: str = "/notifications", **headers: str) -> str:
    """Return where the second page of an inbox is, in the answer to a request with these headers."""
    answer = await api.as_user(1, "GET", f"{path}?per_page=1", headers=headers)
    assert answer.status_code == 200, answer.text
    url: str = answer.json()["pagination"]["urls"]["next"]
    return url


async def fill(api: Api, path: str = "/notifications") -> None:
    """Give user 1 an inbox of two pages of one."""
    await api.people(1)
    for _ in range(2):
        answer = await api.as_user(1, "POST", path, json={"message": "x", "notify": {"users": [1]}})
        assert answer.status_code == 202, answer.text
    async with asyncio.timeout(15):
        while (await api.as_user(1, "GET", path)).json()["pagination"]["total"] < 2:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(api: Api) -> AsyncIterator[int]:
    """Serve as the process does, and yield the port."""
    bound = socket.create_server(("127.0.0.1", 0))
    server = Server(service(api.app_state))
    running = asyncio.create_task(server._serve([bound]))  # noqa: SLF001 - serve() would take our signals
    try:
        yield int(bound.getsockname()[1])
    finally:
        server.should_exit = True
        await running
        bound.close()


class TestOrigins:
    @pytest.fixture
    async def open_api(self, url: str, catalogue: Catalogue) -> AsyncIterator[Api]:
        async with serving(url, catalogue, with_worker=False, cors_origins=f"http://localhost:5173,{ORIGIN}") as api:
            yield api

    async def test_a_preflight_is_answered_without_a_token_and_says_what_is_allowed(self, open_api: Api) -> None:
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

    async def test_every_answer_to_a_known_origin_may_be_seen_by_it(
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
            patch.setattr("tocsin.inbox.page", broken)
            answers.append(await open_api.as_user(1, "GET", "/notifications", **of_page))
        await open_api.app_state.database.close()
        answers.append(await open_api.as_user(1, "GET", "/notifications", **of_page))
        assert [answer.status_code for answer in answers] == [200, 401, 404, 422, 500, 503]
        for answer in answers:
            assert answer.headers.get_list("access-control-allow-origin") == [ORIGIN]
            assert answer.headers.get_list("vary") == ["Authorization, Origin"]
            exposed = set(answer.headers["access-control-expose-headers"].split(", "))
            assert {"ETag", "Retry-After", "X-Request-Id", "RateLimit-Limit", "RateLimit-Remaining"} <= exposed
            assert "access-control-allow-credentials" not in answer.headers

    async def test_an_unknown_origin_may_see_nothing(self, open_api: Api) -> None:
        for origin in ("https://evil.example.com", f"{ORIGIN}.evil.com", f"{ORIGIN}:444", "null", "http" + ORIGIN[5:]):
            for method, more in (("GET", {}), ("OPTIONS", ASKING)):
                answer = await open_api.call(method, "/healthz", headers={**more, "Origin": origin})
                assert "access-control-allow-origin" not in answer.headers, origin
                assert answer.headers.get_list("vary") == ["Authorization, Origin"]

    async def test_without_origins_nobody_is_told_anything(self, api: Api) -> None:
        answer = await api.call("OPTIONS", "/notifications", headers=ASKING)
        assert answer.status_code == 405
        assert sealed(answer)
        assert not [name for name in answer.headers if name.startswith("access-control")]


class TestProxies:
    async def test_urls_follow_a_trusted_proxy(self, url: str, catalogue: Catalogue) -> None:
        for trusted in ("127.0.0.1", "10.0.0.0/8, 127.0.0.0/8"):
            async with serving(url, catalogue, trusted_proxies=trusted) as api:
                await fill(api)
                found = await next_url(api, **FORWARDED)
                assert found.startswith("https://crm.example.com:8443/notifications?per_page=1&page=2")

    async def test_others_are_not_believed(self, url: str, catalogue: Catalogue) -> None:
        for proxies in ("", "10.0.0.0/8,::1"):
            more: dict[str, Any] = {"trusted_proxies": proxies} if proxies else {}
            async with serving(url, catalogue, **more) as api, listening(api) as port:
                await fill(api)
                place = f"http://127.0.0.1:{port}/notifications"
                assert (await next_url(api, path=place, **FORWARDED)).startswith(f"{place}?")

    async def test_odd_values_are_passed_over(self, url: str, catalogue: Catalogue) -> None:
        async with serving(url, catalogue, trusted_proxies="127.0.0.1") as api:
            await fill(api)
            own = f"{api.http.base_url}/notifications?"
            for host in ('a"b', "a/b", "a@b", "x y", "[", "[::1", "a:b", "", ",", "\\", "a?b=", "x" * 300, "a, b/c"):
                assert (await next_url(api, **{"X-Forwarded-Host": host})).startswith(own), host
            for scheme in ("javascript", "https, http", "", "HTTPS://", "\\"):
                assert (await next_url(api, **{"X-Forwarded-Proto": scheme})).startswith(own), scheme
            for client in ("x", "[", "[::1", "1.2.3.4:", "1.2.3.4:" + "9" * 5000, ",,,", "::ffff:1.2.3.4"):
                assert (await next_url(api, **{"X-Forwarded-For": client})).startswith(own), client
            last = await next_url(api, **{"X-Forwarded-Host": "evil.example.com, crm.example.com"})
            assert last.startswith("http://crm.example.com/notifications?")

    async def test_a_host_that_is_none_is_not_repeated(self, api: Api) -> None:
        await fill(api)
        for host in ('a"b', "a/b", "a@b", "x y", "a?b"):
            assert (await next_url(api, Host=host)).startswith(f"{api.http.base_url}/notifications?"), host


class TestPrefix:
    @pytest.fixture
    async def below(self, url: str, catalogue: Catalogue) -> AsyncIterator[Api]:
        async with serving(url, catalogue, root_path="/notify") as api:
            yield api

    async def test_everything_is_served_below_it_and_its_urls_hold_it(self, below: Api) -> None:
        await fill(below, "/notify/notifications")
        page = await next_url(below, path="/notify/notifications")
        assert page.startswith(f"{below.http.base_url}/notify/notifications?per_page=1&page=2&cursor=")
        assert len((await below.as_user(1, "GET", page)).json()["data"]) == 1
        assert (await below.as_user(1, "PUT", "/notify/notifications/read")).status_code == 204
        found = await below.as_service("GET", f"/notify/events/{UNKNOWN}")
        assert codes_of(found) == (404, [("not_found", None)])
        event = {"type": "custom", "data": {"user": 1}, "params": {"body": "x"}, "notify": {"users": [1]}}
        assert (await below.as_service("POST", "/notify/events", json=event)).status_code == 202
        assert (await below.call("GET", "/notify/openapi.json")).json()["servers"] == [{"url": "/notify"}]
        shown = await below.call("GET", "/notify/docs")
        assert 'href="docs/swagger-ui.css"' in shown.text
        assert (await below.call("GET", "/notify/docs/swagger-ui.css")).status_code == 200

    async def test_nothing_but_the_probes_is_served_without_it(self, below: Api) -> None:
        for path in ("/notifications", "/events", "/docs", "/", "/notifynotifications", "/notify", "/Notify/healthz"):
            answer = await below.as_user(1, "GET", path)
            assert codes_of(answer) == (404, [("not_found", None)]), path
            assert sealed(answer)
        for path in ("/healthz", "/readyz", "/notify/healthz", "/notify/readyz"):
            assert (await below.call("GET", path)).status_code == 200

    @pytest.mark.parametrize(
        ("public", "prefix", "base"),
        [
            ("https://crm.example.com", "/notify", "https://crm.example.com/notify"),
            ("https://crm.example.com/notify/", "/notify", "https://crm.example.com/notify"),
            ("https://crm.example.com/a", "/notify", "https://crm.example.com/a/notify"),
            ("https://crm.example.com/a/notify", "/notify", "https://crm.example.com/a/notify"),
            ("https://notify", "/notify", "https://notify/notify"),
            ("https://crm.example.com/a/", "", "https://crm.example.com/a"),
        ],
    )
    async def test_the_public_url_holds_it_once(self, public: str, prefix: str, base: str) -> None:
        settings = read_settings({"TOCSIN_PUBLIC_URL": public, "TOCSIN_ROOT_PATH": prefix}, Path("/nonexistent"))
        assert settings.base_url == base


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *[
                ("ROOT_PATH", value)
                for value in ("notify", "/notify/", "/", "//a", "/a b", "/../a", "/a/.", "/%41", "/ü")
            ],
            *[
                ("CORS_ORIGINS", value)
                for value in ("*", f"{ORIGIN},*", f"{ORIGIN}/", f"{ORIGIN}/x", "crm", "null", "a://")
            ],
            *[
                ("CORS_ORIGINS", value)
                for value in (f"{ORIGIN},", "https://*.example.com", "https://a@b", "https://a:x")
            ],
            *[
                ("TRUSTED_PROXIES", value)
                for value in ("*", "proxy", "10.0.0.1/8", "10.0.0.0/33", "127.0.0.1,", "1.2.3")
            ],
            *[("RETENTION_DAYS", value) for value in ("0", "-1", "36501", "x", "1.5")],
        ],
    )
    def test_what_is_not_usable_is_refused_by_name(self, name: str, value: str) -> None:
        with pytest.raises(Refusal, match=f"TOCSIN_{name} is not usable"):
            read_settings({f"TOCSIN_{name}": value}, Path("/nonexistent"))

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("HTTPS://CRM.example.com:443", "https://crm.example.com"),
            ("http://localhost:80", "http://localhost"),
            ("http://localhost:443", "http://localhost:443"),
            ("http://[::1]:5173", "http://[::1]:5173"),
            ("capacitor://localhost", "capacitor://localhost"),
        ],
    )
    def test_origins_are_kept_as_browsers_write_them(self, given: str, kept: str) -> None:
        assert read_settings({"TOCSIN_CORS_ORIGINS": given}, Path("/nonexistent")).cors_origins == (kept,)


async def test_a_list_is_kept_to_be_asked_for_again_and_nothing_else_is_kept_at_all(api: Api) -> None:
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


class TestWire:
    @pytest.mark.parametrize(
        "sent",
        [
            b"\x00\x01\x02\r\n\r\n",
            b"G\xc3\xa4T / HTTP/1.1\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"GET /healthz HTTP/9.9\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nX y: z\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
            b"GET /healthz HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n",
            b"GET /healthz\r\n\r\n",
        ],
    )
    async def test_what_is_no_http_is_answered_in_the_one_form(self, idle: Api, sent: bytes) -> None:
        async with listening(idle) as port:
            answer = await exchanged(port, sent)
        assert codes_of(answer) == (400, [("malformed", None)])
        assert sealed(answer)

    async def test_a_head_is_bounded_whether_it_ends_or_not(self, idle: Api) -> None:
        line = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        async with listening(idle) as port:
            large, endless = b"X: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", b"X: " + b"x" * MAX_HEAD_BYTES
            many = b"".join(b"X-%d: x\r\n" % number for number in range(9000)) + b"\r\n"
            for rest in (large, endless, many):
                answer = await exchanged(port, line + rest)
                assert codes_of(answer) == (431, [("head_too_large", None)])
                assert str(MAX_HEAD_BYTES) in answer.text
            assert (await exchanged(port, line + large[:3] + large[203:])).status_code == 200

    async def test_a_large_body_is_no_large_head(self, idle: Api) -> None:
        token = mint_service(SECRET, "crm", ["events:write"], HOUR)
        head = f"POST /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n"
        body = json.dumps({"type": "x" * 200_000}).encode()
        sent = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        async with listening(idle) as port:
            assert (await exchanged(port, sent)).status_code == 422


async def test_what_postgresql_says_of_a_row_stays_out_of_logs_and_dead_letters(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        async with api.app_state.database.connection() as connection:
            await connection.execute("insert into teams (id, company_id, name) values (-1, 1, 'geheim')")

    monkeypatch.setattr(fanout, "deliver", broken)
    monkeypatch.setattr(jobs, "RETRY_DELAYS", ())
    await api.people(1)
    event = {"type": "custom", "data": {"user": 1}, "params": {"body": "x"}, "notify": {"users": [1]}}
    with structlog.testing.capture_logs() as lines:
        id_ = (await api.as_service("POST", "/events", json=event)).json()["id"]
        state = await api.as_service("GET", f"/events/{id_}?wait=10")
    assert state.json()["state"] == "failed"
    reason = await api.app_state.database.value("select reason from dead_letters")
    [told] = [line for line in lines if line["event"] == "job moved to dead letters"]
    for text in (reason, told["reason"]):
        assert "teams_id_check" in text
        assert "geheim" not in text
        assert "\n" not in text
    assert isinstance(told["exc_info"], asyncpg.CheckViolationError)
    assert "geheim" in str(told["exc_info"])
    line = {"event": "x", "exception": f"Traceback\n{told['exc_info']}\n\nThe above exception was\nx"}
    shown = logs._without_secrets(None, "error", line)["exception"]  # noqa: SLF001 - the one place where all lines pass
    assert "geheim" not in shown
    assert "teams_id_check" in shown
    assert "The above exception" in shown


@pytest.mark.slow
async def test_a_stop_loses_nothing_and_is_soon_over_whatever_clients_do() -> None:
    async with data_folder() as data, Program(data, "serve") as program:
        host, port = program.address
        token = mint_service(SECRET, "crm", ["events:write", "directory:write"], HOUR)
        by = {"Authorization": f"Bearer {token}"}
        event = {"type": "custom", "data": {"user": 1}, "params": {"body": "x"}, "notify": {"users": [1]}}
        limits = httpx.Limits(max_connections=60)
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=by, limits=limits, timeout=20) as http:
            person = {"first_name": "A", "last_name": "B"}
            assert (await http.put("/directory/users/1", json=person)).status_code == 204
            _, half = await asyncio.open_connection(host, port)
            half.write(b"POST /events HTTP/1.1\r\nHo")
            reader, hanging = await asyncio.open_connection(host, port)
            head = f"POST /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            hanging.write(f"{head}Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{{".encode())
            idle_reader, idle = await asyncio.open_connection(host, port)
            idle.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            await idle_reader.readuntil(b'{"status":"ok"}')
            posts = [asyncio.create_task(http.post("/events", json=event)) for _ in range(50)]
            await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
            process = program._process  # noqa: SLF001 - its helper only kills
            assert process is not None
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(idle_reader.read(), 5) == b""
            refusal = await reader.read()
            await asyncio.wait_for(process.wait(), 10)
            assert time.monotonic() - began < 10
            assert refusal.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after" in refusal
            answers = await asyncio.gather(*posts, return_exceptions=True)
        # What was not accepted any more was refused whole: it never reached us.
        accepted = {answer.json()["id"] for answer in answers if isinstance(answer, httpx.Response)}
        assert accepted
        assert {type(answer) for answer in answers} <= {httpx.Response, httpx.ConnectError, httpx.ReadError}
        assert not [line for line in program.complaints() if "Traceback" in line]
        await program.start()
        host, port = program.address
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=by, timeout=20) as http:
            for id_ in accepted:
                assert (await http.get(f"/events/{id_}?wait=10")).json()["state"] == "delivered"
        for writer in (half, hanging, idle):
            writer.close()
        await until(lambda: program.alive, 1)


@pytest.mark.parametrize(
    ("sent", "due"),
    [
        (b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "4bf92f3577b34da6a3ce929d0e0e4736"),
        (b"00-4bf92f3577b34da6\x1b[31m", None),
        (b"", None),
    ],
)
async def test_the_lines_of_a_request_have_the_id_of_the_callers_trace(sent: bytes, due: str | None) -> None:
    seen: dict[str, Any] = {}

    async def app(*_: Any) -> Any:
        seen.update(structlog.contextvars.get_contextvars())

    scope = {"type": "http", "method": "GET", "path": "/healthz", "headers": [(b"traceparent", sent)]}
    await asyncio.create_task(Envelope(app, Metrics())(scope, app, app))
    assert seen.get("trace_id") == due
    assert seen["request_id"]
