"""Admission to a connection pool: a kind of work that hangs must not occupy all connections."""

import asyncio
import itertools
import time
from contextvars import ContextVar
from math import inf

KIND: ContextVar[str] = ContextVar("KIND", default="")
"""The kind of the current work, such as `GET /notifications`. Each kind has a queue."""

HEARTBEAT = "heartbeat"
"""The kind of heartbeats, for which a pool can reserve a slot: without them, a worker loses its leases."""

STALLED = 1.0
"""Seconds after which the kind of an occupied slot is assumed to hang, usually at a lock: it gets fewer slots."""


class Full(TimeoutError):  # noqa: N818 - a fact about a pool
    """No slot was free in time."""


Slot = tuple[str, int]
"""An occupied slot: the kind of work and a unique number."""


class Admission:
    """Assigns `size` slots. A kind gets at most three quarters of them, so that some are left for other kinds.

    A kind whose oldest slot was occupied for `STALLED` seconds gets at most a third of the slots. With `beats`, one
    slot is reserved for heartbeats.
    """

    def __init__(self, size: int, *, beats: bool = False) -> None:
        self.size = self._free = size
        self._kept = int(beats)
        self._most = size - size // 4
        self._few = max(1, size // 3)
        self._slots: dict[str, dict[int, float]] = {}
        self._waiting: dict[str, dict[asyncio.Future[Slot], float]] = {}
        self._numbers = itertools.count()

    @property
    def in_use(self) -> int:
        """The number of occupied slots."""
        return sum(map(len, self._slots.values()))

    @property
    def waiting(self) -> int:
        """The number of callers that wait for a slot."""
        return sum(map(len, self._waiting.values()))

    @property
    def is_awaited(self) -> bool:
        """Whether callers wait for a slot."""
        return bool(self._waiting)

    def queue_of(self, kind: str) -> tuple[int, float]:
        """Return how many callers of a kind wait, and since when the first of them does; never if none waits."""
        waiting = self._waiting.get(kind)
        return (len(waiting), next(iter(waiting.values()))) if waiting else (0, inf)

    def enter_at_once(self, kind: str) -> Slot | None:
        """Occupy a slot for a kind of work; return None if it has to wait."""
        return self._occupy(kind) if kind not in self._waiting and self._may(kind) else None

    async def enter(self, patience: float) -> Slot:
        """Occupy a slot. Raises `Full` if none is free within `patience` seconds."""
        kind = KIND.get()
        if (slot := self.enter_at_once(kind)) is not None:
            return slot
        loop = asyncio.get_running_loop()
        coming: asyncio.Future[Slot] = loop.create_future()
        self._waiting.setdefault(kind, {})[coming] = time.monotonic()
        timer = loop.call_later(patience, _give_up, coming)  # a third of the cost of `asyncio.timeout`
        try:
            return await coming
        except BaseException:
            if coming.done() and not coming.cancelled() and coming.exception() is None:
                self.leave(coming.result())
            else:
                self._forget(kind, coming)
            raise
        finally:
            timer.cancel()

    def leave(self, slot: Slot) -> None:
        """Release a slot, and give it to the longest waiting caller whose kind is below its limit."""
        kind_of_it, number = slot
        slots = self._slots[kind_of_it]
        del slots[number]
        if not slots:
            del self._slots[kind_of_it]
        self._free += 1
        while self._free and self._waiting:
            kind = next((kind for kind in self._waiting if self._may(kind)), None)
            if kind is None:
                return
            waiting = self._waiting.pop(kind)
            coming = next(iter(waiting))
            del waiting[coming]
            if waiting:
                self._waiting[kind] = waiting  # after the other kinds
            if not coming.done():
                coming.set_result(self._occupy(kind))

    def _may(self, kind: str) -> bool:
        if self._free <= (0 if kind == HEARTBEAT else self._kept):
            return False
        slots = self._slots.get(kind)
        if slots is None or len(slots) < self._few:
            return True
        return len(slots) < self._most and time.monotonic() - next(iter(slots.values())) < STALLED

    def _occupy(self, kind: str) -> Slot:
        self._free -= 1
        number = next(self._numbers)
        self._slots.setdefault(kind, {})[number] = time.monotonic()
        return kind, number

    def _forget(self, kind: str, coming: "asyncio.Future[Slot]") -> None:
        waiting = self._waiting.get(kind)
        if waiting and coming in waiting:
            del waiting[coming]
            if not waiting:
                del self._waiting[kind]


def _give_up(coming: "asyncio.Future[Slot]") -> None:
    if not coming.done():
        coming.set_exception(Full())
