"""Moves a company from one database (a cell) to another, while it is in use.

The rows are copied in ranges of users, teams and events, and each range is compared by counts and digests. Then what
has changed since is copied, until it is little: users are compared by their heads, which each change of an inbox
changes, and events by what is known of those that change otherwise. The company is closed for seconds: the rows are
locked, and what is left is copied. The switch is one transaction of the source: it deletes the users and teams, keeps
pending work for the target, and records the cell of the company in `moves`. Each step can be repeated, so that an
interrupted move continues. Each run has a higher turn, and what a run before still does under its own turn changes
nothing.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from tocsin import registrations, retention
from tocsin.db.pool import Connection, Database, fetch, queries
from tocsin.errors import Locked, Refusal, Unavailable
from tocsin.ids import MAX_ID

CONNECTIONS = 12
"""The size of the pool of each database. Four connections are used at the same time, and long ones count thrice."""

PATIENCE = 120.0
"""The timeout of the statements of these pools."""

ENTRIES = 5_000
"""Entries of inboxes in a range of users."""

TEAMS, EVENTS, ROWS = 50, 500, 500
"""Teams and events in a range, and rows of a step."""

USERS = 50
"""Users of a range that have changed."""

MARKS = 10_000
"""Users that are compared by one statement."""

ROUNDS, FEW = 5, 100
"""How often changes are copied before the company is closed, until at most so many users have changed."""

ATTEMPTS = 3
"""How often a company is closed if it cannot be compared or locked in time."""

CLOSE_DELAY = 2.0
"""Seconds between the closing of a company and the locks: processes look every second which companies are closed."""

CLOSED_FOR, RENEW_INTERVAL = 10.0, 2.0
"""Seconds until a company whose move was interrupted is served again, and between two extensions."""

IDLE_TIMEOUT = 15.0
"""Seconds to wait for imports, erasures, deliveries and pushes under way."""

LOCK_TIMEOUT = 5.0
"""Seconds that a statement waits for a lock of the company."""

EVENTS_LOCK_TIMEOUT = 0.2
"""Seconds that the switch waits for the lock of all events, behind which new events of the cell wait."""

TURN_TIMEOUT = 5.0
"""Seconds to wait for the end of another move. The sessions of a process that was killed end soon."""

_TURN = 0x6D6F7665
_EARLIEST, _FIRST = datetime.min.replace(tzinfo=UTC), UUID(int=0)
_FIRST_USERS = ("users", "heads", "teams", "events")  # the rows that others refer to
_WORK = {"erase": "the erasure", "resolve": "the resolution"}
_SQL = queries("moving")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What a cell says of a company: `moved`, `copying` to another cell, or `here`.

    `is_closed`: not served now. `is_leaving`: it has moved, and something of it is still here. `is_coming`: it is being
    copied here, or has come.
    """

    company_id: int
    turn: int
    state: str
    other: str
    is_closed: bool
    is_leaving: bool
    is_coming: bool


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move did: rows by table that the target had to get, and for how many seconds the company was closed."""

    copied: Mapping[str, int]
    compared: Mapping[str, int]
    closed: float


async def whereabouts(database: Database) -> dict[int, Whereabouts]:
    """Return what a cell says about the companies that moved, by their ids. It is one small look-up."""
    return {row["company_id"]: Whereabouts(*row) for row in await database.rows(_SQL["whereabouts"])}


def cell_of(company_id: int, said: Iterable[Mapping[int, Whereabouts]]) -> str | None:
    """Return the cell that a company moved to, by what all cells say; None: it never moved."""
    moved = [each[company_id] for each in said if company_id in each and each[company_id].state == "moved"]
    return max(moved, key=lambda each: each.turn).other if moved else None


def origin_of(company_id: int, to: str, said: Mapping[str, Mapping[int, Whereabouts]], first: str) -> str:
    """Return the cell that a company leaves or has left for another; `first` is its cell if it never moved.

    It is the cell itself if the company is there and is being copied to another one. Raises `Refusal` if it is there
    without a move, which could continue or be given up, or if another move has not ended.
    """
    for name, each in said.items():
        if company_id in each and each[company_id].is_leaving:
            if each[company_id].other == to:
                return name
            raise _not_ended(company_id, each[company_id].other)
    now = cell_of(company_id, said.values()) or first
    if now != to:
        return now
    left = [
        (each[company_id].turn, name)
        for name, each in said.items()
        if company_id in each and (each[company_id].state, each[company_id].other) == ("moved", to)
    ]
    if left:
        return max(left)[1]
    if company_id in said.get(to, {}) and said[to][company_id].state == "copying":
        return to
    raise Refusal(f"Company {company_id} is in cell {to} already.")


def nothing(_: str) -> None:
    """Say nothing."""


def _not_ended(company_id: int, other: str) -> Refusal:
    command = f"tocsin cell move {company_id} --to {other}"
    return Refusal(f"The move of company {company_id} to cell {other} has not ended. Repeat `{command}`.")


def _is_taken() -> Refusal:
    return Refusal("Another `tocsin cell move` moves the company.")


class _Changed(Exception):  # noqa: N818 - the move is repeated
    """The company could not be closed, locked or compared in time."""


@dataclass(frozen=True, slots=True)
class _Range:
    """Users, teams or events of a company, by their ids."""

    of: str
    ids: Sequence[Any]


async def move(  # noqa: PLR0913, PLR0917 - two databases and their names
    source: Database, target: Database, company_id: int, origin: str, destination: str, say: Say = nothing
) -> Moved:
    """Move a company from the cell `origin` to `destination`, or continue to. Each pool has `CONNECTIONS`.

    Raises `Refusal` if the company is in another cell, ids of it are taken in the target, or it cannot be closed. It
    stays in its cell then.
    """
    async with _turn(source):
        return await _Move(source, target, company_id, origin, destination, say).run()


async def give_up(source: Database, target: Database, company_id: int, origin: str, destination: str) -> None:
    """Delete what a move has copied, if it has not reached the switch: the company stays in the cell `origin`.

    Raises `Refusal` if the company has left.
    """
    async with _turn(source):
        await _Move(source, target, company_id, origin, destination, nothing).give_up()


@contextlib.asynccontextmanager
async def _turn(source: Database) -> AsyncIterator[None]:
    """Let no other command move companies out of this cell. Raises `Refusal` if one does."""
    async with source.connection() as own:

        async def has_turn() -> bool:
            taken: bool = await own.fetchval(_SQL["turn"], _TURN)
            return taken

        try:
            await _patiently(has_turn, "another move has not ended", TURN_TIMEOUT)
        except _Changed as error:
            raise Refusal("Another `tocsin cell move` is moving a company out of this cell.") from error
        try:
            yield
        finally:
            with contextlib.suppress(Exception):  # the end of the session frees it, too
                await own.fetchval(_SQL["end_turn"], _TURN)


class _Move:
    def __init__(  # noqa: PLR0913, PLR0917 - the arguments of `move`
        self, source: Database, target: Database, company_id: int, origin: str, destination: str, say: Say
    ) -> None:
        self._source, self._target, self._company = source, target, company_id
        self._origin, self._destination, self._say = origin, destination, say
        self._copied: dict[str, int] = {}
        self._compared: dict[str, int] = {}
        self._closed = 0.0
        self._turn = 0
        self._since = _EARLIEST
        self._waiting = set[UUID]()
        self._unequal: list[_Range] = []

    async def run(self) -> Moved:
        if not await self._begin():
            try:
                await self._copy()
            except _Changed as error:
                raise Refusal(f"Company {self._company} cannot be copied: {error}. It stays in its cell.") from error
            await self._switch()
        await self._carry()
        await registrations.look_again(self._target)
        await self._copy_audit_entries()
        self._say(f"Company {self._company} is in cell {self._destination}.")
        await self._clean()
        return Moved(self._copied, self._compared, self._closed)

    async def give_up(self) -> None:
        """Delete the copy, and record that the company stays."""
        if await self._begin():
            raise Refusal(f"Company {self._company} is in cell {self._destination}.")
        for of, size in (("users", USERS), ("teams", TEAMS)):
            found = await self._target.rows(_SQL[f"{of}_between"], 0, MAX_ID, self._company)
            for some in _pieces([row["id"] for row in found], size):
                await self._discard(_Range(of, some))
        while found := await self._target.value(_SQL["left_events"], _FIRST, self._company, EVENTS):
            await self._discard(_Range("events", found))
        await self._target.rows(_SQL["expect_no_longer"], self._company, self._turn)
        await self._source.rows(_SQL["stay"], self._company, self._turn)

    async def _discard(self, part: _Range) -> None:
        async with self._target.transaction() as target:
            await self._receive(target)
            ids = await self._events(target, part)
            if part.of != "events":
                await target.execute(_SQL[f"discard_{part.of}"], self._company, part.ids)
            await target.execute(_SQL["discard_events"], self._company, ids)

    async def _begin(self) -> bool:
        """Record the move; return whether the company has been switched before."""
        mine = await self._source.row(_SQL["standing"], self._company)
        theirs = await self._target.row(_SQL["standing"], self._company)
        last = max((turn for row in (mine, theirs) if row for turn in (row["turn"], row["received_turn"])), default=0)
        if mine and mine["state"] == "moved" and mine["turn"] == last:
            if mine["other"] != self._destination:
                raise Refusal(f"Company {self._company} is in cell {mine['other']}.")
            self._turn = last
            return True
        if mine and mine["state"] == "copying" and mine["other"] != self._destination:
            raise Refusal(
                f"Company {self._company} is being copied to cell {mine['other']}. Continue that, or give it up:"
                f" `tocsin cell move {self._company} --to {self._origin}`."
            )
        if theirs and theirs["is_leaving"]:
            raise _not_ended(self._company, theirs["other"])
        if theirs and mine and theirs["state"] == "moved" and theirs["other"] != self._origin:
            raise Refusal(f"Company {self._company} is in cell {theirs['other']}.")
        self._turn = last + 1
        known = (mine["turn"], mine["state"]) if mine else (None, None)
        if not await self._source.rows(_SQL["begin"], self._company, self._turn, self._destination, *known):
            raise _is_taken()
        await self._target.rows(_SQL["expect"], self._company, self._turn, self._origin)
        return False

    async def _copy(self) -> None:
        """Copy what the target does not have, while the company is in use, and then what has changed."""
        await registrations.release_phones(self._source, {self._destination: self._target})
        await self._source.rows(_SQL["forget_rewritten"])
        await _patiently(self._is_noting, "events are locked")
        since, self._waiting = await self._source.value(_SQL["since"]), await self._waiting_now()
        async for part in self._parts():
            for table, n, _ in await self._bring(part):
                self._compared[table] = self._compared.get(table, 0) + n
            if part.of == "users" and part.ids:
                self._say(f"copied up to user {part.ids[-1]}")
        await self._bring_keys(_EARLIEST, with_users=False)
        await self._bring_unequal()
        self._since = since
        for _ in range(ROUNDS):
            if await self._follow() <= FEW:
                break

    async def _is_noting(self) -> bool:
        with contextlib.suppress(Locked):
            async with self._source.transaction() as source:
                await _limit_locks(source, EVENTS_LOCK_TIMEOUT)
                await source.execute(_SQL["hold_events"])
                await source.execute(_SQL["note_rewritten"])
            return True
        return False

    async def _follow(self, source: Connection | None = None) -> int:
        """Bring what has changed since the last time, or the copy; return the number of users."""
        store = source or self._source
        [[since]] = await fetch(store, _SQL["since"])
        waiting = await self._waiting_now(source)
        count = 0
        async for ids in self._changed_users(store):
            count += len(ids)
            for some in _pieces(ids, USERS):
                await self._bring(_Range("users", some), source)
        async for part in self._ranges("teams", TEAMS):
            await self._bring(part, source)
        events = await self._changed_events(store, self._waiting - waiting)
        for some in _pieces(events, EVENTS):
            await self._bring(_Range("events", some), source)
        await self._bring_rows(store, "deliveries", "next_settled", (self._since, _FIRST, _FIRST))
        if source is None:
            await self._bring_keys(self._since, with_users=True)
        await self._bring_unequal(source)
        if source and self._unequal:
            raise _Changed(f"{self._unequal[0].of} differ in the two cells")
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

    async def _switch(self) -> None:
        """Close the company and make the target its cell."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                began = time.monotonic()
                async with self._closing():
                    await self._leave()
                self._closed += time.monotonic() - began
            except (_Changed, Unavailable) as error:
                self._closed += time.monotonic() - began
                self._say(f"attempt {attempt}: {error}")
                if attempt == ATTEMPTS:
                    raise Refusal(
                        f"Company {self._company} cannot be closed: {error}. It stays in its cell."
                    ) from error
            else:
                return

    @contextlib.asynccontextmanager
    async def _closing(self) -> AsyncIterator[None]:
        """Close the company for the block. If this process dies, it is served again after `CLOSED_FOR`."""
        await self._wait_until_idle()
        await registrations.release_phones(self._source, {self._destination: self._target})
        await self._source.rows(_SQL["close"], self._company, CLOSED_FOR)
        renewing = asyncio.create_task(self._renew())
        try:
            await asyncio.sleep(CLOSE_DELAY)
            await self._follow()
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            with contextlib.suppress(Unavailable):  # it opens by itself
                await self._source.rows(_SQL["reopen"], self._company)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_INTERVAL)
            with contextlib.suppress(Unavailable):
                await self._source.rows(_SQL["stay_closed"], self._company, CLOSED_FOR)

    async def _wait_until_idle(self) -> None:
        """Wait for imports, erasures and resolutions. Raises `Refusal` if one has failed, which has to be repeated."""
        if failed := await self._source.rows(_SQL["failed"], self._company):
            said = "; ".join(f"{_WORK[row['task']]} {row['id']}: {row['reason']}" for row in failed)
            command = f"tocsin replay {' '.join(str(row['id']) for row in failed)} --cell {self._origin}"
            raise Refusal(
                f"Company {self._company} stays in its cell, because work has failed that has to end first: {said}."
                f" Repeat it by `{command}`, and then the move."
            )
        await _patiently(self._is_idle, "imports, erasures or resolutions do not end")

    async def _is_idle(self) -> bool:
        busy: int = await self._source.value(_SQL["busy"], self._company)
        return busy == 0

    async def _leave(self) -> None:
        """Lock the rows of the company, bring what changed, and let the company go."""
        async with self._source.transaction() as source, self._target.transaction() as target:
            for each in (source, target):
                await each.execute(_SQL["still"], retention._LOCK)  # noqa: SLF001 - the lock of its steps
            await _limit_locks(source, LOCK_TIMEOUT)
            await self._lock(source)
            await self._follow(source)
            await source.execute(_SQL["stash_rest"], self._company)
            pending = await self._pending(source)
            await self._stash(source, pending)
            await source.execute(_SQL["release"], self._company)
            await _limit_locks(source, EVENTS_LOCK_TIMEOUT)
            await source.execute(_SQL["hold_events"])
            kept = {row["id"] for row in pending}
            late = [row for row in await self._pending(source) if row["id"] not in kept]
            await self._stash(source, late)
            await source.execute(_SQL["stash_posts"], self._company)
            await source.execute(_SQL["stash_keys"], self._company, self._since)
            await self._check_idle(source)
            if await source.execute(_SQL["switch"], self._company, self._turn) != "UPDATE 1":
                raise _Changed("the company did not stay closed")

    async def _lock(self, source: Connection) -> None:
        """Lock users, heads and teams, then work that waits; requests and deliveries that began before end first."""

        async def are_pushes_locked() -> bool:
            under_way: int = await source.fetchval(_SQL["lock_deliveries"], self._company)
            return under_way == 0

        for name in ("lock_users", "lock_heads", "lock_teams"):
            await source.execute(_SQL[name], self._company)
        await source.fetch(_SQL["lock_jobs"], [row["id"] for row in await self._pending(source)])
        await _patiently(are_pushes_locked, "pushes do not end")
        await self._check_idle(source)

    async def _check_idle(self, source: Connection) -> None:
        """Raise `_Changed` if work is under way that changes events, which are not locked."""
        if await source.fetchval(_SQL["busy"], self._company):
            raise _Changed("an import, erasure or resolution began")

    async def _pending(self, source: Database | Connection) -> list[Any]:
        return list(await fetch(source, _SQL["pending"], self._company))

    async def _stash(self, source: Connection, pending: Sequence[Any]) -> None:
        """Keep events that wait, with their jobs, for the target.

        A worker that has one of the jobs waits for the locked heads, and finds no users after the switch.
        """
        for some in _pieces(pending, EVENTS):
            ids = [row["id"] for row in some]
            free = {row["id"] for row in await source.fetch(_SQL["lock_jobs"], ids)}
            own = [row["id"] for row in some if row["is_own"] and (row["is_dead"] or row["id"] in free)]
            tables = _by_table(await source.fetch(_SQL["stash_events"], self._company, ids))
            await self._check_free(self._target, "events", tables.get("events", []))
            await self._check_undivided(self._target, ids, are_pending=True)
            await source.execute(_SQL["stash_jobs"], self._company, ids, own)
            await source.execute(_SQL["discard_events"], self._company, own)

    async def _parts(self) -> AsyncIterator[_Range]:
        """Yield the users, the teams, and the events without recipients."""
        async for part in self._ranges("users", ENTRIES):
            yield part
        async for part in self._ranges("teams", TEAMS):
            yield part
        first = _FIRST
        while ids := await self._source.value(_SQL["next_events"], first, self._company, EVENTS):
            yield _Range("events", ids)
            first = ids[-1]

    async def _ranges(self, of: str, size: int) -> AsyncIterator[_Range]:
        """Yield ranges of users or teams, with those that only the target has."""
        after = 0
        while after < MAX_ID:
            mine = await self._source.value(_SQL[f"next_{of}"], after, self._company, size)
            last = mine[-1] if mine else MAX_ID
            theirs = await self._target.rows(_SQL[f"{of}_between"], after, last, self._company)
            yield _Range(of, sorted({*mine, *(row["id"] for row in theirs)}))
            after = last

    async def _bring(self, part: _Range, source: Connection | None = None) -> list[tuple[str, int, str]]:
        """Make a range of the target like that of the source; return the count and the digest of each table.

        Without a connection, the source is read as it is at one time. Ranges can differ afterwards, until the target
        has all users of their events.
        """
        if source is None:
            async with (
                self._source.connection() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                return await self._bring(part, connection)
        mine, theirs = await asyncio.gather(self._digests(source, part), self._digests(self._target, part))
        if mine != theirs:
            await self._replace(source, part, mine)
        return mine

    async def _digests(self, store: Database | Connection, part: _Range) -> list[tuple[str, int, str]]:
        """Return the count and the digest of each table in a range; that of users has their events, too."""
        found, events = [], await self._events(store, part)
        if part.of != "events":
            found += await fetch(store, _SQL[f"digest_of_{part.of}"], self._company, part.ids)
        if part.of != "teams":
            found += await fetch(store, _SQL["digest_of_events"], self._company, events, part.of == "users")
        return [tuple(row) for row in found]

    async def _rows(
        self, source: Connection, part: _Range, events: Sequence[UUID], others: Sequence[UUID]
    ) -> dict[str, list[str]]:
        """Return the rows of a range by table, with its events, and those of other events which the target has."""
        rows = []
        if part.of != "events":
            rows += await source.fetch(_SQL[f"rows_of_{part.of}"], self._company, part.ids)
        for ids, are_theirs in ((events, part.of == "users"), ([*{*others} - {*events}], False)):
            rows += await source.fetch(_SQL["rows_of_events"], self._company, ids, are_theirs)
        return _by_table(rows)

    async def _events(self, store: Database | Connection, part: _Range) -> Sequence[UUID]:
        """Return the events in a range, or in the inboxes of its users."""
        if part.of != "users":
            return part.ids if part.of == "events" else []
        [row] = await fetch(store, _SQL["events_of_users"], self._company, part.ids)
        ids: list[UUID] = row[0]
        return ids

    async def _replace(self, source: Connection, part: _Range, digests: list[tuple[str, int, str]]) -> None:
        """Replace a range of the target by that of the source, which has these digests, in one transaction."""
        async with self._target.transaction() as target:
            await self._receive(target)
            mine, theirs = await self._events(source, part), await self._events(target, part)
            tables = await self._rows(source, part, mine, theirs)
            ids = sorted({*mine, *theirs})
            for table in ("users", "teams", "events"):
                await self._check_free(target, table, tables.get(table, []))
            await self._check_undivided(target, ids, are_pending=False)
            if part.of != "events":
                await target.execute(_SQL[f"discard_{part.of}"], self._company, part.ids)
            await target.execute(_SQL["discard_events"], self._company, ids)
            await self._put(target, tables)
            if await self._digests(target, part) != digests:
                self._unequal.append(part)

    async def _receive(self, target: Connection) -> None:
        row = await target.fetchrow(_SQL["receive"], self._company, self._turn)
        if not (row and row["is_expected"]):
            raise _is_taken()

    async def _put(self, target: Connection, tables: Mapping[str, Sequence[str]]) -> None:
        """Write rows of the source into the target, as they were."""
        for table in sorted(tables, key=lambda each: each not in _FIRST_USERS):
            company = (self._company,) if table in {"events", "recipients"} else ()
            await target.execute(_SQL[f"put_{table}"], _json(tables[table]), *company)
            self._copied[table] = self._copied.get(table, 0) + len(tables[table])

    async def _check_free(self, target: Database | Connection, table: str, rows: Sequence[str]) -> None:
        """Raise `Refusal` if ids of users, teams or events belong to others in the target."""
        taken = [str(row["id"]) for row in await fetch(target, _SQL[f"taken_{table}"], _json(rows))]
        if taken:
            raise Refusal(f"Cell {self._destination} has other {table} with the ids {', '.join(taken)}.")

    async def _check_undivided(self, target: Database | Connection, ids: Sequence[UUID], *, are_pending: bool) -> None:
        """Raise `Refusal` if events for several companies wait in one cell, and are delivered in the other."""
        found = [str(row["id"]) for row in await fetch(target, _SQL["divided_events"], ids, are_pending)]
        if found:
            raise Refusal(f"Events wait in one of the cells, and are delivered in the other: {', '.join(found)}.")

    async def _carry(self) -> None:
        """Bring the work that waited at the switch. The target notes in the same transaction what it has."""
        row = await self._target.row(_SQL["standing"], self._company)
        received = row["received"] if row and row["received_turn"] == self._turn else 0
        while rows := await self._source.rows(_SQL["next_rows"], self._company, received, ROWS):
            async with self._target.transaction() as target:
                await self._receive(target)
                received = rows[-1]["number"]
                if not await target.fetch(_SQL["received"], self._company, received, self._turn):
                    raise _is_taken()
                await self._put(target, _by_table(rows))
            await self._source.rows(_SQL["forget_rows"], self._company, received)
        await self._source.rows(_SQL["forget_rows"], self._company, received)
        await self._target.rows(_SQL["received"], self._company, received, self._turn)

    async def _copy_audit_entries(self) -> None:
        """Copy the audit entries of the company. Those of the source stay: its log is append-only."""
        after = _EARLIEST, _FIRST
        while rows := await self._source.rows(_SQL["next_audit_entries"], self._company, *after, ROWS):
            await self._target.rows(_SQL["put_audit_entries"], _json([row["row"] for row in rows]))
            after = rows[-1]["happened_at"], rows[-1]["id"]

    async def _clean(self) -> None:
        """Delete what is left in the source, in steps."""
        while ids := await self._source.value(_SQL["next_moved_users"], self._company, ROWS):
            async with self._source.transaction() as source:
                events = await source.fetchval(_SQL["forget_users"], ids)
                for some in _pieces(events, EVENTS):
                    await source.execute(_SQL["shrink_recipients"], some)
                    await source.execute(_SQL["discard_events"], self._company, some)
                await source.execute(_SQL["forget_ids"], ids)
        await self._source.rows(_SQL["forget_jobs"], self._company)
        first = _FIRST
        while found := await self._source.value(_SQL["left_events"], first, self._company, EVENTS):
            await self._source.rows(_SQL["discard_events"], self._company, found)
            first = found[-1]
        await self._source.rows(_SQL["forget_rest"], self._company)


async def _patiently(is_done: Callable[[], Awaitable[bool]], problem: str, seconds: float = IDLE_TIMEOUT) -> None:
    end = time.monotonic() + seconds
    while not await is_done():
        if time.monotonic() > end:
            raise _Changed(problem)
        await asyncio.sleep(0.1)


async def _limit_locks(connection: Connection, seconds: float) -> None:
    await connection.execute(
        f"set local lock_timeout = {round(1000 * seconds)}; set local idle_in_transaction_session_timeout = 0"
    )


def _by_table(rows: Iterable[Any]) -> dict[str, list[str]]:
    tables: dict[str, list[str]] = {}
    for row in rows:
        tables.setdefault(row["table_name"], []).append(row["row"])
    return tables


def _json(rows: Sequence[str]) -> str:
    return "[" + ",".join(rows) + "]"


def _pieces(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
