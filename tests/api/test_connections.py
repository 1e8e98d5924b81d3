"""Limits of connections: slow, silent and endless requests are bounded and do not affect other clients."""

import asyncio
import contextlib
import gc
import json
import resource
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tests.support.answers import codes_of, exchanged
from tests.support.events import custom, post
from tests.support.service import DAY, HOUR, SECRET, Api, serving, standing_token
from tests.support.waiting import LONGEST_WAIT, bounded, until
from tests.support.workers import work
from tocsin.api.arriving import ARRIVING, COMPLETE
from tocsin.api.body import MAX_BODY_BYTES
from tocsin.api.connections import Connections, Patience, is_reserved, raise_file_limit
from tocsin.api.protocol import MAX_HEAD_BYTES, MAX_HEADERS, MAX_REST_BYTES
from tocsin.auth.minting import mint_service, mint_user
from tocsin.catalogue import Catalogue
from tocsin.db.admission import KIND
from tocsin.metrics import Metrics
from tocsin.sockets import MAX_UNSENT_BYTES, bound

SHORT = Patience(head=1, body=3, answer=1.5, idle=3, rest=0.5)
ORIGIN = "https://crm.example.com"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n"
BY_SERVICE = f"Authorization: Bearer {mint_service(SECRET, 'crm', ['events:write'], DAY)}\r\n".encode()


@pytest.fixture
async def hasty(url: str, catalogue: Catalogue) -> AsyncIterator[Api]:
    """The service with very short timeouts."""
    async with serving(url, catalogue, with_worker=False, patience=SHORT, cors_origins=ORIGIN) as api:
        yield api


@asynccontextmanager
async def connected(api: Api) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(api))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def port_of(api: Api) -> int:
    return int(api.http.base_url.port or 0)


async def response_to(api: Api, *sent: bytes) -> httpx.Response:
    """Return the response to these bytes, up to the end of the connection."""
    return await exchanged(port_of(api), b"".join(sent))


async def flood(api: Api, before: bytes, part: bytes, most: int) -> int:
    """Send a part again and again until the connection is closed, and return how many bytes that took."""
    sent = 0
    async with connected(api) as (reader, writer):
        writer.write(before)
        answer = asyncio.create_task(reader.read())
        with contextlib.suppress(ConnectionError):
            while sent < most and not answer.done():
                writer.write(part)
                sent += len(part)
                await writer.drain()
                await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(answer, LONGEST_WAIT)
    return sent


class TestTrailers:
    @pytest.mark.parametrize(
        "trailer", [f"Authorization: Bearer {standing_token(1)}", "X-Forwarded-Host: evil.example"]
    )
    async def test_trailers_are_not_headers(self, url: str, catalogue: Catalogue, trailer: str) -> None:
        async with serving(url, catalogue, with_worker=False, trusted_proxies="127.0.0.1") as api:
            await api.people(1)
            by = "" if trailer.startswith("A") else f"Authorization: Bearer {mint_user(SECRET, 1, HOUR)}\r\n"
            head = (
                "GET /notifications?page=2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
            )
            answer = await response_to(api, f"{head}{by}\r\n0\r\n{trailer}\r\n\r\n".encode())
        assert answer.status_code == (200 if by else 401)
        assert "evil" not in answer.text

    @pytest.mark.parametrize("head", [CHUNKED, CHUNKED + BY_SERVICE, CHUNKED.replace(b"POST /events", b"GET /healthz")])
    @pytest.mark.parametrize(
        ("before", "part"),
        [
            (b"0\r\n", b"a: b\r\n" * 5000),
            (b"0\r\nX: ", b"a" * 30_000),
            (b"0\r\nX", b"a" * 30_000),
            (b"1;", b"a" * 30_000),
            (b"1;x=", b"a" * 30_000),
        ],
        ids=["trailers", "a value", "a name", "an extension", "a value of an extension"],
    )
    async def test_endless_trailers_or_chunk_extensions_close_the_connection(
        self, idle: Api, head: bytes, before: bytes, part: bytes
    ) -> None:
        gc.collect()
        tracemalloc.start()
        try:
            sent = await flood(idle, head + b"\r\n" + before, part, 50 * 2**20)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert sent < 20 * 2**20  # the socket buffers of both sides
        assert peak < 20 * 2**20
        assert (
            await response_to(idle, HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        ).status_code == 200

    @pytest.mark.parametrize(
        "request_",
        [HEALTH, b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"],
        ids=["without bodies", "with bodies"],
    )
    async def test_pipelined_requests_get_backpressure(self, idle: Api, request_: bytes) -> None:
        async def send(writer: asyncio.StreamWriter) -> None:
            while True:
                writer.write(request_ * 1_000)
                await writer.drain()

        async with connected(idle) as (reader, writer):
            gc.collect()
            tracemalloc.start()
            try:
                sending = asyncio.create_task(send(writer))
                for _ in range(400):
                    await reader.readuntil(b"HTTP/1.1 ")
                sending.cancel()
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert peak < 10 * 2**20

    async def test_head_with_too_many_headers_is_rejected_in_little_memory(self, idle: Api) -> None:
        head = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n")
        assert (await response_to(idle, head, b"ab:c\r\n" * (MAX_HEADERS - 2), b"\r\n")).status_code == 200
        gc.collect()
        tracemalloc.start()
        try:
            answer = await response_to(idle, head, b"ab:c\r\n" * 10_000)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert codes_of(answer) == (431, [("head_too_large", None)])
        assert str(MAX_HEADERS) in answer.text
        assert peak < 600_000

    async def test_trailers_within_the_limit_are_ignored(self, idle: Api) -> None:
        head = CHUNKED.replace(b"POST /events", b"GET /healthz") + b"Connection: close\r\n\r\n0\r\n"
        assert (await response_to(idle, head, b"X-A: b\r\n" * 100, b"\r\n")).status_code == 200


class TestPipelines:
    async def test_pipelined_requests_are_answered_in_order(self, idle: Api) -> None:
        async with connected(idle) as (reader, writer):
            for number in range(2000):
                writer.write(f"GET /{number} HTTP/1.1\r\nHost: x\r\nX-Request-Id: n{number}\r\n\r\n".encode())
            for number in range(2000):
                head = await reader.readuntil(b"\r\n\r\n")
                assert f"x-request-id: n{number}\r\n".encode() in head
                length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)

    async def test_body_of_previous_request_does_not_count_to_next_head(self, idle: Api) -> None:
        body = b"x" * 100_000
        first = b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n" + BY_SERVICE + b"\r\n" + body
        second = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Pad: " + b"y" * 60_000 + b"\r\n\r\n"
        async with connected(idle) as (reader, writer):
            writer.write(first + second)
            answers = await reader.read()
        assert b"HTTP/1.1 415 " in answers
        assert b"HTTP/1.1 200 " in answers


class TestTime:
    async def test_incomplete_head_times_out_with_408(self, hasty: Api) -> None:
        answer = await response_to(hasty, f"GET /notifications HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\nX".encode())
        assert codes_of(answer) == (408, [("timeout", None)])
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"]
        assert answer.headers["access-control-allow-origin"] == ORIGIN

    async def test_slow_bytes_do_not_extend_the_head_timeout(self, hasty: Api) -> None:
        async with connected(hasty) as (reader, writer):
            answer = asyncio.create_task(reader.read())
            writer.write(b"GET /")
            with contextlib.suppress(ConnectionError):
                while not answer.done():
                    writer.write(b"x")
                    await asyncio.sleep(0.02)
            assert (await answer).startswith(b"HTTP/1.1 408 ")

    @pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"])
    async def test_connection_without_a_request_is_closed(self, hasty: Api, sent: bytes) -> None:
        async with connected(hasty) as (reader, writer):
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), LONGEST_WAIT) == b""

    @pytest.mark.parametrize("path", ["/events", "/notifications/read"])
    async def test_stalled_body_times_out_with_408(self, hasty: Api, path: str) -> None:
        await hasty.people(1)
        method, by = (
            ("POST", BY_SERVICE.decode())
            if path == "/events"
            else ("PUT", f"Authorization: Bearer {mint_user(SECRET, 1, HOUR)}\r\n")
        )
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n{by}\r\n"
        answer = await response_to(hasty, head.encode(), b"{")
        assert codes_of(answer) == (408, [("timeout", None)])
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"]

    async def test_slow_body_is_read_while_its_parts_arrive_in_time(self, hasty: Api) -> None:
        body = b'{"type":"x"}'
        head = CHUNKED.replace(b"Transfer-Encoding: chunked", b"Content-Length: %d" % len(body))
        async with connected(hasty) as (reader, writer):
            writer.write(head + BY_SERVICE + b"\r\n")
            for start in range(0, len(body), 2):
                await asyncio.sleep(SHORT.body / 4)
                writer.write(body[start : start + 2])
            assert (await asyncio.wait_for(reader.readline(), LONGEST_WAIT)).startswith(b"HTTP/1.1 422 ")

    async def test_body_that_never_ends_times_out_though_its_parts_arrive(
        self, hasty: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tocsin.api.body.BODY_TIMEOUT", 0.5)
        async with connected(hasty) as (reader, writer):
            writer.write(CHUNKED + BY_SERVICE + b"\r\n")
            answer = asyncio.create_task(reader.readuntil(b"timeout"))
            async with bounded():
                while not answer.done():
                    writer.write(b"1\r\n \r\n")
                    await asyncio.sleep(SHORT.body / 30)
            assert (await answer).startswith(b"HTTP/1.1 408 ")

    async def test_body_byte_by_byte_wakes_its_request_only_at_the_end(
        self, idle: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        received = list[bytes]()
        receive = RequestResponseCycle.receive

        async def counting(cycle: RequestResponseCycle) -> Any:
            message: Any = await receive(cycle)
            received.append(message.get("body", b""))
            return message

        monkeypatch.setattr(RequestResponseCycle, "receive", counting)
        body = b'{"type":"' + b"x" * 500 + b'"}'
        head = CHUNKED.replace(b"Transfer-Encoding: chunked", b"Content-Length: %d" % len(body))
        async with connected(idle) as (reader, writer):
            writer.write(head + BY_SERVICE + b"\r\n")
            for byte in body:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            assert (await reader.readline()).startswith(b"HTTP/1.1 422 ")
        assert received[0] == body

    async def test_keep_alive_timeout_is_75_seconds(self, hasty: Api) -> None:
        assert Patience() == Patience(head=10, body=30, answer=30, idle=75, rest=5)
        async with connected(hasty) as (reader, writer):
            for _ in range(3):
                writer.write(HEALTH)
                await reader.readuntil(b'{"status":"ok"}')
                await asyncio.sleep(SHORT.idle / 3)
            assert await asyncio.wait_for(reader.read(), LONGEST_WAIT) == b""

    async def test_client_that_reads_no_responses_is_disconnected(
        self, hasty: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended, run = list[RequestResponseCycle](), RequestResponseCycle.run_asgi

        async def recorded(cycle: RequestResponseCycle, app: Any) -> None:
            await run(cycle, app)
            ended.append(cycle)

        monkeypatch.setattr(RequestResponseCycle, "run_asgi", recorded)
        large = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
        metric = 'tocsin_connections_dropped_total{reason="answer_timeout"} 5.0'
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(5):
                reader, writer = await stack.enter_async_context(connected(hasty))
                reader._transport.pause_reading()  # type: ignore[attr-defined]  # noqa: SLF001 - it has no other way
                writer.write(large * 20)

            async def is_counted() -> bool:
                return metric in (await hasty.app_state.metrics.text(hasty.app_state.database)).decode()

            await until(is_counted)
            # uvloop raises an exception, which would be logged as a bug, if a response is written after that
            await until(lambda: sum(cycle.disconnected and not cycle.response_complete for cycle in ended) == 5)

    async def test_slow_reader_gets_the_whole_response(self, hasty: Api) -> None:
        async with connected(hasty) as (reader, writer):
            writer.write(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            left = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            began = asyncio.get_running_loop().time()
            while left:
                left -= len(await reader.readexactly(min(left, 30_000)))
                await asyncio.sleep(0.04)
            assert asyncio.get_running_loop().time() - began > SHORT.answer

    async def test_rest_of_rejected_body_is_read_only_up_to_a_limit(self, hasty: Api) -> None:
        head = b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 300000000\r\n\r\n"
        assert await flood(hasty, head, b"x" * 60_000, 300_000_000) < MAX_REST_BYTES + 20 * 2**20
        answer = await response_to(hasty, head, b"x")
        assert codes_of(answer) == (401, [("unauthenticated", None)])

    async def test_short_rest_of_rejected_body_keeps_the_connection_open(self, idle: Api) -> None:
        async with connected(idle) as (reader, writer):
            writer.write(b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
            await reader.readuntil(b"}]}")
            writer.write(b"cde" + HEALTH)
            assert b'{"status":"ok"}' in await reader.readuntil(b'{"status":"ok"}')

    async def test_stream_with_an_endless_body_is_closed(self, idle: Api) -> None:
        await idle.people(1)
        by_user = f"Authorization: Bearer {mint_user(SECRET, 1, HOUR)}\r\n\r\n".encode()
        head = CHUNKED.replace(b"POST /events", b"GET /notifications/stream") + by_user
        part = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        assert await flood(idle, head, part, 100 * 2**20) < MAX_BODY_BYTES + 20 * 2**20
        await until(lambda: idle.app_state.streams.count == 0)


class TestNumber:
    async def test_thousand_silent_connections_do_not_block_new_clients(self, url: str, catalogue: Catalogue) -> None:
        connections = Connections(50, 10, metrics := Metrics())
        async with contextlib.AsyncExitStack() as stack:
            api = await stack.enter_async_context(
                serving(url, catalogue, with_worker=False, connections=connections, patience=Patience(head=600))
            )
            await api.people(1)
            with structlog.testing.capture_logs() as lines:
                for number in range(1000):
                    _, writer = await stack.enter_async_context(connected(api))
                    writer.write([b"", b"GET /", b"POST /events HTTP/1.1\r\nHost: x\r\nX-"][number % 3])
                    assert connections.count <= 60
                    if number % 100 == 99:
                        async with httpx.AsyncClient(base_url=api.http.base_url, timeout=60) as http:
                            by = {"Authorization": f"Bearer {mint_user(SECRET, 1, HOUR)}"}
                            assert (await http.get("/notifications", headers=by)).status_code == 200
            assert [line["event"] for line in lines].count("connection limit reached") == 1
            assert b'tocsin_connections_dropped_total{reason="limit"} 9' in await metrics.text(api.app_state.database)

    @pytest.mark.parametrize(
        ("head", "answered"),
        [
            (CHUNKED + b"\r\n", b" 401 "),
            (CHUNKED + BY_SERVICE + b"\r\n2\r\n{ \r\n", b""),
            (HEALTH + CHUNKED + BY_SERVICE + b"\r\n", b" 200 "),
            (b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b" 200 "),
        ],
        ids=["a body after its answer", "a body", "a body behind another request", "an answer that is not read"],
    )
    async def test_stalled_requests_do_not_block_new_clients(
        self, url: str, catalogue: Catalogue, head: bytes, answered: bytes
    ) -> None:
        connections, patience = Connections(20, 5), Patience(*[600.0] * 5)
        async with contextlib.AsyncExitStack() as stack:
            api = await stack.enter_async_context(
                serving(url, catalogue, with_worker=False, connections=connections, patience=patience)
            )
            await api.people(1)
            for _ in range(60):
                reader, writer = await stack.enter_async_context(connected(api))
                writer.write(head)
                if answered:
                    assert answered in await reader.readline()
            answer = await api.as_user(1, "GET", "/notifications")
            assert answer.status_code == 200
            message = {"message": "x", "notify": {"users": [1]}}
            assert (await api.as_user(1, "POST", "/notifications", json=message)).status_code == 202

    async def test_active_uploads_are_kept_over_silent_connections(self, url: str, catalogue: Catalogue) -> None:
        async with contextlib.AsyncExitStack() as stack:
            api = await stack.enter_async_context(
                serving(url, catalogue, with_worker=False, connections=Connections(5, 2))
            )
            body = b'{"type":"' + b"x" * 30 + b'"}'
            reader, writer = await stack.enter_async_context(connected(api))
            writer.write(CHUNKED + BY_SERVICE + b"\r\n")
            for byte in body:
                writer.write(b"1\r\n%c\r\n" % byte)
                _, silent = await stack.enter_async_context(connected(api))
                silent.write(b"GET /")
                assert (
                    await response_to(api, HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                ).is_success
            writer.write(b"0\r\n\r\n")
            assert b" 422 " in await reader.readline()

    @pytest.mark.usefixtures("unlimited")
    async def test_endless_bodies_are_bounded_and_do_not_delay_others(
        self, idle: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await idle.people(1)
        monkeypatch.setattr(ARRIVING, "most", 10 * 2**20)
        by_user = f"Authorization: Bearer {mint_user(SECRET, 1, HOUR)}\r\n".encode()
        head = b"POST /notifications HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + by_user
        message = {"message": "x", "notify": {"users": [1]}}
        async with contextlib.AsyncExitStack() as stack:
            gc.collect()
            tracemalloc.start()
            try:
                for _ in range(60):
                    _, writer = await stack.enter_async_context(connected(idle))
                    writer.write(head + b"Content-Length: 1000000\r\n\r\n" + b" " * 999_999)
                    with contextlib.suppress(ConnectionError):
                        await writer.drain()
                    assert ARRIVING.size <= ARRIVING.most
                await until(lambda: ARRIVING.size > ARRIVING.most - 10**6)
                for content in (message, {**message, "more": "x" * 900_000}):
                    assert (await idle.as_user(1, "POST", "/notifications", json=content)).status_code == 202
                gc.collect()
                assert tracemalloc.get_traced_memory()[0] < 30 * 2**20
            finally:
                tracemalloc.stop()
        await until(lambda: ARRIVING.size == 0)

    async def test_large_bodies_being_processed_are_bounded_together(
        self, idle: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(COMPLETE, "most", 3 * 10**6)
        await idle.people(1)
        large = {**custom(1), "more": "x" * 900_000}
        database = idle.app_state.database
        async with contextlib.AsyncExitStack() as stack:
            for number in range(6):
                KIND.set(f"test {number}")
                await stack.enter_async_context(database.connection())
            calls = [asyncio.create_task(post(idle, large)) for _ in range(12)]
            await until(lambda: sum(call.done() for call in calls) == 9)
            assert 2 * 10**6 < COMPLETE.size <= COMPLETE.most
            small = asyncio.create_task(post(idle, custom(1)))
            assert (await idle.call("GET", "/healthz")).status_code == 200
        answers = [await call for call in calls]
        assert sorted(answer.status_code for answer in answers) == [202] * 3 + [503] * 9
        for answer in answers:
            if answer.status_code == 503:
                assert codes_of(answer) == (503, [("unavailable", None)])
                assert "Too many large requests" in answer.text
                assert answer.headers["Retry-After"] == "1"
        assert (await small).status_code == 202
        await until(lambda: COMPLETE.size == 0)
        monkeypatch.setattr(COMPLETE, "most", 10**5)
        assert (await post(idle, large)).status_code == 202, "one body is always processed"
        await until(lambda: COMPLETE.size == 0)

    async def test_connection_limit_answers_503_but_serves_probes(self, url: str, catalogue: Catalogue) -> None:
        connections = Connections(5, 3)
        head = b"GET /notifications/stream HTTP/1.1\r\nHost: x\r\n"
        by_user = f"Authorization: Bearer {mint_user(SECRET, 1, HOUR)}\r\n".encode()
        async with contextlib.AsyncExitStack() as stack:
            api = await stack.enter_async_context(
                serving(url, catalogue, with_worker=False, connections=connections, cors_origins=ORIGIN)
            )
            await api.people(1)
            api.http.headers["Connection"] = "close"
            await until(lambda: connections.count == 0)
            with structlog.testing.capture_logs() as lines:
                writers = []
                for _ in range(5):
                    _, writer = await stack.enter_async_context(connected(api))
                    writer.write(head + by_user + b"\r\n")
                    writers.append(writer)
                await until(lambda: connections.count == 5 and not connections._waiting)  # noqa: SLF001 - all are at work
                list_ = f"GET /notifications HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\n\r\n"
                for _ in range(2):
                    answer = await response_to(api, list_.encode())
                    assert codes_of(answer) == (503, [("unavailable", None)])
                    assert answer.headers["connection"] == "close"
                    assert answer.headers["access-control-allow-origin"] == ORIGIN
                    assert int(answer.headers["retry-after"]) >= 1
                    await until(lambda: connections.count == 5)
                by_operator = f"Authorization: Bearer {mint_service(SECRET, 'ops', ['operations'], HOUR)}\r\n".encode()
                for path in (b"/healthz", b"/readyz", b"/metrics", b"/console", b"/operations/lanes"):
                    probe = HEALTH.replace(b"/healthz", path).replace(b"\r\n\r\n", b"\r\n" + by_operator + b"\r\n")
                    assert (await response_to(api, probe)).status_code == 200, path
                    await until(lambda: connections.count == 5)
                for writer in writers:
                    writer.close()
                await until(lambda: connections.count == 0)
                assert (await api.as_user(1, "GET", "/notifications")).status_code == 200
        said_ = [line["event"] for line in lines if "limit" in line["event"]]
        assert said_ == ["connection limit reached", "connection limit no longer reached"]

    def test_connection_limit_follows_the_raised_open_file_limit(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
            assert Connections.of_files().most + Connections.of_files().reserve < 1024 - 200
            with structlog.testing.capture_logs() as lines:
                raise_file_limit()
            most = Connections.of_files().most
            assert lines == [
                {"event": "file limit", "log_level": "info", "soft": 1024, "hard": hard, "connections": most}
            ]
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
            assert Connections.of_files().most > (hard - 512)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    @pytest.mark.parametrize("files", [64, 256, 512, 1024])
    def test_low_open_file_limit_reserves_files_for_database_and_push(self, files: int) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
            taken = Connections.of_files()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert taken.reserve >= 1
        assert files - taken.most - taken.reserve >= min(256, files * 5 // 8)

    def test_operator_paths_use_reserved_connections(self) -> None:
        assert all(
            is_reserved(path) for path in (b"/healthz", b"/readyz", b"/metrics", b"/console", b"/operations/lanes")
        )
        assert is_reserved(b"/api/console", b"/api")
        assert not any(is_reserved(path) for path in (b"/notifications", b"/events", b"/", b"/x/healthz"))


async def test_http_1_0_keep_alive_is_honored(idle: Api) -> None:
    async with connected(idle) as (reader, writer):
        for _ in range(2):
            writer.write(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            answer = await reader.readuntil(b'{"status":"ok"}')
            assert b"connection: keep-alive\r\n" in answer
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), LONGEST_WAIT)
        assert b"connection: close\r\n" in answer


async def test_rejected_head_has_cors_headers_for_known_origin(hasty: Api) -> None:
    head = f"GET /healthz HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\nX: ".encode()
    answer = await response_to(hasty, head, b"x" * MAX_HEAD_BYTES, b"\r\n\r\n")
    assert codes_of(answer) == (431, [("head_too_large", None)])
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


class TestClients:
    """Clients that behave in other ways than browsers."""

    async def test_client_that_ends_its_side_before_the_response_is_disconnected(self, idle: Api) -> None:
        """As by nginx: a client that waits for nothing more is not worth the work."""
        await idle.people(1)
        body = json.dumps(custom(1)).encode()
        head = CHUNKED.replace(b"Transfer-Encoding: chunked", b"Content-Length: %d" % len(body))
        for request in (HEALTH, head + BY_SERVICE + b"\r\n" + body):
            async with connected(idle) as (reader, writer):
                writer.write(request)
                writer.write_eof()
                answer = await asyncio.wait_for(reader.read(), LONGEST_WAIT)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 20")
        await until(lambda: idle.app_state.capacity.in_use == 0)

    async def test_client_that_ends_its_side_within_a_body_is_disconnected(self, idle: Api) -> None:
        async with connected(idle) as (reader, writer):
            writer.write(b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n" + BY_SERVICE + b"\r\n{")
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), LONGEST_WAIT) == b""

    async def test_idle_or_streaming_client_that_ends_its_side_is_disconnected(self, idle: Api) -> None:
        await idle.people(1)
        by_user = f"Authorization: Bearer {mint_user(SECRET, 1, HOUR)}\r\n\r\n".encode()
        async with connected(idle) as (reader, writer), connected(idle) as (events, streaming):
            writer.write(HEALTH)
            await reader.readuntil(b'{"status":"ok"}')
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), LONGEST_WAIT) == b""
            streaming.write(b"GET /notifications/stream HTTP/1.1\r\nHost: x\r\n" + by_user)
            await events.readuntil(b"event: count")
            streaming.write_eof()
            await asyncio.wait_for(events.read(), LONGEST_WAIT)
            await until(lambda: idle.app_state.streams.count == 0)

    async def test_body_is_asked_for_only_when_it_will_be_read(self, idle: Api) -> None:
        await idle.people(1)
        body = json.dumps(custom(1)).encode()
        head = b"POST /events HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Type: application/json\r\n"
        head += b"Content-Length: %d\r\n" % len(body)
        async with connected(idle) as (reader, writer):
            writer.write(head + BY_SERVICE + b"\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert (await reader.readline()).startswith(b"HTTP/1.1 202 ")
        async with connected(idle) as (reader, writer):
            writer.write(head + b"\r\n")
            assert (await asyncio.wait_for(reader.read(), LONGEST_WAIT)).startswith(b"HTTP/1.1 401 ")

    async def test_connections_that_arrive_at_the_same_moment_are_all_answered(self, idle: Api) -> None:
        with contextlib.ExitStack() as stack:
            waiting = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port_of(idle)), LONGEST_WAIT))
                for _ in range(200)  # while the event loop of the server does not run
            ]
            for each in waiting:
                each.sendall(HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            answers = [await asyncio.to_thread(each.recv, 100) for each in waiting]
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)

    async def test_clients_that_read_no_pages_use_little_memory_which_is_freed(self, idle: Api) -> None:
        await idle.people(1)
        for _ in range(20):
            events = [{**custom(1), "params": {"body": "x" * 500}} for _ in range(5)]
            assert (await idle.as_service("POST", "/events/batch", json={"events": events})).status_code == 202
        await work(idle)
        by_user = f"Authorization: Bearer {mint_user(SECRET, 1, HOUR)}\r\n\r\n".encode()
        page = b"GET /notifications?per_page=100 HTTP/1.1\r\nHost: x\r\n" + by_user
        async with contextlib.AsyncExitStack() as stack:
            gc.collect()
            tracemalloc.start()
            try:
                for _ in range(20):
                    reader, writer = await stack.enter_async_context(connected(idle))
                    reader._transport.pause_reading()  # type: ignore[attr-defined]  # noqa: SLF001 - it has no other way
                    writer.write(page * 100)
                assert (await idle.as_user(1, "GET", "/notifications?per_page=100")).status_code == 200
                await until(lambda: idle.app_state.capacity.in_use == 0)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert peak < 20 * 2**20, "without a limit, 20 times 100 pages of more than 100 KB"


def test_kernel_buffers_little_of_an_answer_that_is_not_read() -> None:
    """Otherwise each such connection takes megabytes, and the event loop is blocked while they are copied."""
    sent = 0
    with bound("127.0.0.1", 0, "TOCSIN_PORT") as taken:
        taken.listen()
        with socket.create_connection(taken.getsockname()) as client, taken.accept()[0] as accepted:
            accepted.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += accepted.send(bytes(2**22))
            received = client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert 0 < sent <= received + 2 * MAX_UNSENT_BYTES
