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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tocsin import registrations, retention
from tocsin.batches import pieces
from tocsin.copying import (
    EARLIEST,
    EVENTS,
    FIRST,
    ROWS,
    TEAMS,
    USERS,
    Changed,
    Copy,
    Say,
    Section,
    as_json,
    by_table,
    is_taken,
)
from tocsin.db.connections import Connection, limit_idleness, limit_locks
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import Locked, Refusal, Unavailable
from tocsin.ids import MAX_ID
from tocsin.whereabouts import not_ended

CONNECTIONS = 12
"""The size of the pool of each database. Four connections are used at the same time, and long ones count thrice."""

PATIENCE = 120.0
"""The timeout of the statements of these pools."""

ROUNDS, FEW = 5, 100
"""How often changes are copied before the company is closed, until at most so many users have changed."""

ATTEMPTS = 3
"""How often a company is closed if it cannot be compared or locked in time."""

PAUSE = 10.0
"""Seconds until the second attempt after an outage of a database; the pause before the third one is twice as long."""

CLOSE_DELAY = 2.0
"""Seconds between the closing of a company and the locks: processes look every second which companies are closed."""

CLOSED_FOR, RENEW_INTERVAL = 10.0, 2.0
"""Seconds until a company whose move was interrupted is served again, and between two extensions."""

IDLE_TIMEOUT = 15.0
"""Seconds to wait for imports, erasures, deliveries and pushes under way."""

LOCK_TIMEOUT = 5.0
"""Seconds that a statement waits for a lock of the company, and the closing for work that began before it."""

EVENTS_LOCK_TIMEOUT = 0.2
"""Seconds that the switch waits for the lock of all events, behind which new events of the cell wait."""

COMPANY_HELD_FOR, EVENTS_HELD_FOR = 120.0, 5.0
"""Seconds after which the servers end the switch of a process that hangs and has locked the company, or all events."""

TURN_TIMEOUT = 5.0
"""Seconds to wait for the end of another move. The sessions of a process that was killed end soon."""

_TURN = 0x6D6F7665
_WORK = {"erase": "the erasure", "resolve": "the resolution"}
_SQL = queries("moving")


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move did: rows by table that the target had to get, and for how many seconds the company was closed."""

    copied: Mapping[str, int]
    compared: Mapping[str, int]
    closed: float


def nothing(_: str) -> None:
    """Say nothing."""


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
        except Changed as error:
            raise Refusal("Another `tocsin cell move` is moving a company out of this cell.") from error
        try:
            yield
        finally:
            with contextlib.suppress(Exception):  # the end of the session frees it, too
                await own.fetchval(_SQL["end_turn"], _TURN)


class _Move(Copy):
    closed = 0.0
    """Seconds for which the company was closed."""

    async def run(self) -> Moved:
        if not await self._begin():
            try:
                await self._copy()
            except Changed as error:
                raise Refusal(f"Company {self._company} cannot be copied: {error}. It stays in its cell.") from error
            await self._switch()
        await self._carry()
        await self._copy_audit_entries()
        self._say(f"Company {self._company} is in cell {self._destination}.")
        await self._clean()
        return Moved(self._copied, self._compared, self.closed)

    async def give_up(self) -> None:
        """Delete the copy, and record that the company stays."""
        if await self._begin():
            raise Refusal(f"Company {self._company} is in cell {self._destination}.")
        for of, size in (("users", USERS), ("teams", TEAMS)):
            found = await self._target.rows(_SQL[f"{of}_between"], 0, MAX_ID, self._company)
            for some in pieces([row["id"] for row in found], size):
                await self._discard(Section(of, some))
        while found := await self._target.value(_SQL["left_events"], FIRST, self._company, EVENTS):
            await self._discard(Section("events", found))
        await self._target.rows(_SQL["expect_no_longer"], self._company, self._turn)
        await self._source.rows(_SQL["stay"], self._company, self._turn)

    async def _discard(self, part: Section) -> None:
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
            raise not_ended(self._company, theirs["other"])
        if theirs and mine and theirs["state"] == "moved" and theirs["turn"] > mine["received_turn"]:
            raise Refusal(f"Company {self._company} is in cell {theirs['other']}.")
        self._turn = last + 1
        known = (mine["turn"], mine["state"]) if mine else (None, None)
        if not await self._source.rows(_SQL["begin"], self._company, self._turn, self._destination, *known):
            raise is_taken()
        await self._target.rows(_SQL["expect"], self._company, self._turn, self._origin)
        return False

    async def _copy(self) -> None:
        """Copy what the target does not have, while the company is in use, and then what has changed."""
        await self._release_phones()
        await self._source.rows(_SQL["forget_rewritten"])
        await _patiently(self._is_noting, "events are locked")
        since, self._waiting = await self._source.value(_SQL["since"]), await self._waiting_now()
        async for part in self._parts():
            for table, n, *_ in await self._bring(part):
                self._compared[table] = self._compared.get(table, 0) + n
            if part.of == "users" and part.ids:
                self._say(f"copied up to user {part.ids[-1]}")
        await self._bring_keys(EARLIEST, with_users=False)
        await self._bring_unequal()
        self._since = since
        for _ in range(ROUNDS):
            if await self._follow() <= FEW:
                break

    async def _release_phones(self) -> None:
        await registrations.release_phones(self._target, {self._origin: self._source})
        await registrations.release_phones(self._source, {self._destination: self._target})

    async def _is_noting(self) -> bool:
        with contextlib.suppress(Locked):
            async with self._source.transaction() as source:
                await limit_locks(source, EVENTS_LOCK_TIMEOUT)
                await source.execute(_SQL["hold_events"])
                await source.execute(_SQL["note_rewritten"])
            return True
        return False

    async def _switch(self) -> None:
        """Close the company and make the target its cell."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                began = time.monotonic()
                async with self._closing():
                    await self._leave()
                self.closed += time.monotonic() - began
            except (Changed, Unavailable) as error:
                self.closed += time.monotonic() - began
                problem = error.reason if isinstance(error, Unavailable) else str(error)
                if attempt == ATTEMPTS:
                    self._say(f"attempt {attempt}: {problem}")
                    raise Refusal(
                        f"Company {self._company} cannot be closed: {problem}. It stays in its cell."
                    ) from error
                pause = PAUSE * 2 ** (attempt - 1) if isinstance(error, Unavailable) else 0
                self._say(
                    f"attempt {attempt}: {problem}" + (f"; the next one begins in {pause:.0f} s" if pause else "")
                )
                await asyncio.sleep(pause)
            else:
                return

    @contextlib.asynccontextmanager
    async def _closing(self) -> AsyncIterator[None]:
        """Close the company for the block. If this process dies, it is served again after `CLOSED_FOR`."""
        await self._wait_until_idle()
        await self._source.rows(_SQL["close"], self._company, CLOSED_FOR)
        renewing = asyncio.create_task(self._renew())
        try:
            await asyncio.sleep(CLOSE_DELAY)
            await self._follow()
            await _patiently(self._is_idle, "imports, erasures or resolutions do not end", LOCK_TIMEOUT)
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
                await retention.suspend(each)
                await limit_idleness(each, COMPANY_HELD_FOR)
            async with _in_use(target):
                await self._let_go(source)

    async def _let_go(self, source: Connection) -> None:
        await limit_locks(source, LOCK_TIMEOUT)
        await self._lock(source)
        await self._release_phones()
        await self._follow(source)
        await source.execute(_SQL["stash_rest"], self._company)
        pending = await self._pending(source)
        await self._stash(source, pending)
        await source.execute(_SQL["release"], self._company)
        posts, keys, switch = [await source.prepare(_SQL[name]) for name in ("stash_posts", "stash_keys", "switch")]
        await limit_locks(source, EVENTS_LOCK_TIMEOUT)
        await limit_idleness(source, EVENTS_HELD_FOR)  # the server does not count the time after it has prepared
        await source.execute(_SQL["hold_events"])
        kept = {row["id"] for row in pending}
        late = [row for row in await self._pending(source) if row["id"] not in kept]
        await self._stash(source, late)
        await posts.fetch(self._company)
        await keys.fetch(self._company, self._since)
        await self._check_idle(source)
        await switch.fetch(self._company, self._turn)
        if switch.get_statusmsg() != "UPDATE 1":
            raise Changed("the company did not stay closed")

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
        """Raise `Changed` if work is under way that changes events, which are not locked."""
        if await source.fetchval(_SQL["busy"], self._company):
            raise Changed("an import, erasure or resolution began")

    async def _stash(self, source: Connection, pending: Sequence[Any]) -> None:
        """Keep events that wait, with their jobs, for the target.

        A worker that has one of the jobs waits for the locked heads, and finds no users after the switch.
        """
        for some in pieces(pending, EVENTS):
            ids = [row["id"] for row in some]
            free = {row["id"] for row in await source.fetch(_SQL["lock_jobs"], ids)}
            own = [row["id"] for row in some if row["is_own"] and (row["is_dead"] or row["id"] in free)]
            tables = by_table(await source.fetch(_SQL["stash_events"], self._company, ids))
            await self._check_free(self._target, "events", tables.get("events", []))
            await self._check_undivided(self._target, ids, are_pending=True)
            await source.execute(_SQL["stash_jobs"], self._company, ids, own)
            await source.execute(_SQL["discard_events"], self._company, own)

    async def _carry(self) -> None:
        """Bring the work that waited at the switch. The target notes in the same transaction what it has."""
        row = await self._target.row(_SQL["standing"], self._company)
        received = row["received"] if row and row["received_turn"] == self._turn else 0
        while rows := await self._source.rows(_SQL["next_rows"], self._company, received, ROWS):
            async with self._target.transaction() as target:
                await self._receive(target)
                received = rows[-1]["number"]
                if not await target.fetch(_SQL["received"], self._company, received, self._turn, self._origin):
                    raise is_taken()
                await self._put(target, by_table(rows))
            await self._source.rows(_SQL["forget_rows"], self._company, received)
        await self._source.rows(_SQL["forget_rows"], self._company, received)
        await self._target.rows(_SQL["received"], self._company, received, self._turn, self._origin)

    async def _copy_audit_entries(self) -> None:
        """Copy the audit entries of the company. Those of the source stay: its log is append-only."""
        after = EARLIEST, FIRST
        while rows := await self._source.rows(_SQL["next_audit_entries"], self._company, *after, ROWS):
            await self._target.rows(_SQL["put_audit_entries"], as_json([row["row"] for row in rows]))
            after = rows[-1]["happened_at"], rows[-1]["id"]

    async def _clean(self) -> None:
        """Delete what is left in the source, in steps."""
        while ids := await self._source.value(_SQL["next_moved_users"], self._company, ROWS):
            async with self._source.transaction() as source:
                events = await source.fetchval(_SQL["forget_users"], ids)
                for some in pieces(events, EVENTS):
                    await source.execute(_SQL["shrink_recipients"], some)
                    await source.execute(_SQL["discard_events"], self._company, some)
                await source.execute(_SQL["forget_ids"], ids)
        await self._source.rows(_SQL["forget_jobs"], self._company)
        first = FIRST
        while found := await self._source.value(_SQL["left_events"], first, self._company, EVENTS):
            await self._source.rows(_SQL["discard_events"], self._company, found)
            first = found[-1]
        await self._source.rows(_SQL["forget_rest"], self._company)


@contextlib.asynccontextmanager
async def _in_use(connection: Connection) -> AsyncIterator[None]:
    """Use a connection from time to time, so that the server ends its transaction only if this process hangs."""
    is_over = asyncio.Event()

    async def use() -> None:
        while not is_over.is_set():
            try:
                async with asyncio.timeout(COMPANY_HELD_FOR / 4):
                    await is_over.wait()
            except TimeoutError:
                await connection.execute("select")

    using = asyncio.create_task(use())
    try:
        yield
    finally:
        is_over.set()
        await asyncio.gather(using, return_exceptions=True)


async def _patiently(is_done: Callable[[], Awaitable[bool]], problem: str, seconds: float = IDLE_TIMEOUT) -> None:
    end = time.monotonic() + seconds
    while not await is_done():
        if time.monotonic() > end:
            raise Changed(problem)
        await asyncio.sleep(0.1)
