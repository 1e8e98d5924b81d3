"""The live stream: complete, ordered and private, also across reconnects, restarts and processes."""

import asyncio
import contextlib
import re
import selectors
import socket
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.answers import UNKNOWN, mine
from tests.support.database import url_for, wipe
from tests.support.events import custom, note
from tests.support.properties import at_most
from tests.support.service import HOUR, SECRET, Api, at_rest, serving
from tests.support.streams import watching
from tests.support.waiting import bounded, reaches, until
from tocsin import inbox, retention, streams
from tocsin.api import stream
from tocsin.api.middleware import ABORT
from tocsin.api.stream import StreamResponse
from tocsin.auth.minting import mint_service, mint_user
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.inbox import Entry, InboxChanges
from tocsin.open_streams import MAX_STREAMS_PER_USER
from tocsin.postgres.supervisor import Embedded
from tocsin.streams import COMMENT, Stream, Streams


async def test_stream_sends_inbox_changes_in_order(api: Api) -> None:
    await api.people(1, 2, 4)
    before = await api.post(custom(1))
    async with watching(api) as watch:
        assert watch.received == [("count", {"unread": 1})]
        id_ = await api.post(note(1))
        [shown] = await watch.until_received("notification")
        assert shown == (await api.inbox(1))["data"][0]
        await mine(api, "PUT", f"/{id_}/read")
        await mine(api, "PUT", f"/{id_}/unread")
        await mine(api, "PUT", "/read", json={"ids": [id_, before]})
        await mine(api, "DELETE", f"/{id_}")
        await watch.until_received("deleted")
        ids = next(data["ids"] for event, data in watch.received if event == "read" and "ids" in data)
        assert sorted(ids) == sorted([id_, before])
        await api.post(custom(1))
        await mine(api, "PUT", "/read")
        await watch.until_received("read", 3)
        assert [event for event, _ in watch.received if event != "count"] == [
            "notification",
            "read",
            "unread",
            "read",
            "deleted",
            "notification",
            "read",
        ]
        assert watch.names("read")[-1]["all"] is True
        await reaches(lambda: watch.names("count")[-1], {"unread": 0})


async def test_response_begins_with_the_first_event_so_that_nothing_is_missed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.people(1, 2)
    is_asked, may_look = asyncio.Event(), asyncio.Event()
    look = inbox.changes_since

    async def late(database: Database, since: Mapping[int, int]) -> Mapping[int, InboxChanges]:
        is_asked.set()
        await may_look.wait()
        return await look(database, since)

    monkeypatch.setattr(inbox, "changes_since", late)
    headers = {"Authorization": f"Bearer {mint_user(SECRET, 1, HOUR)}"}
    async with httpx.AsyncClient(base_url=api.http.base_url, timeout=60) as http, bounded():
        request = http.build_request("GET", "/notifications/stream", headers=headers)
        answering = asyncio.create_task(http.send(request, stream=True))
        await is_asked.wait()
        await api.http.get("/healthz")  # what the stream had sent before would have arrived
        assert not answering.done()
        may_look.set()
        answer = await answering
        assert (await anext(answer.aiter_text())).startswith("id: ")
        await answer.aclose()


def test_count_follows_each_group_of_changes_even_if_it_is_unchanged() -> None:
    reader, now = Stream(1, time.time() + 100), datetime.now(UTC)
    reader.take(InboxChanges(made=1, at=1, unread=3, forgotten=0, made_at=now))
    both = [Entry(2, "deleted", '{"id":"x"}'), Entry(3, "notification", "{}")]
    reader.take(InboxChanges(made=1, at=3, unread=3, forgotten=0, made_at=now, entries=both))
    reader.take(InboxChanges(made=1, at=3, unread=3, forgotten=0, made_at=now, entries=both))  # which it knows
    sent: list[bytes] = []

    async def send(lines: bytes) -> None:
        sent.append(lines)

    reader.close()
    asyncio.run(reader.run(send))
    assert re.findall(r"event: (\w+)", b"".join(sent).decode()) == ["count", "deleted", "notification", "count"]


async def test_stream_resumes_without_loss_or_duplicates(api: Api) -> None:
    await api.people(1, 2)
    ids, seen = [], []
    mark: str | None = None
    for _ in range(4):
        async with watching(api, mark=mark) as watch:
            ids += [await api.post(custom(1)) for _ in range(3)]
            await watch.until_received("notification", 3 if mark is None else 5)
            mark = watch.mark
            seen += [data["id"] for data in watch.names("notification")]
        ids += [await api.post(custom(1)) for _ in range(2)]
    async with watching(api, mark=mark) as watch:
        await watch.until_received("notification", 2)
        seen += [data["id"] for data in watch.names("notification")]
    assert seen == ids


async def test_stream_resumes_from_any_event(api: Api) -> None:
    await api.people(1, 2)
    async with watching(api) as watch:
        ids = [await api.post(custom(1)) for _ in range(3)]
        await watch.until_received("notification", 3)
        marks = [event.id for event in watch.events if event.event == "notification"]
    assert len(set(marks)) == 3
    for position, mark in enumerate(marks):
        async with watching(api, mark=mark) as again:
            await again.until_received("count")
            found = await again.until_received("notification", 2 - position)
            assert [data["id"] for data in found] == ids[position + 1 :]
            assert again.received[0] == ("count", {"unread": 3})


@pytest.mark.parametrize("mark", ["", "x", "0-0", "ffffffffff-3", "5-99999999", "1-1; drop"])
async def test_stream_with_unknown_last_event_id_sends_resync(api: Api, mark: str) -> None:
    await api.people(1, 2)
    await api.post(custom(1))
    async with watching(api, mark=mark or None) as watch:
        if mark:
            assert await watch.until_received("resync") == [{}]
            assert watch.received == [("count", {"unread": 1}), ("resync", {})]
            async with watching(api, mark=watch.mark) as again:  # which resumes here
                id_ = await api.post(custom(1))
                [shown] = await again.until_received("notification")
                assert (shown["id"], again.names("resync")) == (id_, [])
        else:
            assert watch.received == [("count", {"unread": 1})]


async def test_stream_sends_resync_after_too_many_changes(api: Api) -> None:
    await api.people(1, 2)
    async with watching(api) as watch:
        mark = watch.mark
    for _ in range(2):
        await api.as_service("POST", "/events/batch", json={"events": [custom(1)] * 300})
    await api.post(custom(1))
    await at_rest(api)
    async with watching(api, mark=mark) as watch:
        await watch.until_received("resync")
        assert watch.names("notification") == []
        assert watch.names("count")[-1] == {"unread": 601}


async def test_slow_resume_does_not_disturb_other_streams_of_the_user(api: Api) -> None:
    await api.people(1, 2)
    async with watching(api) as watch:
        far = watch.mark
    for _ in range(2):
        await api.as_service("POST", "/events/batch", json={"events": [custom(1)] * 300})
    await at_rest(api)
    async with watching(api) as up_to_date:
        for mark in (far, "0-0"):
            async with watching(api, mark=mark) as away:
                await away.until_received("resync")
        id_ = await api.post(custom(1))
        [shown] = await up_to_date.until_received("notification")
        assert (shown["id"], up_to_date.names("resync")) == (id_, [])


async def test_stream_resumes_before_an_incomplete_transaction(api: Api) -> None:
    await api.people(1, 2)
    ids = [await api.post({**custom(1), "about": ["order:1"]}) for _ in range(2)]
    async with watching(api) as watch:
        await api.as_service("POST", "/events/resolve", json={"about": "order:1", "as": "erased"})
        await watch.until_received("notification", 2)
        half = next(event.id for event in watch.events if event.event == "notification")
    async with watching(api, mark=half) as again:
        assert [shown["id"] for shown in await again.until_received("notification", 2)] == ids
    async with watching(api, mark=watch.mark) as again:
        assert again.names("notification") == []


async def test_stream_reader_that_stalls_is_disconnected(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STALL_TIMEOUT", 0.5)
    monkeypatch.setattr(streams, "KEEPALIVE_INTERVAL", 0.1)
    await api.people(1, 2, 4)
    token = mint_user(SECRET, 1, HOUR)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((api.http.base_url.host, api.http.base_url.port))
        slow.sendall(f"GET /notifications/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        await until(lambda: api.app_state.streams.count)
        event = note(1)
        long = {"events": [{**event, "params": {**event["params"], "body": "x" * 9_000}}] * 10}
        async with bounded():
            while api.app_state.streams.count:
                await api.as_service("POST", "/events/batch", json=long)
                await at_rest(api)
        slow.settimeout(5)
        taken = b""
        while part := slow.recv(2**16):
            taken += part
        assert taken.startswith(b"HTTP/1.1 200 ")
        assert not taken.endswith(b"0\r\n\r\n")  # which would mark the end


async def test_stream_carries_no_events_of_other_users(api: Api) -> None:
    await api.people(1, 2, 3)
    async with watching(api, 1) as one, watching(api, 2) as two:
        first = await api.post(custom(1))
        second = await api.post(custom(2))
        await api.as_user(3, "PUT", f"/notifications/{first}/read")
        last = await api.post(custom(1, 2))  # a stream is ordered: no earlier event follows
        assert [data["id"] for data in await one.until_received("notification", 2)] == [first, last]
        assert [data["id"] for data in await two.until_received("notification", 2)] == [second, last]
        async with watching(api, 2, mark=one.mark) as foreign:
            await foreign.until_received("resync")
            assert foreign.names("notification") == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("send", "read", "unread", "delete", "read all", "gone")),
        st.sets(st.integers(1, 3), min_size=1),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=12,
)


@at_most(12, soak=200)
@given(steps=STEPS)
async def test_stream_carries_only_notifications_of_its_own_inbox(
    busy_service: Api, server: Embedded, steps: list[tuple[str, set[int], int]]
) -> None:
    api = busy_service
    await wipe(url_for(server, "busy"))
    await api.people(1, 2, 3)
    sent: list[str] = []
    theirs: dict[int, set[str]] = {1: set(), 2: set(), 3: set()}
    async with contextlib.AsyncExitStack() as stack:
        watches = {user: await stack.enter_async_context(watching(api, user)) for user in theirs}
        for what, users, number in steps:
            if what == "send":
                sent.append(await api.post({**custom(*users), "about": [f"order:{len(sent)}"]}))
                for user in users:
                    theirs[user].add(sent[-1])
                continue
            about = sent[number % len(sent)] if sent else UNKNOWN
            calls = {
                "read": ("PUT", f"/{about}/read"),
                "unread": ("PUT", f"/{about}/unread"),
                "delete": ("DELETE", f"/{about}"),
                "read all": ("PUT", "/read"),
            }
            if what == "gone":
                await api.as_service("POST", "/events/resolve", json={"about": f"order:{number}", "as": "gone"})
            for user in users if what in calls else ():
                await api.as_user(user, calls[what][0], f"/notifications{calls[what][1]}")
        await at_rest(api)
        for user, watch in watches.items():
            due = (await api.inbox(user))["pagination"]["unread"]
            await reaches(lambda watch=watch: watch.names("count")[-1]["unread"], due)  # type: ignore[misc]
            await watch.until_received("notification", len(theirs[user]))
            carried = set(re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", "".join(event.data for event in watch.events)))
            assert carried == theirs[user]


async def test_ninth_stream_closes_the_oldest(api: Api) -> None:
    await api.people(1, 2)
    async with contextlib.AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(watching(api)) for _ in range(MAX_STREAMS_PER_USER)]
        other = await stack.enter_async_context(watching(api, 2))
        watches.append(await stack.enter_async_context(watching(api)))
        await watches[0].until_ended()
        assert [watch.ended for watch in [*watches, other]] == [True] + [False] * 9
        assert api.app_state.streams.count == 9
    await reaches(lambda: api.app_state.streams.count, 0)


async def test_ninth_stream_closes_the_oldest_of_another_process(url: str, catalogue: Catalogue) -> None:
    async with (
        serving(url, catalogue, with_worker=False) as one,
        serving(url, catalogue, with_worker=False) as other,
    ):
        await one.people(1, 2)
        async with contextlib.AsyncExitStack() as stack:
            watches = [
                await stack.enter_async_context(watching((one, other)[number % 2]))
                for number in range(MAX_STREAMS_PER_USER + 2)
            ]
            await stack.enter_async_context(watching(one, 2))
            await watches[0].until_ended()
            await watches[1].until_ended()
            assert not any(watch.ended for watch in watches[2:])
            assert one.app_state.streams.count + other.app_state.streams.count == MAX_STREAMS_PER_USER + 1
        await reaches(lambda: one.app_state.database.value("select count(*) from streams"), 0)


async def test_streams_of_a_killed_process_close_no_newer_ones(url: str, catalogue: Catalogue, dba: Connection) -> None:
    await dba.execute(
        "insert into streams (id, user_id, process_id, ends_at)"
        " select gen_random_uuid(), 1, gen_random_uuid(), now() + interval '1 hour' from generate_series(1, 8)"
    )
    async with serving(url, catalogue, with_worker=False) as api, contextlib.AsyncExitStack() as stack:
        await api.people(1)
        watches = [await stack.enter_async_context(watching(api)) for _ in range(MAX_STREAMS_PER_USER)]
        await reaches(lambda: dba.fetchval("select count(*) from streams where not is_over"), MAX_STREAMS_PER_USER)
        ninth = await stack.enter_async_context(watching(api))
        await watches[0].until_ended()
        assert not ninth.ended
        await dba.execute("update streams set ends_at = now() - interval '2 minutes' where is_over")
        assert (await retention.run_once(api.app_state.database, None))["streams"] >= MAX_STREAMS_PER_USER


async def test_stream_ends_when_its_token_expires(api: Api) -> None:
    await api.people(1)
    async with watching(api, lifetime=timedelta(seconds=5)) as watch:
        await watch.until_ended()


async def test_expired_token_within_leeway_opens_no_stream(api: Api) -> None:
    await api.people(1)
    token = mint_user(SECRET, 1, timedelta(seconds=-5))
    assert (await api.call("GET", "/notifications", token)).status_code == 200
    assert (await api.call("GET", "/notifications/stream", token)).status_code == 401


async def test_stream_ends_when_its_user_is_deactivated_or_erased(api: Api) -> None:
    await api.people(1, 2)
    async with watching(api, 1) as one, watching(api, 2) as two:
        user = {"first_name": "A", "last_name": "B", "active": False}
        assert (await api.as_service("PUT", "/directory/users/1", json=user)).status_code == 204
        assert (await api.as_service("DELETE", "/directory/users/2")).status_code == 204
        await one.until_ended()
        await two.until_ended()
    assert (await api.as_user(1, "GET", "/notifications/stream")).status_code == 401


async def test_idle_stream_sends_keepalive_comments(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "KEEPALIVE_INTERVAL", 0.1)
    await api.people(1)
    token = mint_user(SECRET, 1, HOUR)
    async with (
        httpx.AsyncClient(base_url=api.http.base_url, timeout=60) as http,
        http.stream("GET", "/notifications/stream", headers={"Authorization": f"Bearer {token}"}) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        assert "content-length" not in answer.headers
        text = ""
        async with bounded():
            async for part in answer.aiter_text():
                text += part
                if text.count(":\n\n") >= 3:
                    break
        assert text.startswith("id: ")


async def test_stalled_stream_reader_uses_little_memory_and_gets_resync(api: Api) -> None:
    await api.people(1, 2, 4)
    host, port = api.http.base_url.host, api.http.base_url.port
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, port))
        token = mint_user(SECRET, 1, HOUR)
        slow.sendall(f"GET /notifications/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        await until(lambda: api.app_state.streams.count)
        event = note(1)
        long = {"events": [{**event, "params": {**event["params"], "body": "x" * 9_000}}] * 10}
        for _ in range(60):  # more than all buffers hold in total, and each less than the limit
            answer = await api.as_service("POST", "/events/batch", json=long)
            await api.as_service("GET", f"/events/{answer.json()['ids'][-1]}?wait=30")
        [reader] = api.app_state.streams._streams[1]  # noqa: SLF001 - what it holds is seen nowhere else
        await until(lambda: reader.position and any(b"event: resync" in line for line in reader._lines))  # noqa: SLF001
        assert sum(map(len, reader._lines)) <= streams.MAX_BACKLOG_BYTES  # noqa: SLF001


async def test_stream_sends_resolutions(api: Api) -> None:
    await api.people(1, 2, 4)
    async with watching(api) as watch:
        event = {**custom(1), "about": ["order:1"]}
        ids = [await api.post(event), await api.post(event)]
        await api.as_service("POST", "/events/resolve", json={"about": "order:1", "as": "gone"})
        [gone] = await watch.until_received("deleted")
        assert sorted(gone["ids"]) == sorted(ids)


async def test_stream_sends_changes_written_by_another_process(
    api: Api, server: Embedded, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.people(1, 2)
    async with serving(url_for(server, "busy"), catalogue, with_worker=False) as elsewhere:
        ears = asyncio.create_task(elsewhere.app_state.pubsub.receive())
        heard = elsewhere.app_state.pubsub.listen_for("probe")

        def reached() -> bool:
            api.app_state.pubsub.publish("probe")
            return heard.is_set()

        await until(reached)
        monkeypatch.setattr(elsewhere.app_state.streams, "_poll", asyncio.Event().wait)  # without polling
        async with watching(elsewhere) as watch:
            id_ = await api.post(custom(1))
            [shown] = await watch.until_received("notification")
            assert shown["id"] == id_
            await mine(api, "PUT", f"/{id_}/read")
            assert await watch.until_received("read") == [{"id": id_}]
        ears.cancel()


async def test_stream_polls_for_changes_without_notifications(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await api.people(1, 2)
    async with watching(api) as watch:
        monkeypatch.setattr(api.app_state.pubsub, "publish_changes", lambda _: None)
        id_ = await api.post(custom(1))
        [shown] = await watch.until_received("notification")
        assert shown["id"] == id_


async def test_stream_requires_a_user_token(api: Api) -> None:
    await api.people(1)
    assert (await api.call("GET", "/notifications/stream")).status_code == 401
    assert (await api.call("POST", "/notifications/stream", mint_user(SECRET, 1, HOUR))).status_code == 405
    crm = mint_service(SECRET, "crm", ["events:write"], HOUR)
    assert (await api.call("GET", "/notifications/stream", crm)).status_code == 403


class _Impatient(selectors.DefaultSelector):
    def __init__(self, loop: "Hurried") -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found and timeout:
            self._loop.skipped += timeout
        return found


class Hurried(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps over all waits."""

    def __init__(self) -> None:
        super().__init__(_Impatient(self))
        self.skipped = 0.0

    def time(self) -> float:
        return super().time() + self.skipped


class _Quiet(Streams):
    """Streams of inboxes without changes."""

    def changed(self, user_ids: Collection[int] | None) -> None:
        """Ignore changes."""


def hurried(work: Callable[[Hurried], Coroutine[Any, Any, None]]) -> None:
    loop = Hurried()
    try:
        loop.run_until_complete(work(loop))
    finally:
        loop.close()


def test_stream_sends_keepalive_every_15_seconds() -> None:
    async def watched(loop: Hurried) -> None:
        began, sent = loop.time(), []

        async def send(lines: bytes) -> None:
            sent.append((lines, round(loop.time() - began)))
            if len(sent) == 4:
                reader.close()

        reader = Stream(1, time.time() + 10**6)
        await reader.run(send)
        assert sent == [(COMMENT, 15), (COMMENT, 30), (COMMENT, 45), (COMMENT, 60)]

    hurried(watched)


def test_stream_reader_that_stalls_30_seconds_is_disconnected() -> None:
    async def stalled(loop: Hurried) -> None:
        began, hung_up = loop.time(), []
        gone = asyncio.Event()

        async def receive() -> dict[str, str]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        def hang_up() -> None:
            hung_up.append(round(loop.time() - began))
            gone.set()

        reader = Stream(1, time.time() + 10**6)
        reader.made = reader.position = 1
        scope: Any = {"type": "http", "state": {}, ABORT: hang_up}
        without_record = _Quiet(Database("", 1))  # a pool that is not open
        await StreamResponse(without_record, reader)(scope, receive, send)
        await without_record.finish()
        assert hung_up == [45]  # fifteen seconds of silence, and thirty in which the comment was not taken

    hurried(stalled)
