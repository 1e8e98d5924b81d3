"""Capacity: how many requests are processed at the same time, and which are refused if more arrive.

A request waits for a slot while its kind's queue moves. A queue that does not become short again means that more
requests arrive than can be processed: further ones are then refused at once, instead of all of them waiting longer.
"""

import asyncio
import time
from collections.abc import Iterable
from functools import partial

import structlog

from tocsin.db.admission import Admission, Full, Slot
from tocsin.errors import Overloaded
from tocsin.metrics import Metrics
from tocsin.pacing import Pace

SLOTS = 24
"""Requests that are processed at the same time. More of them would only wait for the processor or for each other."""

SLOTS_OF_KINDS = {"POST /events": 48}
"""Kinds with slots of their own. Events that are posted at the same time are stored together, which costs less. With
twice as many, under overload each event cost almost twice as much of the processor."""

RELEASED_AT_ONCE = 8
"""Slots that are released per turn of the event loop, because the requests that get them are processed in one turn."""

MAX_BURST = 0.1
"""Seconds for which the oldest request of a long queue may wait before further ones are refused. A queue is long with
as many requests as there are slots; shorter ones keep the slots in use when they are released together."""

CALM = 1.0
"""Seconds without a refusal after which a queue may be long again."""

PATIENCE = 5.0
"""Maximum seconds that a request waits for a slot, if those that have one hang."""

MAX_WAITING = 2_000
"""Maximum requests that wait for a slot."""

LOG_INTERVAL = 60.0
"""Minimum seconds between two log lines. For as long, the readiness check reports refusals."""

MAX_KINDS, MAX_KIND_LENGTH = 100, 100
"""Maximum kinds of which is remembered that they are refused, and maximum characters of the path in a kind."""

log = structlog.get_logger(__name__)


class Capacity:
    """The slots of a process for requests."""

    def __init__(self, metrics: Metrics, size: int = SLOTS) -> None:
        self._others = Admission(size)
        self._of_kinds = {kind: Admission(size_of_kind) for kind, size_of_kind in SLOTS_OF_KINDS.items()}
        self._pace = Pace(RELEASED_AT_ONCE)
        self._metrics = metrics
        metrics.watch_requests(lambda: self.in_use, lambda: self.waiting)
        self._coming: dict[str, int] = {}
        self._refusing_until: dict[str, float] = {}
        self._refused = 0
        self._refused_at = self._logged_at = float("-inf")

    @property
    def in_use(self) -> int:
        """The number of requests that are being processed."""
        return sum(each.in_use for each in self._all())

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a slot."""
        return sum(each.waiting for each in self._all())

    @property
    def is_refusing(self) -> bool:
        """Whether a request was refused within `CALM`."""
        return time.monotonic() < self._refused_at + CALM

    @property
    def problem(self) -> str | None:
        """Why requests were refused within `LOG_INTERVAL`; None if none were."""
        if time.monotonic() > self._refused_at + LOG_INTERVAL:
            return None
        return "requests are refused: more arrive than can be processed"

    def has_room(self, kind: str) -> bool:
        """Return whether a request of this kind may wait for a slot."""
        admission = self._of(kind)
        waiting, began = admission.queue_of(kind)
        if waiting + self._coming.get(kind, 0) < admission.size:
            return True
        now = time.monotonic()
        if now - began > MAX_BURST or now < self._refusing_until.get(kind, 0.0):
            return False
        return self.waiting < MAX_WAITING

    def refuses(self, kind: str) -> bool:
        """Decide whether a request of this kind is refused whose head was read just now, and count it.

        Those that are not refused reach the queue in the next turn of the event loop. Until then they are counted here:
        hundreds can be read in one turn, and to refuse one in the queue costs much more.
        """
        if not self.has_room(kind):
            self.refuse(kind)
            return True
        if not self._coming:
            asyncio.get_running_loop().call_soon(self._coming.clear)
        self._coming[kind] = self._coming.get(kind, 0) + 1
        return False

    def enter_at_once(self, kind: str) -> Slot | None:
        """Occupy a slot for a request of this kind; return None if it has to wait."""
        return self._of(kind).enter_at_once(kind)

    async def enter(self, kind: str) -> Slot:
        """Occupy a slot for a request of this kind. Raises `Overloaded` at once if too many wait."""
        if not self.has_room(kind):
            self.refuse(kind)
            raise Overloaded
        try:
            return await self._of(kind).enter(PATIENCE)
        except Full:
            self.refuse(kind)
            raise Overloaded from None

    def leave(self, slot: Slot) -> None:
        """Release a slot, at the latest when it is this one's turn."""
        admission = self._of(slot[0])
        if admission.is_awaited:
            self._pace.add(partial(admission.leave, slot))
        else:
            admission.leave(slot)

    def _of(self, kind: str) -> Admission:
        return self._of_kinds.get(kind, self._others)

    def _all(self) -> Iterable[Admission]:
        return self._others, *self._of_kinds.values()

    def refuse(self, kind: str) -> None:
        """Count a refused request of this kind."""
        now = self._refused_at = time.monotonic()
        if kind not in self._refusing_until and len(self._refusing_until) >= MAX_KINDS:
            self._refusing_until.clear()
        self._refusing_until[kind] = now + CALM
        self._metrics.request_refused("overload")
        self._refused += 1
        if now > self._logged_at + LOG_INTERVAL:
            log.warning("requests refused: more arrive than can be processed", requests=self._refused, last=kind)
            self._logged_at, self._refused = now, 0


def kind_of(method: str, path: str) -> str:
    """Return the kind of a request: its method and the first part of its path, with a slash if that has more parts."""
    first, slash, _ = path.lstrip("/").partition("/")
    return f"{method} /{first[:MAX_KIND_LENGTH]}{slash}"
