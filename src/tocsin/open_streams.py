"""Open streams: those of all processes are recorded in the database, so that a user has a limited number of them.

A process records its streams soon after they were opened, several by one statement. If two processes do so at the same
time, a user can have one stream too many until the next one is opened. A read-only process records nothing.
"""

from collections.abc import Sequence
from uuid import UUID

from tocsin.backoff import Backoff
from tocsin.batches import Batches
from tocsin.db.admission import KIND
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.ids import new_id

MAX_STREAMS_PER_USER = 8
"""Maximum open streams of a user in all processes. One more closes the oldest."""

BATCH_SIZE = 500
"""Streams per statement."""

Change = tuple[UUID, int, float] | UUID
"""A stream that was opened, its user, and when its token expires in seconds since 1970; or the id of a closed one."""

_SQL = queries("streams")


class OpenStreams:
    """The record of the open streams of this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._process = new_id()
        self._changes: Batches[Change] = Batches(self._record, lambda waiting: min(len(waiting), BATCH_SIZE))
        self._recording = Backoff("record streams")

    def opened(self, id_: UUID, user_id: int, ends_at: float) -> None:
        """Record a stream. The oldest of its user, in any process, is marked as over if there are too many."""
        if not self._database.is_read_only:
            self._changes.add([(id_, user_id, ends_at)])

    def closed(self, id_: UUID) -> None:
        """Remove a stream from the record."""
        if not self._database.is_read_only:
            self._changes.add([id_])

    async def over(self) -> set[UUID]:
        """Return the streams of this process that must be closed."""
        if self._database.is_read_only:  # a standby does not even read the table, which is unlogged
            return set()
        return {row["id"] for row in await self._database.rows(_SQL["over"], self._process)}

    async def join(self) -> None:
        """Wait until all changes are recorded."""
        await self._changes.join()

    async def _record(self, changes: Sequence[Change]) -> None:
        """Record changes in the order of streams: one that was closed had been opened before."""
        KIND.set("streams")
        opened = [change for change in changes if isinstance(change, tuple)]
        closed = [change for change in changes if isinstance(change, UUID)]
        try:
            if opened:
                columns = map(list, zip(*opened, strict=True))
                arguments = *columns, self._process, MAX_STREAMS_PER_USER, len(opened)
                await self._database.rows(_SQL["open"], *arguments)
            if closed:
                await self._database.rows(_SQL["close"], closed)
            self._recording.succeeded()
        except Exception as error:  # noqa: BLE001 - streams work without their record
            self._recording.note(error)
