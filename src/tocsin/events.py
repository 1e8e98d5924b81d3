"""Events: accepted once and for all, and what became of them.

An event, what it is about, and the job to deliver it are one statement and so one transaction: it is on disk wholly
before its producer is told that it was accepted.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from tocsin.catalogue import Checked
from tocsin.database import Database, queries
from tocsin.directory import LARGEST_ID, people, unknown
from tocsin.doorbell import Doorbell, wait
from tocsin.errors import Fault, Invalid, NotFound, Unavailable
from tocsin.ids import new_id
from tocsin.notifications import to_json

SETTLED = frozenset({"delivered", "failed", "cancelled"})
"""The states that an event stays in."""

MOST_AT_ONCE = 200
"""How many events share a transaction at most."""

Row = tuple[UUID, str | None, int | None, str, int | None, str, str, str, str, str]
Waiting = tuple[Row, "asyncio.Future[list[asyncpg.Record]]"]

_LOOK_AGAIN = 0.25
_SQL = queries("events")


@dataclass(frozen=True, slots=True)
class Draft:
    """An event that was checked, and whom it is for. `service` posted it; none: its actor did."""

    checked: Checked
    users: Sequence[int]
    teams: Sequence[int]
    service: str | None
    company_id: int | None
    about: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Reader:
    """Who asks about events: a service sees its own, one bound to a company those posted for it; None sees all."""

    service: str | None = None
    company_id: int | None = None


class Intake:
    """Accepts events: those that are posted while others are being stored share one transaction.

    Half of what a transaction costs is its commit, and a statement costs little more for ten events than for one.
    """

    def __init__(self, database: Database, doorbell: Doorbell) -> None:
        self._database = database
        self._doorbell = doorbell
        self._waiting: list[Waiting] = []
        self._storing: asyncio.Task[None] | None = None

    async def accept(self, draft: Draft) -> UUID:
        """Store an event durably and return its id; raises `Invalid` where it names somebody unknown."""
        filled = await _people_of(self._database, draft) if draft.checked.unfilled else {}
        id_ = new_id()
        strangers: asyncio.Future[list[asyncpg.Record]] = asyncio.get_running_loop().create_future()
        self._waiting.append((_row(id_, draft, filled), strangers))
        if self._storing is None or self._storing.done():
            self._storing = asyncio.create_task(self._store())
        if unknown_ids := await strangers:
            raise Invalid(_faults_of(unknown_ids, draft.users, draft.teams))
        return id_

    async def _store(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
            await self._store_together(batch)

    async def _store_together(self, batch: Sequence[Waiting]) -> None:
        try:
            columns = zip(*(row for row, _ in batch), strict=True)
            strangers = await self._database.rows(_SQL["accept"], *map(list, columns))
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must be told
            await self._tell(batch, error)
            return
        self._doorbell.ring("direct")
        for row, waiting in batch:
            if not waiting.done():
                waiting.set_result([stranger for stranger in strangers if stranger["event_id"] == row[0]])

    async def _tell(self, batch: Sequence[Waiting], error: Exception) -> None:
        """Tell an outage to all who wait; what else there is, each has only of its own event."""
        if len(batch) > 1 and not isinstance(error, Unavailable):
            for alone in batch:
                await self._store_together([alone])
            return
        for _, waiting in batch:
            if not waiting.done():
                waiting.set_exception(error)


async def unknown_recipients(
    database: Database, users: Sequence[Any], teams: Sequence[Any], company_id: int | None
) -> list[Fault]:
    """Return a fault for each id that names nobody the caller may address; what is no id at all is passed over."""
    ids = [[id_ for id_ in given if type(id_) is int and 0 < id_ <= LARGEST_ID] for given in (users, teams)]
    return _faults_of(await database.rows(_SQL["unknown"], *ids, company_id), users, teams)


async def state(
    database: Database, doorbell: Doorbell, id_: UUID, reader: Reader, *, seconds: float = 0
) -> dict[str, Any]:
    """Return what became of an event as soon as that is settled, at the latest after `seconds`; or raise `NotFound`."""
    end = time.monotonic() + seconds
    while True:
        bell = doorbell.listen_for("settled")
        row = await database.row(_SQL["event"], id_, reader.service, reader.company_id)
        if row is None:
            raise NotFound
        left = end - time.monotonic()
        if row["state"] in SETTLED or left <= 0:
            break
        await wait(bell, min(left, _LOOK_AGAIN))
    answer = {
        "id": str(row["id"]),
        "type": row["kind"].partition("/")[0],
        "state": row["state"],
        "recipients": row["recipients"],
        "read": await database.value(_SQL["readers"], id_),
    }
    return answer | ({"reason": row["reason"]} if row["reason"] else {})


def _row(id_: UUID, draft: Draft, filled: Mapping[str, Any]) -> Row:
    """Return an event as the statement takes it: one value a column, arrays as text."""
    checked = draft.checked
    return (
        id_,
        draft.service,
        draft.company_id,
        checked.kind,
        checked.actor,
        f"{{{','.join(map(str, dict.fromkeys(draft.users)))}}}",
        f"{{{','.join(map(str, dict.fromkeys(draft.teams)))}}}",
        to_json({**checked.data, **filled}),
        to_json(checked.params),
        to_json(list(dict.fromkeys([*checked.subjects, *draft.about]))),
    )


async def _people_of(database: Database, draft: Draft) -> Mapping[str, Any]:
    """Return the user objects for those fields of `data` that hold only a user's id."""
    wanted = draft.checked.unfilled
    known = await people(database, wanted.values(), draft.company_id)
    faults = [
        Fault(f"data.{field}", "unknown", f"The data.{field} field names nobody who is known.")
        for field, id_ in wanted.items()
        if id_ not in known
    ]
    if faults:
        raise Invalid([*faults, *await unknown_recipients(database, draft.users, draft.teams, draft.company_id)])
    return {field: known[id_] for field, id_ in wanted.items()}


def _faults_of(strangers: Sequence[asyncpg.Record], users: Sequence[Any], teams: Sequence[Any]) -> list[Fault]:
    return [
        fault
        for field, given in (("users", users), ("teams", teams))
        for fault in unknown(f"notify.{field}", given, {row["id"] for row in strangers if row["field"] == field})
    ]
