"""Events to single users, posted on schedule regardless of earlier ones, each polled until it is visible."""

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from bench.measure import percentile
from bench.service import Client, Service, clients
from tocsin.catalogue import Catalogue

EVERY = 0.01
"""Seconds between two events."""

LOOK = 0.001
"""Seconds between two polls: without a pause, the polls themselves would be the load."""

LONGEST = 10.0
"""Seconds after which an event counts as lost."""

AT_ONCE = 64
"""Maximum events in flight."""


class Recipient(NamedTuple):
    """The requests that post an event to a user, and that look for it."""

    post: bytes
    look: bytes


class Lines(NamedTuple):
    """A connection for the back end and one for the recipient."""

    back_end: Client
    recipient: Client


class Followed(NamedTuple):
    """An event, and when it was sent, accepted and seen, in UNIX seconds."""

    id: str
    sent: float
    accepted: float
    seen: float


class Flow:
    """Posts events to users in turn."""

    def __init__(self, recipients: Sequence[Recipient], free: Sequence[Lines]) -> None:
        self._turns = itertools.cycle(recipients)
        self._free = deque(free)

    async def of(self, count: int) -> Sequence[Followed]:
        """Post so many events at their times, whatever became of those before."""
        began = time.perf_counter()
        under_way = []
        for number in range(count):
            await asyncio.sleep(began + number * EVERY - time.perf_counter())
            under_way.append(asyncio.create_task(self._follow(next(self._turns))))
        return await asyncio.gather(*under_way)

    async def _follow(self, recipient: Recipient) -> Followed:
        """Post an event, and look for it from its 202 on until it is there.

        Connections are taken in turn, for the service closes one that is idle for seconds.
        """
        if not self._free:
            raise RuntimeError(f"{AT_ONCE} events are under way: the service does not keep up")
        lines = self._free.popleft()
        sent = time.time()
        answer = json.loads(await lines.back_end.ask(recipient.post, b"202"))
        accepted = time.time()
        shown = f'"data":[{{"id":"{answer["id"]}"'.encode()
        while shown not in await lines.recipient.ask(recipient.look):
            if time.time() - sent > LONGEST:
                raise RuntimeError(f"the event {answer['id']} did not become visible")
            await asyncio.sleep(LOOK)
        seen = time.time()
        self._free.append(lines)
        return Followed(answer["id"], sent, accepted, seen)


@asynccontextmanager
async def flow(running: Service, people: range) -> AsyncIterator[Flow]:
    """Provide a flow of events to these users."""
    event = Catalogue.load().samples["note"]["event"]
    recipients = [
        Recipient(
            running.post({**event, "notify": {"users": [user]}}), running.get("/notifications?per_page=1", user=user)
        )
        for user in people
    ]
    async with AsyncExitStack() as stack:
        back_ends = await stack.enter_async_context(clients(running, AT_ONCE))
        users = await stack.enter_async_context(clients(running, AT_ONCE))
        yield Flow(recipients, [Lines(*pair) for pair in zip(back_ends, users, strict=True)])


def percentiles(spans: dict[str, Sequence[float]]) -> dict[str, float]:
    """Return the median and the 99th percentile of each, in ms, as `<name> p50` and `<name> p99`."""
    return {f"{name} p{part}": percentile(values, part) * 1000 for name, values in spans.items() for part in (50, 99)}
