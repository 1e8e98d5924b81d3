"""Reads of inboxes from a replica, a standby of the database, with TOCSIN_REPLICA_URL.

What a caller sees never goes back in time, and contains their own writes, in every process: the primary is asked for
the position of the inbox, which is one look-up for all requests of a moment, and an answer of the replica is used only
if it is of that position or a later one. Otherwise the primary is read.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from tocsin import inbox
from tocsin.auth.claims import UserCaller
from tocsin.db.admission import KIND
from tocsin.db.connections import Record, is_on_standby
from tocsin.db.errors import REFUSALS
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import Overrun, Unauthenticated, Unavailable
from tocsin.inbox import Changes, position_in
from tocsin.pages import Cursors, Page, Pages

CONNECTIONS = 10
PATIENCE = 1.0
"""Seconds that the replica has for a read, which then is repeated on the primary."""

SAMPLE_INTERVAL = 1.0
"""Seconds between two looks at how far the replica is."""

RETRY_INTERVAL = 5.0
"""Seconds for which the replica is not used after a read failed there."""

MAX_SAMPLES = 1000

AWAY = "the replica cannot be read"
PROMOTED = "the replica is no standby"
DIVERGED = "the replica has changes that the primary does not have"

_SQL = queries("replica")


class _Dated(Protocol):
    """What was read of an inbox; `head` is the cursor of the inbox at that moment."""

    @property
    def head(self) -> str: ...


Found = TypeVar("Found", bound=_Dated)


class Standby(Database):
    """A pool of connections to a standby. What was read after its promotion raises `Unavailable`."""

    async def rows(self, statement: str, *arguments: Any) -> list[Record]:
        """Run one statement and return its rows.

        The server reports its promotion to each session, before the end of the first statement that could see it.
        """
        async with self.connection() as connection:
            found = list(await connection.fetch(statement, *arguments))
            if not is_on_standby(connection):
                raise Unavailable(reason=PROMOTED)
        return found


class Replica:
    """A replica, and why it is not used now. It is late if it lacks for `max_lag` seconds what the primary had."""

    def __init__(
        self, primary: Database, database: Database, max_lag: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.database = database
        self.problem = AWAY
        self._primary, self._max_lag, self._clock = primary, max_lag, clock
        self._not_reached: deque[tuple[float, int]] = deque(maxlen=MAX_SAMPLES)
        self._retry_at = 0.0

    def failed(self, error: Exception) -> None:
        """Use the primary, for some seconds."""
        self._retry_at = self._clock() + RETRY_INTERVAL
        self.problem = _reason_of(error)

    async def watch(self) -> None:
        """Look how far the replica is, forever."""
        KIND.set("replica")
        while True:
            await self.look()
            await asyncio.sleep(SAMPLE_INTERVAL)

    async def look(self) -> None:
        """Look how far the replica is, first there: so it has no more than the primary."""
        try:
            replayed: int | None = await self.database.value(_SQL["replayed"])
            written: int = await self._primary.value(_SQL["written"])
        except Exception as error:  # noqa: BLE001 - it looks again after any error
            self.failed(error)
            return
        problem = PROMOTED if replayed is None else self._problem_at(replayed, written)
        if problem or self._clock() >= self._retry_at:
            self.problem = problem

    def _problem_at(self, replayed: int, written: int) -> str:
        now = self._clock()
        self._not_reached.append((now, written))
        while self._not_reached and self._not_reached[0][1] <= replayed:
            self._not_reached.popleft()
        lag = now - self._not_reached[0][0] if self._not_reached else 0.0
        if replayed > written:
            return DIVERGED
        return f"the replica is more than {self._max_lag:.0f} s behind" if lag > self._max_lag else ""


class Reads:
    """Reads pages and changes of inboxes, on the replica where possible. `count` is called with the place of each."""

    def __init__(
        self, database: Database, cursors: Cursors, replica: Replica | None, count: Callable[[str], None]
    ) -> None:
        self._database, self._cursors, self._replica, self._count = database, cursors, replica, count
        self._pages = {each: Pages(each) for each in (database, *([replica.database] if replica else []))}

    async def page(self, user: UserCaller, *, unread: bool, before: int, limit: int, head: str | None = None) -> Page:
        """Return a page as `Pages.of` does. `head` is the cursor that the inbox had in this request, if known."""
        return await self._read(
            user, lambda where: self._pages[where].of(user, unread=unread, before=before, limit=limit), head
        )

    async def changes(self, user: UserCaller, since: str) -> Changes:
        """Return changes as `inbox.changes` does."""
        return await self._read(user, lambda where: inbox.changes(where, user, since))

    async def _read(
        self, user: UserCaller, read: Callable[[Database], Awaitable[Found]], head: str | None = None
    ) -> Found:
        if self._replica is None:
            return await read(self._database)
        target = "primary"
        if not self._replica.problem:
            least = position_in(head or await self._cursors.of(user))
            try:
                async with asyncio.timeout(PATIENCE):  # connecting may take longer
                    found = await read(self._replica.database)
            except (TimeoutError, *REFUSALS) as error:
                self._replica.failed(error)
            except Unauthenticated:  # the user is admitted on the primary
                target = "behind"
            else:
                target = "replica" if _is_since(position_in(found.head), least) else "behind"
        self._count(target)
        return found if target == "replica" else await read(self._database)


def _is_since(head: tuple[int, int], least: tuple[int, int]) -> bool:
    """Return whether a head is of the same inbox, and not older."""
    return head[0] == least[0] and head[1] >= least[1]


def _reason_of(error: Exception) -> str:
    return error.reason if isinstance(error, Unavailable | Overrun) and error.reason == PROMOTED else AWAY
