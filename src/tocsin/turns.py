"""Turns in the bulk queue: companies take turns, and within each company its senders.

A job takes one turn for each chunk of recipients. A sender whose chunk was larger than a share skips turns, so that
senders of small events get as many recipients as those of large ones. Each worker keeps the order of turns for itself.
"""

from uuid import UUID

from cachetools import LRUCache

from tocsin import jobs
from tocsin.db.pool import Database
from tocsin.jobs import Job

SHARE = 1_000
"""Recipients per turn. A sender with a larger chunk skips a turn for each further share."""

MAX_SKIPS = 20
"""Maximum turns that are skipped to find a job."""

MAX_REMEMBERED = 10_000
"""Maximum companies, and senders, of which the last turn is remembered."""

Sender = tuple[int, str]
"""A company and the name of a sender in it."""


class Turns:
    """Chooses the jobs of the bulk queue for a worker."""

    def __init__(self) -> None:
        self._company = 0
        self._senders: LRUCache[int, str] = LRUCache(MAX_REMEMBERED)
        self._owed: LRUCache[Sender, int] = LRUCache(MAX_REMEMBERED)
        self._current: Sender | None = None

    async def claim(self, database: Database, worker: UUID) -> list[Job]:
        """Lease the oldest job of the sender whose turn it is; without one, the oldest of all."""
        self._current = await self._next(database)
        claimed = await jobs.claim_of_sender(database, worker, *self._current) if self._current else []
        return claimed or await jobs.claim(database, worker, "bulk", 1)

    def served(self, recipients: int) -> None:
        """Record the size of the chunk of the last job."""
        if self._current:
            self._owed[self._current] = max(recipients - SHARE, 0)

    async def _next(self, database: Database) -> Sender | None:
        """Return the sender whose turn it is. If all senders have to skip, the first of them is not delayed."""
        first: Sender | None = None
        for _ in range(MAX_SKIPS):
            found = await self._following(database)
            owed = self._owed.get(found, 0) if found else 0
            if found is None or found == first or owed < SHARE:
                return found
            first = first or found
            self._owed[found] = owed - SHARE
        return found

    async def _following(self, database: Database) -> Sender | None:
        company = await jobs.next_company(database, self._company)
        if company is None:
            return None
        sender = await jobs.next_sender(database, company, self._senders.get(company, ""))
        if sender is None:  # another worker has claimed its last job
            return None
        self._company, self._senders[company] = company, sender
        return company, sender
