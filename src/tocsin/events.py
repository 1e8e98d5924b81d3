"""Events: accepted once and for all, and what became of them.

An event, what it is about, and the job to deliver it are one statement and so one transaction: it is on disk wholly
before anybody is told that it was accepted.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from tocsin.catalogue import Checked
from tocsin.database import Database, queries
from tocsin.directory import LARGEST_ID, people, unknown
from tocsin.doorbell import Doorbell, wait
from tocsin.errors import Fault, Invalid, NotFound
from tocsin.ids import new_id
from tocsin.notifications import to_json

SETTLED = frozenset({"delivered", "failed", "cancelled"})
"""The states that an event stays in."""

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


async def accept(database: Database, doorbell: Doorbell, draft: Draft) -> UUID:
    """Store an event durably and return its id; raises `Invalid` where it names somebody unknown."""
    checked = draft.checked
    filled = await _people_of(database, draft) if checked.unfilled else {}
    id_ = new_id()
    strangers = await database.rows(
        _SQL["accept"],
        id_,
        draft.service,
        draft.company_id,
        checked.kind,
        checked.actor,
        list(dict.fromkeys([*checked.subjects, *draft.about])),
        list(dict.fromkeys(draft.users)),
        list(dict.fromkeys(draft.teams)),
        to_json({**checked.data, **filled}),
        to_json(checked.params),
    )
    if strangers:
        raise Invalid(_faults_of(strangers, draft.users, draft.teams))
    doorbell.ring("direct")
    return id_


async def unknown_recipients(
    database: Database, users: Sequence[Any], teams: Sequence[Any], company_id: int | None
) -> list[Fault]:
    """Return a fault for each id that names nobody the caller may address; what is no id at all is passed over."""
    ids = [[id_ for id_ in given if type(id_) is int and 0 < id_ <= LARGEST_ID] for given in (users, teams)]
    return _faults_of(await database.rows(_SQL["unknown"], *ids, company_id), users, teams)


async def state(database: Database, id_: UUID, service: str | None, company_id: int | None) -> dict[str, Any]:
    """Return what became of an event, or raise `NotFound`.

    `service` sees only its own, none sees all; `company_id` sees only those that were bound to it, none sees all.
    """
    row = await database.row(_SQL["event"], id_, service, company_id)
    if row is None:
        raise NotFound
    answer = {
        "id": str(row["id"]),
        "type": row["kind"].partition("/")[0],
        "state": row["state"],
        "recipients": row["recipients"],
        "read": row["read"],
    }
    return answer | ({"reason": row["reason"]} if row["reason"] else {})


async def settled(doorbell: Doorbell, seconds: float, look: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """Return the state that `look` returns as soon as it stays so, at the latest after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        bell = doorbell.listen_for("settled")
        found = await look()
        left = end - time.monotonic()
        if found["state"] in SETTLED or left <= 0:
            return found
        await wait(bell, min(left, _LOOK_AGAIN))


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
