"""Imports: users, teams, devices and notifications, all checked before the first line is applied.

Lines are staged in the database while they are checked. A job applies them in small steps, each a transaction that
removes its lines: after a crash, the next worker continues with the remaining lines. Imports of one company are applied
one after another, in the order in which they began, so that the newer lines stay.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import NamedTuple
from uuid import UUID

from tocsin import audit, devices, directory, inbox, jobs
from tocsin.audit import Actor
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection, allow, fetch_long
from tocsin.db.errors import PERMANENT, first_line
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.directory import PutUsers, Team
from tocsin.errors import FieldError, InternalError, Invalid
from tocsin.ids import new_id
from tocsin.jobs import Job
from tocsin.pubsub import PubSub, wait
from tocsin.transfer.lines import PARTS, Line, LineParser, copied
from tocsin.validation import field_error

MAX_LINE_BYTES = 12 * 2**20
"""Maximum bytes of a line: the largest team with the longest ids fits."""

MAX_INLINE_LINE_BYTES = 2**20
"""Maximum bytes of a line that is parsed in the event loop; longer ones would delay other work."""

BYTES_PER_TURN = 2**14
"""Bytes of lines that are parsed per turn of the event loop, which also stores lines and serves other requests."""

MAX_FIELD_ERRORS = 100
"""Maximum errors that an import reports; further ones are counted."""

STAGE_BATCH_SIZE, STAGE_BATCH_BYTES = 2_000, 2**21
"""Lines per statement that stages them, fewer if they have more bytes."""

STAGE_TIMEOUT = 120.0
"""Seconds for a statement that stages or checks lines. It needs a part of one, but other work may use the machine."""

CHECK_BATCH_SIZE = 20_000
"""Lines per statement that looks up what they name, or removes them, so that it ends long before its timeout."""

APPLY_BATCH_SIZE = 2_500
"""Lines per transaction that applies them."""

SORT_TIMEOUT = 120.0
"""Seconds for a statement that sorts the imported notifications of users by time: one may have millions."""

_COLUMNS = ("import_id", *Line._fields)
_POLL_INTERVAL = 0.25
_TURN_INTERVAL = 0.5
_SQL = queries("imports")


InOthers = Callable[[Sequence[tuple[str, int]]], Awaitable[Collection[tuple[str, int]]]]


class Inapplicable(Exception):  # noqa: N818 - a fact about an import
    """An import can never be applied; the message is the reason of the dead letter."""


class Import:
    """An import while it arrives: `open`, `feed` any number of times, `close`.

    `in_others` returns those of some users and teams that other databases have.
    """

    def __init__(
        self,
        database: Database,
        pubsub: PubSub,
        catalogue: Catalogue,
        actor: Actor,
        in_others: InOthers | None = None,
    ) -> None:
        self.id = new_id()
        self._database = database
        self._pubsub = pubsub
        self._parser = LineParser(catalogue, actor.company_id)
        self._actor = actor
        self._in_others = in_others
        self._rest = bytearray()
        self._staged: list[Line] = []
        self._staged_bytes = 0
        self._field_errors: list[FieldError] = []
        self._more_errors = 0
        self._number = 0
        self.is_cut = False
        """Whether the line that arrives is too long already, which is noted."""
        self._counts = dict.fromkeys(PARTS, 0)
        self._storing: asyncio.Task[None] | None = None

    @property
    def lines(self) -> int:
        """The number of valid lines until now."""
        return sum(self._counts.values())

    async def open(self) -> None:
        """Create the import in the database."""
        await self._database.value(_SQL["begin"], self.id, self._parser.company_id)

    async def feed(self, data: bytes) -> None:
        """Check and stage the lines in the next bytes."""
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = bytearray(rest)
        parsed = 0
        for text in whole:
            if parsed >= BYTES_PER_TURN:
                parsed = 0
                await asyncio.sleep(0)
            parsed += len(text)
            if len(text) > MAX_INLINE_LINE_BYTES:
                await asyncio.to_thread(self._read, text)
            else:
                self._read(text)
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest.clear()
            if not self.is_cut:
                self.is_cut = True
                self._note_length(self._number + 1)
        if len(self._staged) >= STAGE_BATCH_SIZE or self._staged_bytes >= STAGE_BATCH_BYTES:
            await self._stage()

    async def end(self) -> None:
        """Stage the last lines."""
        self._read(bytes(self._rest))
        await self._stage()
        await self._settled()
        if not self._is_full:
            async with self._database.transaction() as connection:
                await fetch_long(connection, "analyze import_lines", seconds=STAGE_TIMEOUT)

    async def accept(self, connection: Connection) -> dict[str, int]:
        """Check the import as a whole, and accept it in this transaction; return the number of lines of each part.

        The caller publishes `bulk` after the commit. Raises `Invalid` with the errors, by line number.
        """
        if not self._is_full:
            await self._note_unknown(connection)
        if self._field_errors:
            raise Invalid(self._field_errors, self._more_errors)
        await connection.execute(_SQL["accept"], self.id)
        counts = {f"{part}s": self._counts[part] for part in PARTS}
        await audit.record(connection, self._actor, "imported", f"import:{self.id}", **counts)
        return counts

    async def close(self) -> dict[str, int]:
        """Stage the last lines and accept the import; see `accept`."""
        await self.end()
        async with self._database.transaction() as connection:
            counts = await self.accept(connection)
        self._pubsub.publish("bulk")
        return counts

    async def discard(self) -> None:
        """Remove an import that was not accepted."""
        if self._storing is not None:
            await asyncio.gather(self._storing, return_exceptions=True)
        while await self._database.value(_SQL["abandon"], self.id, CHECK_BATCH_SIZE) == CHECK_BATCH_SIZE:
            pass

    @property
    def _is_full(self) -> bool:
        """Whether no further error is reported, so that no further line needs to be staged and checked."""
        return len(self._field_errors) >= MAX_FIELD_ERRORS

    async def _note_unknown(self, connection: Connection) -> None:
        """Note the errors of lines that name unknown users, or events of another company, in the order of lines."""
        found: list[FieldError] = []
        for start in range(1, self._number + 1, CHECK_BATCH_SIZE):
            numbers = (start, start + CHECK_BATCH_SIZE - 1)
            found += await self._of_other_databases(connection, *numbers)
            self._more_errors += len(found[MAX_FIELD_ERRORS:])
            del found[MAX_FIELD_ERRORS:]
            limit = MAX_FIELD_ERRORS - len(found)
            given = (self.id, self._parser.company_id, max(limit, 1), *numbers)
            rows = await fetch_long(connection, _SQL["unknown"], *given, seconds=STAGE_TIMEOUT)
            found += (reported := [_unknown(row["number"], row["path"]) for row in rows[:limit]])
            self._more_errors += rows[0]["total"] - len(reported) if rows else 0
        noted, self._field_errors = self._field_errors, []
        self._note(sorted([*noted, *found], key=_line_of))

    async def _of_other_databases(self, connection: Connection, start: int, end: int) -> list[FieldError]:
        """Return the errors of lines with users and teams that other databases have."""
        if self._in_others is None:
            return []
        rows = await fetch_long(connection, _SQL["entries"], self.id, start, end, seconds=STAGE_TIMEOUT)
        there = await self._in_others([(f"{row['part']}s", row["id"]) for row in rows])
        return [
            self._in_another_cell(row["number"], row["part"]) for row in rows if (f"{row['part']}s", row["id"]) in there
        ]

    def _in_another_cell(self, number: int, part: str) -> FieldError:
        """Return the error of a user or team of another database. A company learns no more than that it is unknown."""
        if self._parser.company_id is None:
            return field_error(f"lines.{number}.{part}.id", "prohibited", f"is a {part} of another cell")
        return _unknown(number, f".{part}.id")

    def _read(self, text: bytes | bytearray) -> None:
        self._number += 1
        if self.is_cut:
            self.is_cut = False
            return
        if len(text) > MAX_LINE_BYTES:
            self._note_length(self._number)
            return
        if not text.strip():
            return
        if self._is_full:
            self._more_errors += self._parser.count_errors(bytes(text))
            return
        found = self._parser.read(self._number, bytes(text))
        if isinstance(found, Line):
            self._staged.append(found)
            self._staged_bytes += len(text)
            self._counts[found.part] += 1
        else:
            self._note(found)
            self._staged += self._parser.known_by(self._number, bytes(text))

    def _note_length(self, number: int) -> None:
        self._note([field_error(f"lines.{number}", "string_between", f"must have at most {MAX_LINE_BYTES} bytes")])

    def _note(self, field_errors: list[FieldError]) -> None:
        all_errors = self._field_errors + field_errors
        self._field_errors = all_errors[:MAX_FIELD_ERRORS]
        self._more_errors += len(all_errors) - len(self._field_errors)

    async def _stage(self) -> None:
        """Stage lines while more are read, one batch at a time."""
        await self._settled()
        staged, self._staged, self._staged_bytes = self._staged, [], 0
        if staged and not self._is_full:
            self._storing = asyncio.create_task(self._store(staged))

    async def _settled(self) -> None:
        if self._storing is not None:
            await self._storing

    async def _store(self, lines: Sequence[Line]) -> None:
        """Stage lines by COPY, whose text is one buffer.

        asyncpg would read a file in another thread, and wait without limit to pass on the next part of an iterator if
        the server hangs.
        """
        id_ = str(self.id)
        text = memoryview("".join([f"{id_}\t{copied(line)}\n" for line in lines]).encode())
        async with self._database.transaction() as connection:
            await allow(connection, STAGE_TIMEOUT)
            await connection.copy_to_table(
                "import_lines",
                source=text,  # type: ignore[arg-type] # its types leave out buffers, which its documentation has
                columns=_COLUMNS,
                timeout=STAGE_TIMEOUT,
            )
            await connection.execute(_SQL["touch"], self.id)


def _line_of(found: FieldError) -> int:
    return int(found.field.split(".")[1])


def _unknown(number: int, path: str) -> FieldError:
    says = {".notification.id": "belongs to another event", ".team.id": "is not a known team"}
    return field_error(f"lines.{number}{path}", "unknown", says.get(path, "is not a known user"))


async def applied(database: Database, pubsub: PubSub, id_: UUID) -> int | None:
    """Wait briefly, and return the number of applied lines, None if all are. Raises `InternalError` if it failed."""
    wakeup = pubsub.listen_for("settled")
    row = await database.row(_SQL["progress"], id_)
    if row is None:
        return None
    if row["dead"]:
        raise InternalError(str(id_))
    await wait(wakeup, _POLL_INTERVAL)
    count: int = row["applied"]
    return count


async def apply(database: Database, worker: UUID, job: Job) -> None:
    """Apply the next lines of an import; after the last, finish the job. It waits for earlier ones of its company.

    Raises `Lost` if the lease is lost, and `Inapplicable` if the lines can never be applied.
    """
    try:
        await _apply(database, worker, job)
    except PERMANENT as error:
        raise Inapplicable(f"a stored line cannot be applied: {type(error).__name__}: {first_line(error)}") from error


async def _apply(database: Database, worker: UUID, job: Job) -> None:
    async with database.transaction() as connection:
        found = await connection.fetchrow(_SQL["reached"], job.id)
        if found is None or found["step"] == len(_STEPS):
            await jobs.finish(connection, worker, [job.id])
            await connection.execute(_SQL["discard"], job.id)
            return
        if found["waits"]:
            await jobs.hand_back(connection, worker, [job.id], _TURN_INTERVAL)
            return
        await jobs.save_progress(connection, worker, [(job.id, job.progress + 1)])
        applied, step = Applied(0, found["reached"]), found["step"]
        while not applied.lines and step < len(_STEPS):
            applied = await _STEPS[step](connection, job.id, found["company_id"], applied.last)
            step += not applied.lines
        await connection.execute(_SQL["advance"], job.id, applied.lines, step, applied.last)
    if applied.put:
        await directory.after_put(database, applied.put)


class Applied(NamedTuple):
    """The number of lines that a step applied, and the last: its user, or the number of the line of a team.

    `put` are its users, if it put any.
    """

    lines: int
    last: int = 0
    put: PutUsers | None = None


async def _users(connection: Connection, id_: UUID, company_id: int | None, start: int) -> Applied:
    [row] = await connection.fetch(_SQL["users"], id_, start, APPLY_BATCH_SIZE)
    if not row["count"]:
        return Applied(0)
    return Applied(row["count"], row["last"], await directory.put_users(connection, row["users"], company_id))


async def _teams(connection: Connection, id_: UUID, company_id: int | None, start: int) -> Applied:
    row = await connection.fetchrow(_SQL["team"], id_, start)
    if row is None:
        return Applied(0)
    try:
        team = Team(**json.loads(row["body"]))
    except (ValueError, TypeError) as error:
        raise Inapplicable(f"a stored line is not a team: {first_line(error)}") from error
    await directory.put_team_with_known_members(connection, team, company_id)
    return Applied(1, row["number"])


async def _devices(connection: Connection, id_: UUID, company_id: int | None, start: int) -> Applied:
    [row] = await connection.fetch(_SQL["devices"], id_, company_id, APPLY_BATCH_SIZE, start)
    for owner in row["owners"]:
        await devices.enforce_device_limit(connection, owner)
    for device in row["rerouted"]:
        await devices.follow(connection, device)
    return Applied(row["count"], row["last"] or 0)


async def _notifications(connection: Connection, id_: UUID, company_id: int | None, start: int) -> Applied:
    users = await connection.fetchval(_SQL["concerned"], id_, start, APPLY_BATCH_SIZE)
    locked = await inbox.lock(connection, {*users[:APPLY_BATCH_SIZE]})
    await connection.execute(_SQL["hold"], id_, start, APPLY_BATCH_SIZE)
    [row] = await connection.fetch(_SQL["notifications"], id_, company_id, APPLY_BATCH_SIZE, start, locked)
    ended = {*row["with_more"]} - {*users[APPLY_BATCH_SIZE:]}
    sorted_ = await _sort(connection, ended) if ended else []
    if row["user_ids"] or sorted_:
        await inbox.count_history(connection, row["user_ids"], row["totals"], row["unreads"], row["newest"], sorted_)
    return Applied(row["count"], row["last"] or 0)


async def _sort(connection: Connection, users: Collection[int]) -> list[int]:
    """Sort the imported notifications of these users by time, once all of this import are there; return for whom."""
    found = await fetch_long(connection, _SQL["unsorted"], users, seconds=SORT_TIMEOUT)
    unsorted = [row["user_id"] for row in found]
    if unsorted:
        await fetch_long(connection, _SQL["sort"], unsorted, seconds=SORT_TIMEOUT)
    return unsorted


Step = Callable[[Connection, UUID, int | None, int], Awaitable[Applied]]

_STEPS: tuple[Step, ...] = (_users, _teams, _devices, _notifications)
