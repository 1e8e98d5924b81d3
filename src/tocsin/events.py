"""Events: accepted once and for all, and what became of them.

An event, what it is about, and the job to deliver it are one statement and so one transaction: it is on disk wholly
before anybody is told that it was accepted.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from tocsin.catalogue import Checked
from tocsin.database import Database, queries
from tocsin.directory import people, unknown
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
    data = {**draft.checked.data, **await _filled(database, draft)}
    id_ = new_id()
    strangers = await database.rows(
        _SQL["accept"],
        id_,
        draft.service,
        draft.company_id,
        draft.checked.kind,
        draft.checked.actor,
        list(dict.fromkeys([*draft.checked.subjects, *draft.about])),
        list(dict.fromkeys(draft.users)),
        list(dict.fromkeys(draft.teams)),
        to_json(data),
        to_json(draft.checked.params),
    )
    if strangers:
        raise Invalid(
            fault
            for field, given in (("users", draft.users), ("teams", draft.teams))
            for fault in unknown(f"notify.{field}", given, {row["id"] for row in strangers if row["field"] == field})
        )
    doorbell.ring("direct")
    return id_


async def state(database: Database, id_: UUID, service: str | None) -> dict[str, Any]:
    """Return what became of an event; `service` sees only its own, none sees all. Raises `NotFound`."""
    row = await database.row(_SQL["event"], id_, service)
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


async def settled(
    database: Database, doorbell: Doorbell, id_: UUID, service: str | None, seconds: float
) -> dict[str, Any]:
    """Return `state` as soon as it stays so, at the latest after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        bell = doorbell.listen_for("settled")
        answer = await state(database, id_, service)
        left = end - time.monotonic()
        if answer["state"] in SETTLED or left <= 0:
            return answer
        await wait(bell, min(left, _LOOK_AGAIN))
        await asyncio.sleep(0)


async def _filled(database: Database, draft: Draft) -> Mapping[str, Any]:
    """Return the user objects for those fields of `data` that hold only a user's id."""
    wanted = draft.checked.unfilled
    if not wanted:
        return {}
    known = await people(database, wanted.values(), draft.company_id)
    strangers = [field for field, id_ in wanted.items() if id_ not in known]
    if strangers:
        raise Invalid(
            Fault(f"data.{field}", "unknown", f"The data.{field} field names nobody who is known.")
            for field in strangers
        )
    return {field: known[id_] for field, id_ in wanted.items()}
