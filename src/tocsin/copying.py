"""Copies a company from one database to another, in ranges of users, teams and events that are compared by digests.

The rows are read at one time and written as they were, and what has changed since is found by the heads of users, the
events that wait, and the results of pushes. `moving` says when.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from tocsin import retention
from tocsin.batches import pieces
from tocsin.db.connections import Connection
from tocsin.db.pool import Database, fetch
from tocsin.db.statements import queries
from tocsin.errors import Refusal
from tocsin.ids import MAX_ID

ENTRIES = 5_000
"""Entries of inboxes in a range of users."""

TEAMS, EVENTS, ROWS = 50, 500, 500
"""Teams and events in a range, and rows of a step."""

USERS = 50
"""Users of a range that have changed."""

PUT_CHARACTERS = 2**24
"""Characters of the rows that a statement writes: a user of a range may have a million notifications, which are too
many for one. A row may have more."""

MARKS = 10_000
"""Users that are compared by one statement."""

MANY_RECIPIENTS = 100
"""Recipients of an event that is not compared again with each range of its users, unless it has more of them."""

EARLIEST, FIRST = datetime.min.replace(tzinfo=UTC), UUID(int=0)
_FIRST_USERS = ("users", "heads", "teams", "events")  # the rows that others refer to
_SQL = queries("moving")

Say = Callable[[str], None]

Digest = tuple[str, int, str, UUID | None]
"""A table, how many rows of it are in a range or belong to an event, their digest, and the event, if it is of one."""


class Changed(Exception):  # noqa: N818 - the move is repeated
    """The company could not be closed, locked or compared in time."""


@dataclass(frozen=True, slots=True)
class Section:
    """Users, teams or events of a company, by their ids."""

    of: str
    ids: Sequence[Any]


def is_taken() -> Refusal:
    """Return the refusal of a command that lost its turn."""
    return Refusal("Another `tocsin cell move` moves the company.")


class Copy:
    """A company that is copied: what is there, what has changed since, and whether both are equal."""

    def __init__(  # noqa: PLR0913, PLR0917 - the arguments of `moving.move`
        self, source: Database, target: Database, company_id: int, origin: str, destination: str, say: Say
    ) -> None:
        self._source, self._target, self._company = source, target, company_id
        self._origin, self._destination, self._say = origin, destination, say
        self._copied: dict[str, int] = {}
        self._compared: dict[str, int] = {}
        self._turn = 0
        self._since = EARLIEST
        self._waiting = set[UUID]()
        self._unequal: list[Section] = []
        self._equal: dict[UUID, str] = {}

    async def _follow(self, source: Connection | None = None) -> int:
        """Bring what has changed since the last time, or the copy; return the number of users."""
        store = source or self._source
        [[since]] = await fetch(store, _SQL["since"])
        waiting = await self._waiting_now(source)
        count = 0
        async for ids in self._changed_users(store):
            count += len(ids)
            for users in pieces(ids, USERS):
                await self._bring(Section("users", users), source)
        async for part in self._ranges("teams", TEAMS):
            await self._bring(part, source)
        events = await self._changed_events(store, self._waiting - waiting)
        for some in pieces(events, EVENTS):
            await self._bring(Section("events", some), source)
        await self._bring_rows(store, "deliveries", "next_settled", (self._since, FIRST, FIRST))
        if source is None:
            await self._bring_keys(self._since, with_users=True)
        await self._bring_unequal(source)
        if source and self._unequal:
            raise Changed(f"{self._unequal[0].of} differ in the two cells")
        self._since, self._waiting = since, waiting
        return count

    async def _bring_unequal(self, source: Connection | None = None) -> None:
        parts, self._unequal = self._unequal, []
        for part in parts:
            await self._bring(part, source)

    async def _waiting_now(self, source: Connection | None = None) -> set[UUID]:
        return {row["id"] for row in await self._pending(source or self._source)}

    async def _changed_users(self, store: Database | Connection) -> AsyncIterator[list[int]]:
        after = 0
        while after < MAX_ID:
            mine = await fetch(store, _SQL["marks"], self._company, after, MAX_ID, MARKS)
            last = mine[-1]["id"] if len(mine) == MARKS else MAX_ID
            theirs = await self._target.rows(_SQL["marks"], self._company, after, last, None)
            yield sorted({id_ for id_, _ in {*map(tuple, mine)} ^ {*map(tuple, theirs)}})
            after = last

    async def _changed_events(self, store: Database | Connection, ended: set[UUID]) -> list[UUID]:
        """Return events of the company that have changed, and those of others that the target has."""
        found = await fetch(store, _SQL["changed_events"], self._company, self._since, [*ended])
        others = [row["id"] for row in found if not row["is_own"]]
        known = await self._target.rows(_SQL["known_events"], others)
        return sorted({row["id"] for row in known} | {row["id"] for row in found if row["is_own"]})

    async def _bring_keys(self, since: datetime, *, with_users: bool) -> None:
        """Bring the keys of services, and those of users, which come with them in a copy."""
        await self._bring_rows(self._source, "idempotency_keys", "next_keys", (since, "", "", "", ""), with_users)

    async def _bring_rows(
        self, store: Database | Connection, table: str, name: str, after: Sequence[Any], *more: Any
    ) -> None:
        """Bring the rows of a table after a key, in its order."""
        while rows := await fetch(store, _SQL[name], self._company, *after, ROWS, *more):
            async with self._target.transaction() as target:
                await self._receive(target)
                await self._put(target, {table: [row["row"] for row in rows]})
            after = list(rows[-1])[:-1]

    async def _pending(self, source: Database | Connection) -> list[Any]:
        return list(await fetch(source, _SQL["pending"], self._company))

    async def _parts(self) -> AsyncIterator[Section]:
        """Yield the users, the teams, and the events without recipients."""
        async for part in self._ranges("users", ENTRIES):
            yield part
        async for part in self._ranges("teams", TEAMS):
            yield part
        first = FIRST
        while ids := await self._source.value(_SQL["next_events"], first, self._company, EVENTS):
            yield Section("events", ids)
            first = ids[-1]

    async def _ranges(self, of: str, size: int) -> AsyncIterator[Section]:
        """Yield ranges of users or teams, with those that only the target has."""
        after = 0
        while after < MAX_ID:
            mine = await self._source.value(_SQL[f"next_{of}"], after, self._company, size)
            last = mine[-1] if mine else MAX_ID
            theirs = await self._target.rows(_SQL[f"{of}_between"], after, last, self._company)
            yield Section(of, sorted({*mine, *(row["id"] for row in theirs)}))
            after = last

    async def _bring(self, part: Section, source: Connection | None = None) -> list[Digest]:
        """Make a range of the target like that of the source; return the digests.

        Without a connection, the source is read as it is at one time. Ranges can differ afterwards, until the target
        has all users of their events.
        """
        if source is None:
            async with (
                self._source.connection() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                return await self._bring(part, connection)
        events, others = await asyncio.gather(self._events(source, part), self._events(self._target, part))
        large = await self._large_events(source, events) if part.of == "users" else {}
        known = [id_ for id_, mark in large.items() if self._equal.get(id_) == mark]
        same = {id_ for id_, mark in (await self._large_events(self._target, known)).items() if mark == large[id_]}
        mine, theirs = await asyncio.gather(
            self._digests(source, part, events - same), self._digests(self._target, part, others - same)
        )
        differing = {digest[-1] for digest in {*mine} ^ {*theirs}}
        if differing:
            differing = await self._replace(source, part, events, mine, differing)
        self._equal.update({id_: mark for id_, mark in large.items() if id_ not in differing})
        return mine

    async def _large_events(self, store: Database | Connection, ids: Collection[UUID]) -> dict[UUID, str]:
        """Return those of these events that have many recipients, each with a mark that changes with these.

        What else changes such an event in the source makes it one of `_changed_events`. Retention may delete it in
        the target.
        """
        found = await fetch(store, _SQL["large_events"], self._company, ids, MANY_RECIPIENTS) if ids else ()
        return {row["id"]: row["mark"] for row in found}

    async def _digests(self, store: Database | Connection, part: Section, events: Collection[UUID]) -> list[Digest]:
        """Return the digests of a range, with these of its events."""
        found = []
        if part.of != "events":
            found += await fetch(store, _SQL[f"digest_of_{part.of}"], self._company, part.ids)
        if part.of != "teams":
            found += await fetch(store, _SQL["digest_of_events"], self._company, events, part.of == "users")
        return [tuple(row) for row in found]

    async def _rows(
        self, source: Connection, part: Section, events: Collection[UUID], others: Collection[UUID]
    ) -> dict[str, list[str]]:
        """Return the rows of a range by table, with its events, and those of other events which the target has."""
        rows = []
        if part.of != "events":
            rows += await source.fetch(_SQL[f"rows_of_{part.of}"], self._company, part.ids)
        for ids, are_theirs in ((events, part.of == "users"), (others, False)):
            rows += await source.fetch(_SQL["rows_of_events"], self._company, ids, are_theirs)
        return by_table(rows)

    async def _events(self, store: Database | Connection, part: Section) -> set[UUID]:
        """Return the events in a range, or in the inboxes of its users."""
        if part.of != "users":
            return {*part.ids} if part.of == "events" else set()
        [[ids]] = await fetch(store, _SQL["events_of_users"], self._company, part.ids)
        return {*ids}

    async def _replace(
        self,
        source: Connection,
        part: Section,
        events: set[UUID],
        digests: Sequence[Digest],
        differing: set[UUID | None],
    ) -> set[UUID | None]:
        """Replace a range of the target by that of the source, with its events and digests, in one transaction.

        Of its events, only those are replaced that are `differing`: most of those of a user who got one are as before.
        Return those that differ afterwards, with None for rows that are of no event.
        """
        for id_ in differing:
            self._equal.pop(id_, None)  # type: ignore[arg-type] # None is not there
        async with self._target.transaction() as target:
            await self._receive(target)
            mine, theirs = events & differing, await self._events(target, part) & differing
            tables = await self._rows(source, part, mine, theirs - mine)
            ids = sorted(mine | theirs)
            for table in ("users", "teams", "events"):
                await self._check_free(target, table, tables.get(table, []))
            await self._check_undivided(target, ids, are_pending=False)
            if part.of != "events":
                await target.execute(_SQL[f"discard_{part.of}"], self._company, part.ids)
            await target.execute(_SQL["discard_events"], self._company, ids)
            await self._put(target, tables)
            expected = [digest for digest in digests if digest[-1] is None or digest[-1] in differing]
            after = await self._digests(target, part, await self._events(target, part) & differing)
            unequal = {digest[-1] for digest in {*after} ^ {*expected}}
        if unequal:
            self._unequal.append(part)
        return unequal

    async def _receive(self, target: Connection) -> None:
        await retention.suspend(target)
        row = await target.fetchrow(_SQL["receive"], self._company, self._turn)
        if not (row and row["is_expected"]):
            raise is_taken()

    async def _put(self, target: Connection, tables: Mapping[str, Sequence[str]]) -> None:
        """Write rows of the source into the target, as they were."""
        for table in sorted(tables, key=lambda each: each not in _FIRST_USERS):
            company = (self._company,) if table in {"events", "recipients"} else ()
            for rows in _batches(tables[table]):
                await target.execute(_SQL[f"put_{table}"], as_json(rows), *company)
            self._copied[table] = self._copied.get(table, 0) + len(tables[table])

    async def _check_free(self, target: Database | Connection, table: str, rows: Sequence[str]) -> None:
        """Raise `Refusal` if ids of users, teams or events belong to others in the target."""
        taken: list[str] = []
        for some in _batches(rows):
            taken += [str(row["id"]) for row in await fetch(target, _SQL[f"taken_{table}"], as_json(some))]
        if taken:
            raise Refusal(f"Cell {self._destination} has other {table} with the ids {', '.join(taken[:10])}.")

    async def _check_undivided(self, target: Database | Connection, ids: Sequence[UUID], *, are_pending: bool) -> None:
        """Raise `Refusal` if events for several companies wait in one cell, and are delivered in the other."""
        found = [str(row["id"]) for row in await fetch(target, _SQL["divided_events"], ids, are_pending)]
        if found:
            raise Refusal(f"Events wait in one of the cells, and are delivered in the other: {', '.join(found)}.")


def by_table(rows: Iterable[Any]) -> dict[str, list[str]]:
    """Return rows by their tables."""
    tables: dict[str, list[str]] = {}
    for row in rows:
        tables.setdefault(row["table_name"], []).append(row["row"])
    return tables


def as_json(rows: Sequence[str]) -> str:
    """Return rows as a JSON array."""
    return "[" + ",".join(rows) + "]"


def _batches(rows: Iterable[str]) -> Iterator[list[str]]:
    """Yield rows in batches of about `PUT_CHARACTERS`."""
    batch: list[str] = []
    size = 0
    for row in rows:
        if batch and size + len(row) > PUT_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += len(row)
    if batch:
        yield batch
