"""Phones in several cells: a token that was registered in another cell later leaves its user in this one.

Each cell remembers when it registered which token, also those that have left for thirty days. Each looks at what the
others registered since its last look, so that a cell that was away makes up for it. The later registration wins, by the
clocks of the two servers; a registration of the same microsecond changes nothing. One that an import or the move of a
company brings may be earlier than those that its cell has seen: the cell with the later one notes that again.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from tocsin.backoff import Backoff
from tocsin.db.admission import KIND
from tocsin.db.pool import Database
from tocsin.db.statements import queries

INTERVAL, CHECK_INTERVAL = 10.0, 1.0
"""Seconds between two looks, and between two checks whether a database is there, which look if it was away."""

OVERLAP = timedelta(minutes=1)
"""How far a look begins before the end of the one before: a transaction may still have been open."""

BATCH_SIZE = 1_000
"""Tokens of a step."""

_EARLIEST = datetime.min.replace(tzinfo=UTC) + 2 * OVERLAP
_SQL = queries("registrations")

log = structlog.get_logger(__name__)


async def watch(databases: Callable[[], Mapping[str, Database]], only: str | None = None) -> None:
    """Release in each of the cells that are open, or in one of them, the phones that others registered, forever.

    A cell that opens, or comes back after an outage, looks at once: pushes have waited there for users whose phones may
    have registered in other cells. Several processes can call this. All look at the same time, so that a cell that
    hangs delays the others by one timeout.
    """
    KIND.set("phones of other cells")
    looking: dict[str, Backoff] = {}
    looked_at = -math.inf

    def is_new_or_away(name: str) -> bool:
        return name not in looking or bool(looking[name].reason)

    async def attempt(name: str, step: Callable[[], Awaitable[object]]) -> None:
        await looking.setdefault(name, Backoff("phones of other cells")).attempt(step)

    async def look(name: str, own: Database, others: Iterable[tuple[str, Database]], *, is_due: bool) -> None:
        is_due = is_due or is_new_or_away(name)
        await attempt(name, partial(_add_older, own))
        for cell, other in others if not looking[name].reason else ():
            if is_due or is_new_or_away(f"{name} {cell}"):
                await attempt(f"{name} {cell}", partial(_release, own, cell, other))

    while True:
        now = time.monotonic()
        if is_due := now - looked_at >= INTERVAL:
            looked_at = now
        cells = list(databases().items())
        await asyncio.gather(
            *(
                look(name, own, cells[at + 1 :] + cells[:at], is_due=is_due)  # each begins with another one
                for at, (name, own) in enumerate(cells)
                if only in {None, name}
            )
        )
        await asyncio.sleep(min(INTERVAL, CHECK_INTERVAL))


async def release_phones(own: Database, others: Mapping[str, Database]) -> int:
    """Remove the devices of this cell whose tokens were registered in another one later; return their number."""
    await _add_older(own)
    return sum([await _release(own, cell, other) for cell, other in others.items()])


async def _release(own: Database, cell: str, other: Database) -> int:
    seen = await own.value(_SQL["seen"], cell)
    last, total = ((seen or _EARLIEST) - OVERLAP, ""), 0
    while found := await other.rows(_SQL["later"], *last, BATCH_SIZE):
        columns = ([row[name] for row in found] for name in ("digest", "registered_at", "noted_at"))
        released = await own.rows(_SQL["release"], *columns, len(found))
        if released:
            log.info("released phones that another cell registered", cell=cell, phones=len(released))
        total += len(released)
        last = found[-1]["noted_at"], found[-1]["digest"]
        await own.rows(_SQL["see"], cell, last[0])
    return total


async def _add_older(own: Database) -> None:
    """Add the devices that were registered before registrations were remembered, once."""
    if await own.value(_SQL["seen"], ""):
        return
    last: str | None = ""
    while last is not None:
        last = await own.value(_SQL["add_older"], last, BATCH_SIZE)
    await own.rows(_SQL["see"], "", datetime.now(UTC))
