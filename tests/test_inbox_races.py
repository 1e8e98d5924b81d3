"""Property tests: the inbox stays consistent while clients change it at the same time."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.database import url_for, wipe
from tests.support.inboxes import MARKS, Follower, Step, listed, own_id, read_times, step, whiches
from tests.support.properties import at_most
from tests.support.service import Api
from tocsin.postgres.supervisor import Embedded

RACING = st.one_of(
    step("mark", which=whiches, what=st.sampled_from(list(MARKS))),
    step("read_all", which=st.none() | whiches),
    step("read_some", some=st.lists(whiches, min_size=1, max_size=4)),
    step("arrive", which=st.integers(6, 11)),
)
races = st.lists(st.none() | RACING, min_size=12, max_size=12).map(lambda some: [each for each in some if each])


class Client:
    """One of the concurrent clients of the inbox of user 1; records the results of its requests."""

    def __init__(self, api: Api) -> None:
        self.api = api
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


async def follow_until(follower: Follower, end: asyncio.Event) -> None:
    while not end.is_set():
        await follower.follow()


async def race(first: Client, second: Client, follower: Follower, steps: tuple[list[Step], list[Step]]) -> None:
    """Run the steps of both concurrently, with a follower, until all posted events are delivered."""
    end = asyncio.Event()
    following = asyncio.create_task(follow_until(follower, end))
    try:
        await asyncio.gather(first.run(steps[0]), second.run(steps[1]))
    finally:
        end.set()
        await following
    for id_ in first.done["arrived"] | second.done["arrived"]:
        answer = await first.api.as_service("GET", f"/events/{id_}?wait=30")
        assert answer.json()["state"] == "delivered"


@pytest.mark.slow
@at_most(20, soak=300)
@given(read=st.sets(st.integers(0, 5)), steps=st.tuples(races, races))
async def test_concurrent_operations_keep_the_inbox_consistent(
    busy_service: Api, server: Embedded, read: set[int], steps: tuple[list[Step], list[Step]]
) -> None:
    await wipe(url_for(server, "busy"))
    await busy_service.people(1)
    follower = await Follower.of(busy_service, 1)
    start = follower.cursor
    first, second = Client(busy_service), Client(busy_service)
    await first.run([("arrive", {"which": which}) for which in range(6)])
    await busy_service.as_service("GET", f"/events/{own_id(5)}?wait=30")
    await first.run([("mark", {"which": which, "what": "read"}) for which in sorted(read)])
    before = await read_times(busy_service, 1)
    await race(first, second, follower, steps)
    found = await listed(busy_service, 1)
    for each in (follower, Follower(busy_service, 1, start)):
        assert await each.follow() == sum(not read for _, read in found)
        assert each.listed() == found
    arrived, deleted, unread = (first.done[what] | second.done[what] for what in ("arrived", "deleted", "unread"))
    assert {id_ for id_, _ in found} == arrived - deleted
    after = await read_times(busy_service, 1)
    assert {id_: after.get(id_) for id_ in before.keys() - deleted - unread} == {
        id_: at for id_, at in before.items() if id_ not in deleted | unread
    }
