"""Overload: more requests than can be processed are refused at once, others are processed, and none is lost."""

import asyncio
import contextlib
import gc
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest
import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.answers import codes_of, exchanged
from tests.support.events import custom
from tests.support.service import DAY, HOUR, SECRET, Api, serving
from tests.support.waiting import until
from tocsin import capacity, serve
from tocsin.api.connections import Connections
from tocsin.api.protocol import Protocol
from tocsin.api.refusing import MAX_HEAD_BYTES, Refusing
from tocsin.api.server import Server
from tocsin.auth.minting import mint_service, mint_user
from tocsin.catalogue import Catalogue
from tocsin.db.admission import KIND
from tocsin.db.connections import Connection
from tocsin.metrics import Metrics
from tocsin.pacing import Pace
from tocsin.sockets import bound

SLOTS = 8
IN_USE = 6
"""Of these slots, those that one kind of request gets."""

ORIGIN = "https://crm.example.com"
SERVICE = mint_service(SECRET, "crm", ["events:write"], DAY)
PROBLEM = "requests are refused: more arrive than can be processed"


def request_to(method: str, path: str, token: str, body: str = "", *more: str) -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", *more]
    head += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*head, "", body]).encode()


EVENT = json.dumps(custom(1))
POST = request_to("POST", "/events", SERVICE, EVENT)
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def small(url: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """The service with few slots for events, whose queue may not be long at any time."""
    monkeypatch.setitem(capacity.SLOTS_OF_KINDS, "POST /events", SLOTS)
    monkeypatch.setattr(capacity, "MAX_BURST", 0)
    async with serving(url, catalogue, with_worker=False, cors_origins=ORIGIN) as api:
        await api.people(1)
        yield api


class Line:
    """A connection that sends requests one after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def ask(self, request: bytes) -> httpx.Response:
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> httpx.Response:
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines[1:-2])]
        length = int(dict(headers).get("content-length", 0))
        content = await self._reader.readexactly(length)
        return httpx.Response(int(lines[0].split()[1]), headers=headers, content=content)

    async def rest(self) -> bytes:
        return await self._reader.read()


def port_of(api: Api) -> int:
    return int(api.http.base_url.port or 0)


def line(api: Api) -> AbstractAsyncContextManager[Line]:
    return line_to(("127.0.0.1", port_of(api)))


@asynccontextmanager
async def line_to(address: tuple[str, int]) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def overloaded(
    api: Api, dba: Connection, waiting: int = SLOTS
) -> AsyncIterator[Sequence[asyncio.Task[httpx.Response]]]:
    """Post events that wait for a lock, as many as the service takes, for as long as the block runs."""
    accepted: list[asyncio.Task[httpx.Response]] = []
    async with contextlib.AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(line(api)) for _ in range(IN_USE + waiting)]
        async with dba.transaction():
            await dba.execute("lock table events in exclusive mode")  # which allows reads
            accepted += [asyncio.create_task(each.ask(POST)) for each in lines]
            await until(lambda: api.app_state.capacity.waiting == waiting)
            yield accepted
        await asyncio.wait(accepted)


async def events_in(dba: Connection) -> int:
    count: int = await dba.fetchval("select count(*) from events")
    return count


async def metric(api: Api, name: str) -> float:
    text = (await api.app_state.metrics.text(api.app_state.database)).decode()
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[-1])


class TestRefusal:
    async def test_requests_beyond_capacity_are_refused_and_accepted_ones_kept(
        self, small: Api, dba: Connection
    ) -> None:
        with structlog.testing.capture_logs() as lines:
            async with overloaded(small, dba) as accepted, line(small) as further:
                assert small.app_state.capacity.in_use == IN_USE
                for _ in range(3):
                    answer = await further.ask(POST)
                    assert codes_of(answer) == (503, [("unavailable", None)])
                    assert answer.headers["retry-after"] == "1"
                    assert answer.headers["x-request-id"]
                    assert answer.headers["cache-control"] == "no-store"
                    assert "Authorization" in answer.headers["vary"]
                assert not any(each.done() for each in accepted)
                assert await metric(small, 'tocsin_requests_refused_total{reason="overload"}') == 3
                assert await metric(small, "tocsin_requests_waiting") == SLOTS
            assert [each.result().status_code for each in accepted] == [202] * (IN_USE + SLOTS)
        assert await events_in(dba) == IN_USE + SLOTS, "a refused event is not stored"
        assert [line["event"] for line in lines].count("requests refused: more arrive than can be processed") == 1
        await until(lambda: small.app_state.capacity.in_use == 0)
        async with line(small) as later:
            assert (await later.ask(POST)).status_code == 202, "accepted again without a restart"

    async def test_requests_that_are_read_together_get_the_places_that_are_left(
        self, small: Api, dba: Connection
    ) -> None:
        """The application would refuse the others too, at many times the cost."""
        used, refused = small.app_state.capacity, 'tocsin_requests_refused_total{reason="overload"}'
        async with contextlib.AsyncExitStack() as stack:
            async with overloaded(small, dba, waiting=SLOTS - 1):
                used.refuse("POST /events")
                lines = [await stack.enter_async_context(line(small)) for _ in range(20)]
                answers = [asyncio.create_task(each.ask(POST)) for each in lines]
                await until(lambda: sum(each.done() for each in answers) == 19)
                assert used.waiting == SLOTS
                assert await metric(small, refused) == 1 + 19
            assert sorted([(await each).status_code for each in answers]) == [202] + [503] * 19
        text = (await small.app_state.metrics.text(small.app_state.database)).decode()
        assert 'route="/events",status="202"' in text
        assert 'status="503"' not in text, "refused by the application"

    async def test_flood_of_events_does_not_refuse_pages_probes_or_other_calls(
        self, small: Api, dba: Connection
    ) -> None:
        user = mint_user(SECRET, 1, HOUR)
        async with overloaded(small, dba), line(small) as other:
            assert (await other.ask(POST)).status_code == 503
            for path, token in (
                ("/notifications", user),
                ("/notifications/preferences", user),
                ("/healthz", user),
                ("/readyz", user),
                ("/directory/users/1", mint_service(SECRET, "crm", ["directory:write"], HOUR)),
            ):
                assert (await other.ask(request_to("GET", path, token))).status_code == 200, path

    async def test_readiness_says_that_requests_are_refused(self, small: Api, dba: Connection) -> None:
        async with overloaded(small, dba), line(small) as further:
            assert (await further.ask(POST)).status_code == 503
            answer = await further.ask(HEALTH.replace(b"healthz", b"readyz"))
            assert answer.status_code == 200
            assert any(each.endswith(PROBLEM) for each in answer.json()["problems"])

    async def test_burst_is_accepted_while_its_first_request_has_not_waited_long(
        self, small: Api, dba: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(capacity, "MAX_BURST", 3600)
        async with contextlib.AsyncExitStack() as stack:
            async with overloaded(small, dba):
                lines = [await stack.enter_async_context(line(small)) for _ in range(5 * SLOTS)]
                burst = [asyncio.create_task(each.ask(POST)) for each in lines]
                await until(lambda: small.app_state.capacity.waiting == 6 * SLOTS)
            assert {(await each).status_code for each in burst} == {202}

    async def test_number_of_waiting_requests_is_bounded_in_a_burst(
        self, small: Api, dba: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(capacity, "MAX_BURST", 3600)
        monkeypatch.setattr(capacity, "MAX_WAITING", SLOTS)
        async with overloaded(small, dba), line(small) as further:
            assert (await further.ask(POST)).status_code == 503


class TestConnection:
    """A refusal costs little: it needs no new connection and no further work."""

    async def test_connection_stays_open_after_a_refusal(self, small: Api, dba: Connection) -> None:
        async with overloaded(small, dba), line(small) as further:
            for _ in range(3):
                assert (await further.ask(POST)).status_code == 503
                assert (await further.ask(HEALTH)).json() == {"status": "ok"}

    @pytest.mark.parametrize(
        "request_",
        [
            POST,
            request_to("POST", "/events?x=1", SERVICE, EVENT),
            request_to("POST", "/events", SERVICE, EVENT, f"Origin: {ORIGIN}"),
            request_to("POST", "/events", SERVICE, EVENT, "Expect: 100-continue"),
            request_to("POST", "/events", SERVICE, json.dumps({**custom(1), "more": "x" * 200_000})),
            request_to("POST", "/events", SERVICE, "", "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n\r\n",
            request_to("POST", "/events", SERVICE, EVENT).replace(b"HTTP/1.1", b"HTTP/1.0"),
            request_to("POST", "/events", SERVICE, EVENT, "Connection: close"),
        ],
        ids=["plain", "query", "origin", "expecting", "large", "chunked", "HTTP/1.0", "closing"],
    )
    async def test_every_form_of_request_is_refused_the_same_way(
        self, small: Api, dba: Connection, request_: bytes
    ) -> None:
        async with overloaded(small, dba), line(small) as first:
            assert (await first.ask(POST)).status_code == 503
            async with line(small) as further:
                answer = await further.ask(request_)
                if answer.status_code == 100:
                    answer = await further.answer()
            assert codes_of(answer) == (503, [("unavailable", None)])
            assert answer.headers["retry-after"] == "1"
            if b"Origin" in request_:
                assert answer.headers["access-control-allow-origin"] == ORIGIN
            if b"Connection: close" in request_ or b"HTTP/1.0" in request_:
                assert answer.headers["connection"] == "close"

    async def test_pipelined_requests_are_refused_and_answered_in_order(self, small: Api, dba: Connection) -> None:
        async with overloaded(small, dba), line(small) as further:
            assert (await further.ask(POST)).status_code == 503
            further.writer.write((POST + HEALTH) * 20)
            for _ in range(20):
                assert (await further.answer()).status_code == 503
                assert (await further.answer()).json() == {"status": "ok"}

    async def test_body_of_a_refused_request_may_arrive_in_parts(self, small: Api, dba: Connection) -> None:
        async with overloaded(small, dba), line(small) as further:
            assert (await further.ask(POST)).status_code == 503
            for byte in POST:
                further.writer.write(bytes([byte]))
                await further.writer.drain()
            assert (await further.answer()).status_code == 503
            assert (await further.ask(HEALTH)).status_code == 200

    @pytest.mark.parametrize(
        ("found", "sent"),
        [
            (b"Content-Length:", b"Content-Length: 1\r\nContent-Length:"),
            (b"Content-Length:", b"Transfer-Encoding: chunked\r\nContent-Length:"),
            (b"Content-Length:", b"Content-Length :"),
            (b"Content-Length: ", b"Content-Length: +"),
            (b"Host: x\r\n", b"Host: x\r\nHost: y\r\n"),
            (b"Host: x\r\n", b""),
            (b"Host: x\r\n", b"Host: x\n"),
        ],
        ids=["two lengths", "length and chunks", "space", "sign", "two hosts", "no host", "line feed"],
    )
    async def test_request_with_unclear_framing_is_invalid_not_refused(
        self, small: Api, dba: Connection, found: bytes, sent: bytes
    ) -> None:
        async with overloaded(small, dba), line(small) as further:
            assert (await further.ask(POST)).status_code == 503
            for following in (b"", POST):
                async with line(small) as invalid:
                    answer = await invalid.ask(POST.replace(found, sent) + following)
                    assert codes_of(answer) == (400, [("malformed", None)])
                    assert await invalid.rest() == b"", "the connection is closed, and what follows is no request"
            assert await metric(small, 'tocsin_requests_refused_total{reason="overload"}') == 1

    async def test_parts_of_requests_of_several_connections_are_not_mixed(self, small: Api, dba: Connection) -> None:
        async with overloaded(small, dba), line(small) as whole, line(small) as first, line(small) as second:
            assert (await whole.ask(POST)).status_code == 503
            for cut in range(1, len(POST), 150):
                for each in (first, second):
                    each.writer.write(POST[:cut])
                    assert (await whole.ask(POST)).status_code == 503
                for each in (first, second):
                    each.writer.write(POST[cut:])
                    assert (await each.answer()).status_code == 503
            count = 1 + 4 * len(range(1, len(POST), 150))
            assert await metric(small, 'tocsin_requests_refused_total{reason="overload"}') == count

    async def test_skipped_body_is_not_read_as_a_request(self, small: Api, dba: Connection) -> None:
        hidden = request_to("POST", "/events", SERVICE, (HEALTH * 2).decode())
        async with overloaded(small, dba), line(small) as further:
            assert (await further.ask(POST)).status_code == 503
            for cut in (len(hidden), hidden.index(b"\r\n\r\n") + 4, len(hidden) - len(HEALTH)):
                further.writer.write(hidden[:cut])
                await small.call("GET", "/healthz")  # the first part was read before
                further.writer.write(hidden[cut:])
                assert (await further.answer()).status_code == 503
                assert (await further.ask(request_to("GET", "/nothing", SERVICE))).status_code == 404


class TestSlots:
    """Only requests that are being processed have a slot."""

    async def test_incomplete_bodies_and_open_streams_and_waits_have_no_slot(self, idle: Api) -> None:
        await idle.people(1)
        used = idle.app_state.capacity
        user = mint_user(SECRET, 1, HOUR)
        answer = await idle.as_service("POST", "/events", json=custom(1))
        waiting = request_to("GET", f"/events/{answer.json()['id']}?wait=30", SERVICE)
        stream = request_to("GET", "/notifications/stream", user)
        async with contextlib.AsyncExitStack() as stack:
            for request_ in [POST[:-5]] * 100 + [waiting] * 30 + [stream] * 8:
                each = await stack.enter_async_context(line(idle))
                each.writer.write(request_)
            await until(lambda: idle.app_state.streams.count == 8)
            await until(lambda: used.in_use == used.waiting == 0)
            assert (await idle.as_user(1, "GET", "/notifications")).status_code == 200
            assert (await idle.as_service("POST", "/events", json=custom(1))).status_code == 202
        await until(lambda: used.in_use == used.waiting == 0)

    async def test_client_that_reads_nothing_has_no_slot(self, idle: Api) -> None:
        used = idle.app_state.capacity
        large = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(40):
                each = await stack.enter_async_context(line(idle))
                each.writer.transport.pause_reading()  # type: ignore[attr-defined]
                each.writer.write(large * 4)
            await until(lambda: used.in_use == used.waiting == 0)
            assert (await exchanged(port_of(idle), large.replace(b"x\r\n", b"x\r\nConnection: close\r\n"))).is_success

    async def test_request_of_a_client_that_left_the_queue_is_not_processed(self, small: Api, dba: Connection) -> None:
        async with overloaded(small, dba):
            pass
        stored = await events_in(dba)
        async with dba.transaction():
            await dba.execute("lock table events in exclusive mode")
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(IN_USE + SLOTS):
                    (await stack.enter_async_context(line(small))).writer.write(POST)
                await until(lambda: small.app_state.capacity.waiting == SLOTS)
        await until(lambda: small.app_state.capacity.in_use == small.app_state.capacity.waiting == 0)
        assert await events_in(dba) <= stored + IN_USE


ASKED = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def refusing(
    app: ASGIApp, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[str, int]]:
    """Serve an application without a database on these connections, which refuses `ASKED`."""
    monkeypatch.setattr(capacity, "MAX_BURST", 0)
    KIND.set(kind := "GET /")
    used = capacity.Capacity(Metrics(), size=1)
    assert used.enter_at_once(kind)
    waiting = asyncio.create_task(used.enter(kind))
    await until(lambda: used.waiting == 1)
    used.refuse(kind)
    server = Server(app, connections=connections, capacity=used)
    with bound("127.0.0.1", 0, "TOCSIN_PORT") as taken:
        running = asyncio.create_task(server._serve([taken]))  # noqa: SLF001 - serve() would install signal handlers
        await server.ready.wait()
        try:
            yield taken.getsockname()
        finally:
            server.should_exit = True
            await running
            waiting.cancel()
            await asyncio.wait([waiting])


async def test_refusals_have_the_time_and_an_id_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they have in common is made once."""
    answers = list[httpx.Response]()
    async with refusing(Response(), Connections(10), monkeypatch) as address, line_to(address) as asking:

        async def is_another_second() -> bool:
            answers.append(await asking.ask(ASKED))
            return answers[0].headers["date"] != answers[-1].headers["date"]

        await until(is_another_second)
    assert {answer.status_code for answer in answers} == {503}
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


@pytest.mark.parametrize("rest", [b"XX", b"XXXX", b"\r\nXX"])
async def test_bytes_after_a_request_are_never_taken_for_a_part_of_it(
    monkeypatch: pytest.MonkeyPatch, rest: bytes
) -> None:
    """Parsers skip line feeds between requests, so that a request may be followed by some, but not by other bytes."""
    async with refusing(Response(), Connections(10), monkeypatch) as address, line_to(address) as asking:
        assert (await asking.ask(ASKED)).status_code == 503
        for more in (b"\r\n", b"\r\n\r\n"):
            assert (await asking.ask(ASKED + more)).status_code == 503
        assert (await asking.ask(ASKED + rest)).status_code == 503
        assert (await asking.answer()).status_code == 400
        assert await asking.rest() == b""


async def test_body_is_as_long_as_its_head_says_whatever_was_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    long, short = (ASKED[:-2] + b"Content-Length: %d\r\n\r\n" % length for length in (4, 2))
    async with refusing(Response(), Connections(10), monkeypatch) as address, line_to(address) as asking:
        for request_ in (long + b"GET ", long + b"\r\n\r\n", short + b"..", short + b"\r\n") * 2:
            assert (await asking.ask(request_)).status_code == 503
        asking.writer.write(long + b"..")
        assert (await asking.ask(b"..")).status_code == 503
        asking.writer.write(short + b".." + long + b"....")
        assert [(await asking.answer()).status_code for _ in range(2)] == [503, 503]
        assert (await asking.ask(short + b".." + b"..")).status_code == 503
        assert (await asking.answer()).status_code == 400


async def test_remembered_heads_of_requests_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tocsin.api.refusing.MAX_HEADS", 10)
    used = capacity.Capacity(Metrics(), size=0)
    used.refuse("GET /")
    refusals = Refusing(used)
    heads = [ASKED[:-2] + b"X: %s\r\n\r\n" % (b"x" * length) for length in (*range(100), MAX_HEAD_BYTES)]
    assert all(refusals.refuses(head) for head in heads * 2)
    assert 0 < len(refusals._kinds) <= 10  # noqa: SLF001 - nothing else shows the memory
    assert not any(len(head) > MAX_HEAD_BYTES for head, _ in refusals._kinds)  # noqa: SLF001


async def test_refusal_is_sent_even_if_the_server_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = Connections(10)
    async with refusing(Response(), connections, monkeypatch) as address, line_to(address) as asking:
        assert (await asking.ask(ASKED)).status_code == 503
        [connection] = connections._open  # noqa: SLF001 - the bytes and the stop must come in one turn
        assert isinstance(connection, Protocol)
        connection.data_received(ASKED)
        connection.shutdown()
        assert (await asking.answer()).status_code == 503
        assert await asking.rest() == b""


async def test_refusal_of_a_closed_connection_costs_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connections = Connections(10)
    async with refusing(Response(), connections, monkeypatch) as address, line_to(address) as asking:
        assert (await asking.ask(ASKED)).status_code == 503
        [open_] = connections._open  # noqa: SLF001 - the bytes and the end must come in one turn
        async with line_to(address) as closed:
            assert (await closed.ask(ASKED)).status_code == 503
            [ending] = connections._open - {open_}  # noqa: SLF001
            for each in (ending, open_):
                assert isinstance(each, Protocol)
                each.data_received(ASKED)
            ending.give_way()
            with contextlib.suppress(ConnectionResetError):
                assert await closed.rest() == b""
        assert (await asking.answer()).status_code == 503
        assert (await asking.ask(ASKED)).status_code == 503


async def test_connection_beyond_the_limit_is_closed_while_requests_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    working, done = asyncio.Event(), asyncio.Event()

    async def work(scope: Scope, receive: Receive, send: Send) -> None:
        working.set()
        await done.wait()
        await Response()(scope, receive, send)

    async with refusing(work, Connections(1, reserve=1), monkeypatch) as address, line_to(address) as first:
        asked = asyncio.create_task(first.ask(ASKED.replace(b"GET", b"PUT")))
        await working.wait()
        async with line_to(address) as further:
            answer = await further.ask(ASKED)
            assert answer.status_code == 503
            assert "connections" in answer.text
            assert answer.headers["connection"] == "close"
            assert await further.rest() == b""
        done.set()
        assert (await asked).status_code == 200


def test_full_garbage_collections_are_rare_after_the_start() -> None:
    """Each stops the process, and takes as long as all connections and waiting requests have objects."""
    thresholds = gc.get_threshold()
    try:
        serve._freeze()  # noqa: SLF001 - runs once, when everything is loaded
        before = [each["collections"] for each in gc.get_stats()]
        objects, collections, _ = gc.get_threshold()
        kept = [[0] for _ in range(15 * objects * collections)]
        _, young, full = (each["collections"] - then for each, then in zip(gc.get_stats(), before, strict=True))
        assert kept
        assert young > 10
        assert full == 0
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


async def test_steps_that_are_due_together_leave_turns_for_others() -> None:
    pace, done, turns = Pace(3), list[int](), list[int]()
    pace.add(*(lambda number=number: done.append(number) for number in range(10)))
    while len(done) < 10:
        turns.append(len(done))
        await asyncio.sleep(0)
    assert done == list(range(10))
    assert all(later - earlier <= 3 for earlier, later in itertools.pairwise(turns))
    assert len(turns) >= 4
