"""Isolation: in batches, an item that fails or waits for a lock does not delay the others."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from tocsin.db.pool import LOCK_TIMEOUT
from tocsin.errors import Locked, Overrun, Unavailable

SHORT_LOCK_TIMEOUT = 0.2
"""Seconds that a statement waits for one lock while conflicts are expected."""

CONFLICT_MEMORY = 30.0
"""Seconds after a conflict for which further ones are expected."""

CONFLICT_NOTICE = 10.0
"""Seconds after a conflict for which it is reported as the reason why some work waits."""

MAX_CONFLICTS = 20
"""Conflicts after which a batch is given up: a whole table may be locked, and each part would wait for it."""

LAST_LOCK_TIMEOUT = 2.0
"""Seconds that a statement of a process that stops waits for one lock: other workers do what it leaves."""

LOCKED_DELAY = 5.0
"""Seconds after which an item that met a lock is retried."""

T = TypeVar("T")


class LockConflicts:
    """The lock conflicts of one kind of work: for a while after one, its statements wait only briefly for locks."""

    def __init__(self) -> None:
        self._met_at = -math.inf
        self._reason = ""

    @property
    def reason(self) -> str:
        """Why some work waits; empty without a recent conflict."""
        return self._reason if time.monotonic() - self._met_at < CONFLICT_NOTICE else ""

    @property
    def are_expected(self) -> bool:
        """Whether further conflicts are expected."""
        return time.monotonic() - self._met_at < CONFLICT_MEMORY

    def note(self, error: Locked) -> None:
        """Record a conflict."""
        self._met_at, self._reason = time.monotonic(), error.reason


@contextlib.contextmanager
def lock_timeout(seconds: float | None) -> Iterator[None]:
    """Limit how long statements in this block wait for one lock."""
    token = LOCK_TIMEOUT.set(seconds)
    try:
        yield
    finally:
        LOCK_TIMEOUT.reset(token)


async def do_in_parts(
    waiting: deque[Sequence[T]],
    do: Callable[[Sequence[T]], Awaitable[None]],
    failed: Callable[[T, Exception], Awaitable[None]],
    conflicts: LockConflicts,
    locked_among: Callable[[Sequence[T]], Awaitable[Sequence[T]]] | None = None,
) -> None:
    """Process each part in `waiting`; if one fails, its halves. `failed` gets each item that fails alone.

    If `locked_among` finds items of a part that meet locks, the part is processed without them instead of in halves.
    `failed` may remove items from `waiting`. Raises `Unavailable` in an outage, or if too many parts meet locks; the
    parts left in `waiting` are not processed.
    """
    met, is_short = 0, False
    while waiting:
        part, was_short = waiting[0], is_short or conflicts.are_expected
        failure = await _failure_of(do, part, was_short=was_short)
        alone = part if failure and len(part) == 1 else ()
        if isinstance(failure, Locked):
            conflicts.note(failure)
            met += 1
            if met == MAX_CONFLICTS:
                raise failure
            if locked_among and not alone:
                with lock_timeout(SHORT_LOCK_TIMEOUT):
                    alone = await locked_among(part)
        elif isinstance(failure, Overrun) and not was_short:
            is_short = True
            if alone:  # it may have waited for locks, which is not its own failure
                continue
        waiting.popleft()
        if failure:
            waiting.extendleft(reversed(_without(part, alone) if alone else _halves(part)))
            for item in alone:
                await failed(item, failure)


async def _failure_of(
    do: Callable[[Sequence[T]], Awaitable[None]], part: Sequence[T], *, was_short: bool
) -> Exception | None:
    try:
        with lock_timeout(SHORT_LOCK_TIMEOUT if was_short else LOCK_TIMEOUT.get()):
            await do(part)
    except Unavailable as error:
        if isinstance(error, Locked):
            return error
        raise
    except Exception as error:  # noqa: BLE001 - any error of an item must not stop the others
        return error
    return None


def _halves(part: Sequence[T]) -> list[Sequence[T]]:
    middle = len(part) // 2
    return [part[:middle], part[middle:]]


def _without(part: Sequence[T], items: Sequence[T]) -> list[Sequence[T]]:
    taken = set(map(id, items))
    left = [item for item in part if id(item) not in taken]
    return [left] if left else []
