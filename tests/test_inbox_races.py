"""Property tests: an inbox stays consistent while two clients, each with its own connection, use it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise, zip_longest
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.database import blocked, url_for, wipe
from tests.support.inboxes import MARKS, Follower, Step, counts, listed, own_id, read_times, step, whiches
from tests.support.properties import at_most
from tests.support.service import Api
from tests.support.streams import Watch, watching
from tests.support.waiting import until
from tocsin.db.connections import Connection
from tocsin.invariants import check_rows, open_session
from tocsin.postgres.supervisor import Embedded

LAST = 99
"""The number of an event that is posted when all others have arrived."""

RACING = st.one_of(
    step("mark", which=whiches, what=st.sampled_from(list(MARKS))),
    step("read_all", which=st.none() | whiches),
    step("read_some", some=st.lists(whiches, min_size=1, max_size=4)),
    step("arrive", which=st.integers(6, 11)),
    step("look", query=st.sampled_from(["", "&show=unread"])),
    step("walk", query=st.sampled_from(["", "&show=unread"]), per_page=st.integers(1, 4)),
)
races = st.lists(st.none() | RACING, min_size=14, max_size=14).map(lambda some: [each for each in some if each])


class Client:
    """A client of the inbox of user 1. `done` has what succeeded, `deleting` what both tried to delete."""

    def __init__(self, api: Api, deleting: set[str]) -> None:
        self.api, self.deleting = api, deleting
        self.done: dict[str, set[str]] = {"read": set(), "unread": set(), "deleted": set(), "arrived": set()}

    async def run(self, steps: Sequence[Step]) -> None:
        for name, given_ in steps:
            await getattr(self, name)(**given_)

    async def perform(self, method: str, path: str, **more: Any) -> bool:
        answer = await self.api.as_user(1, method, f"/notifications{path}", **more)
        assert answer.status_code in {204, 404, 410, 422}, answer.text
        return answer.status_code == 204

    async def mark(self, which: int, what: str) -> None:
        method, path = MARKS[what]
        if what == "deleted":
            self.deleting.add(own_id(which))
        if await self.perform(method, f"/{own_id(which)}{path}"):
            self.done[what].add(own_id(which))

    async def read_all(self, which: int | None) -> None:
        await self.perform("PUT", "/read", **({} if which is None else {"json": {"up_to": own_id(which)}}))

    async def read_some(self, some: list[int]) -> None:
        assert await self.perform("PUT", "/read", json={"ids": [own_id(which) for which in some]})

    async def arrive(self, which: int) -> None:
        event = {"type": "custom", "notify": {"users": [1]}, "params": {"body": "x"}, "id": own_id(which)}
        answer = await self.api.as_service("POST", "/events", json=event)
        assert answer.status_code == 202, answer.text
        self.done["arrived"].add(own_id(which))

    async def look(self, query: str) -> list[str]:
        """Fetch all on one page, whose counts are those of its rows; return the ids."""
        page = await self.api.inbox(1, f"?per_page=100{query}")
        unread = sum(not entry["read"] for entry in page["data"])
        assert counts(page) == (len(page["data"]), unread)
        assert unread == len(page["data"]) or not query
        assert all(newer["created_at"] >= older["created_at"] for newer, older in pairwise(page["data"]))
        return ids_of(page)

    async def walk(self, query: str, per_page: int) -> None:
        """Follow the cursors to the end: nothing is shown twice, and nothing that stays is skipped."""
        there = await self.look("")
        path: str | None = f"/notifications?per_page={per_page}{query}"
        seen: list[str] = []
        while path:
            page = (await self.api.as_user(1, "GET", path)).json()
            seen += ids_of(page)
            path = page["pagination"]["urls"]["next"]
        assert len(set(seen)) == len(seen)
        assert [id_ for id_ in there if id_ in seen] == [id_ for id_ in seen if id_ in there]
        assert query or set(there) - self.deleting <= set(seen)


def ids_of(page: dict[str, Any]) -> list[str]:
    return [entry["id"] for entry in page["data"]]


@asynccontextmanager
async def session(server: Embedded) -> AsyncIterator[Connection]:
    connection = await open_session(url_for(server, "busy"), may_write=True)
    yield connection
    await connection.close()


@asynccontextmanager
async def two_clients(api: Api) -> AsyncIterator[tuple[Client, Client]]:
    deleting = set[str]()
    async with (
        httpx.AsyncClient(base_url=api.http.base_url, timeout=60) as one,
        httpx.AsyncClient(base_url=api.http.base_url, timeout=60) as other,
    ):
        yield Client(replace(api, http=one), deleting), Client(replace(api, http=other), deleting)


async def together(dba: Connection, steps: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run steps so that those which change the inbox meet: it is locked until each of them waits or has ended."""
    async with dba.transaction():
        await dba.execute("select from heads where user_id = 1 for update")
        running = [asyncio.create_task(step) for step in steps]
        while sum(not each.done() for each in running) > await blocked(dba):
            await asyncio.sleep(0.001)
    await asyncio.gather(*running)


async def follow_until(follower: Follower, end: asyncio.Event) -> None:
    while not end.is_set():
        await follower.follow()


async def race(
    dba: Connection, clients: tuple[Client, Client], follower: Follower, steps: tuple[list[Step], list[Step]]
) -> None:
    """Run the steps of both in pairs, with a follower, until all posted events are delivered."""
    end = asyncio.Event()
    following = asyncio.create_task(follow_until(follower, end))
    try:
        for pair in zip_longest(*steps):
            await together(dba, [client.run([each]) for client, each in zip(clients, pair, strict=True) if each])
    finally:
        end.set()
        await following
    await delivered(clients[0].api, clients[0].done["arrived"] | clients[1].done["arrived"])
    await clients[0].arrive(LAST)
    await delivered(clients[0].api, {own_id(LAST)})


async def delivered(api: Api, ids: set[str]) -> None:
    for id_ in ids:
        assert (await api.as_service("GET", f"/events/{id_}?wait=30")).json()["state"] == "delivered"


async def replayed(api: Api, watch: Watch) -> list[tuple[str, bool]]:
    """Return the inbox as a stream shows it, once it has the last event."""
    await until(lambda: own_id(LAST) in [entry["id"] for entry in watch.names("notification")])
    seen = Follower(api, 1, "")
    for event, data in watch.received:
        assert event != "resync"
        if event != "count":
            seen.apply(event, data)
    return seen.listed()


async def violations(dba: Connection) -> list[str]:
    """Return what is wrong in the database: counts, positions, times, owners, and rows about nothing."""
    return [str(violation) async for violation in check_rows(dba) if violation]


@pytest.mark.slow
@at_most(12, soak=500)
@given(read=st.sets(st.integers(0, 5)), steps=st.tuples(races, races))
async def test_concurrent_operations_keep_the_inbox_consistent(
    busy_service: Api, server: Embedded, read: set[int], steps: tuple[list[Step], list[Step]]
) -> None:
    """Nothing is lost or doubled, and the list, the changes and the stream agree."""
    await wipe(url_for(server, "busy"))
    busy_service.app_state.limits._windows.clear()  # noqa: SLF001 - the follower asks more often than a user may
    await busy_service.people(1)
    follower = await Follower.of(busy_service, 1)
    start = follower.cursor
    async with session(server) as dba, two_clients(busy_service) as clients, watching(busy_service, 1) as watch:
        first, second = clients
        await first.run([("arrive", {"which": which}) for which in range(6)])
        await busy_service.as_service("GET", f"/events/{own_id(5)}?wait=30")
        await first.run([("mark", {"which": which, "what": "read"}) for which in sorted(read)])
        before = await read_times(busy_service, 1)
        await race(dba, clients, follower, steps)
        found = await listed(busy_service, 1)
        assert await replayed(busy_service, watch) == found
        assert await violations(dba) == []
    for each in (follower, Follower(busy_service, 1, start)):
        assert await each.follow() == sum(not read for _, read in found)
        assert each.listed() == found
    arrived, deleted, unread = (first.done[what] | second.done[what] for what in ("arrived", "deleted", "unread"))
    assert len(found) == len(arrived - deleted)
    assert {id_ for id_, _ in found} == arrived - deleted
    after = await read_times(busy_service, 1)
    assert {id_: after.get(id_) for id_ in before.keys() - deleted - unread} == {
        id_: at for id_, at in before.items() if id_ not in deleted | unread
    }
