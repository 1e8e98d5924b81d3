"""The status of events: their state, their recipients, and why a user was or was not notified."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from tocsin.db.connections import Record
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import NotFound
from tocsin.notifications import time_of
from tocsin.pubsub import PubSub, wait
from tocsin.push import deliveries

SETTLED = frozenset({"delivered", "failed", "cancelled"})
"""The final states of an event."""

WAITING = frozenset({"queued", "later", "held"})
"""The states of a push that was not sent yet."""

_POLL_INTERVAL = 0.25

_STATES = ("delivering", "queued", "held", "failed", "cancelled", "delivered")
"""The states of an event: the first of those of its parts is that of the whole."""

_SQL = queries("event_status")


@dataclass(frozen=True, slots=True)
class Viewer:
    """A caller that reads events: only those of a service and of a company, or of all if None."""

    service: str | None = None
    company_id: int | None = None


async def state(  # noqa: PLR0913 - what can be asked
    database: Database, pubsub: PubSub, id_: UUID, reader: Viewer, *, seconds: float = 0, but: Sequence[int] = ()
) -> dict[str, Any]:
    """Return the status of an event once it is final, at the latest after `seconds`. Raises `NotFound`.

    Users of the companies `but`, which move, do not count: another database counts them.
    """
    end = time.monotonic() + seconds
    while True:
        wakeup = pubsub.listen_for("settled")
        row = await database.row(_SQL["event"], id_, reader.service, reader.company_id, but)
        if row is None:
            raise NotFound
        left = end - time.monotonic()
        if left <= 0 or (row["state"] in SETTLED and not await deliveries.is_waiting(database, id_)):
            break
        await wait(wakeup, min(left, _POLL_INTERVAL))
    pushes = await deliveries.counts(database, id_, but)
    answer = {
        "id": str(row["id"]),
        "type": row["kind"].partition("/")[0],
        "state": row["state"],
        "recipients": row["recipients"],
        "read": await database.value(_SQL["readers"], id_, but),
        "dropped": row["dropped"],
        "pushes": pushes,
    }
    cancelled = row["operator"] and f"cancelled by an operator: {row['operator']}"
    more = {"reason": row["reason"] or cancelled, "replaced_by": row["replaced_by"] and str(row["replaced_by"])}
    return answer | {name: value for name, value in more.items() if value}


def together(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the status of an event of which several cells have a part: what they count together.

    It is final once all parts are, and cancelled or failed if one is.
    """
    first = min(parts, key=lambda part: _STATES.index(part["state"]))
    counts = {name: sum(part[name] for part in parts) for name in ("recipients", "read", "dropped")}
    pushes = {state: sum(part["pushes"][state] for part in parts) for state in first["pushes"]}
    return {**first, **counts, "pushes": pushes}


async def is_there(database: Database, id_: UUID, reader: Viewer) -> bool:
    """Return whether the event exists and the viewer may see it."""
    return await database.row(_SQL["event"], id_, reader.service, reader.company_id, ()) is not None


async def explain(database: Database, id_: UUID, user_id: int, reader: Viewer) -> dict[str, Any]:
    """Return whether and why a user was a recipient of an event, and the result. Raises `NotFound`."""
    row = await database.row(_SQL["person"], id_, user_id, reader.service, reader.company_id)
    if row is None:
        raise NotFound
    return {
        **{name: row[name] for name in ("team_id", "delivered_at", "read_at", "deleted_at")},
        "event_id": id_,
        "user_id": user_id,
        "recipient": row["delivered_at"] is not None,
        "why": _why(row),
        "devices": [
            _device_status(device)
            for device in await deliveries.of_person(database, id_, user_id)
            if (row["delivered_at"] and row["is_known"]) or device["state"] != "unserved"
        ],
    }


async def customs(
    database: Database, before: datetime | None, limit: int, company_id: int | None = None
) -> list[dict[str, Any]]:
    """Return up to `limit` custom notifications, ever or before a time, the latest first, with senders and counts."""
    rows = await database.rows(_SQL["customs"], before, limit, company_id)
    return [{**row, "sender": row["actor"] and {**row, "id": row["actor"]}} for row in rows]


def _device_status(row: Record) -> dict[str, Any]:
    """Return the state of the push to one device, and the reason."""
    words = "queued" if row["state"] == "queued" else row["reason"]
    why = ""
    if not row["is_served"]:
        why = f"{row['lane']} {deliveries.UNSERVED}"
    elif row["stopped_at"]:
        why = f"{row['lane']} has stopped since {time_of(row['stopped_at'])} UTC: {row['lane_reason']}"
    if why and row["state"] in WAITING:
        words = why if row["state"] == "queued" else f"{words}; {why}"
    return {**row, "what": words}


def _why(row: Record) -> str:
    """Return the reason why a user was or was not notified."""
    if row["delivered_at"]:
        return "named" if not row["team_id"] else f"a member of team {row['team_id']}"
    if row["is_excepted"]:
        return "left out: the event excludes the user, or was resolved for them"
    if not row["is_known"]:
        return "there is no such user in the directory"
    if row["member_of"] is None and (not row["is_named"] or row["is_successor"]):
        former = "left out: the id was another user's when the event was posted"
        return former if row["is_named"] else "neither named nor in one of its teams"
    if not row["is_named"] and row["is_actor"]:
        return "left out: the user caused the event"
    return _why_not_yet(row)


def _why_not_yet(row: Record) -> str:
    if row["pending"]:
        return f"not delivered yet: due at {time_of(row['due_at'])}"
    if row["operator"]:
        return f"not delivered: an operator ({row['operator']}) cancelled the event before it reached the user"
    if row["cancelled"]:
        return "not delivered: the event was cancelled before it reached the user"
    if row["reason"]:
        return f"not delivered: {row['reason']}"
    if not row["active"]:
        return "dropped: the user was not active at the time of delivery"
    return "not delivered: the user joined after the delivery"
