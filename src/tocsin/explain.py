"""Explanations: what a user received and what not, and why, for support staff."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from tocsin import event_status
from tocsin.catalogue.rendering import one_line
from tocsin.db.connections import Record
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import NotFound, Refusal
from tocsin.event_status import Viewer
from tocsin.notifications import time_of

MAX_EVENTS = 200
"""Maximum events of a user that the command line explains."""

DEFAULT_EXPLAINED, MAX_EXPLAINED = 20, 100
"""Maximum events per call of the API: each is looked up separately."""

MAX_EVENTS_SCANNED = 5_000
"""The number of latest events that are searched for those that the user did not receive."""

MAX_CANDIDATES = 1_000
"""About the number of users that a search reads, of whom it returns those with the lowest ids."""

_SQL = queries("explain")


@dataclass(frozen=True, slots=True)
class Lately:
    """The events of a user, the latest first, each explained; and since when undelivered events are included."""

    events: list[dict[str, Any]]
    looked_back_to: datetime


async def of_event(database: Database, event_id: UUID, user_id: int) -> AsyncIterator[str]:
    """Yield lines that explain whether and why a user was notified. Raises `Refusal` for an unknown event."""
    try:
        found = await event_status.explain(database, event_id, user_id, Viewer())
    except NotFound:
        raise Refusal(f"There is no event {event_id}.") from None
    for line in _lines(found):
        yield line


async def of_user(database: Database, user_id: int, since: datetime) -> AsyncIterator[str]:
    """Yield lines on what a user received since a time, what not and why, and the state of their devices.

    Raises `Refusal` for an unknown user.
    """
    try:
        found = await person(database, user_id)
    except NotFound:
        raise Refusal(f"There is no user {user_id}.") from None
    state = "active" if found["active"] else "NOT ACTIVE: nothing is delivered"
    name = one_line(f"{found['first_name']} {found['last_name']}")
    yield f"user {user_id}, {name}: {state}; {found['unread']} unread"
    if not found["devices"]:
        yield "no devices: nothing is pushed"
    for device in found["devices"]:
        at = device["last_delivered_at"]
        last = f"last delivered {time_of(at)}" if at else "never delivered"
        push = _push_state(device["state"], device["what"])
        yield f"device {device['type']} ...{device['token_ending']} by {device['lane']}: {last}; last push: {push}"
    lately = await of_late(database, user_id, since, MAX_EVENTS)
    if lately.looked_back_to > since:
        yield f"undelivered events are listed only from {time_of(lately.looked_back_to)}"
    for event in reversed(lately.events):
        yield f"{time_of(event['accepted_at'])} {event['type']} {event['event_id']}"
        for line in _lines(event):
            yield f"    {line}"


async def find(database: Database, words: str, limit: int, company_id: int | None = None) -> list[dict[str, Any]]:
    """Return up to `limit` users whose name, last name or e-mail address begins with a text."""
    rows = await database.rows(_SQL["find"], words, company_id, limit, MAX_CANDIDATES)
    return [dict(row) for row in rows]


async def recipients(  # noqa: PLR0913 - what is asked for
    database: Database, event_id: UUID, reader: Viewer, after: int, limit: int, *, missed: bool
) -> list[dict[str, Any]]:
    """Return the recipients of an event with ids above `after`: all, or those to whom a push was not delivered.

    Raises `NotFound` for an event that the reader may not see.
    """
    if not await event_status.is_there(database, event_id, reader):
        raise NotFound
    rows = await database.rows(_SQL["recipients"], event_id, after, limit, reader.company_id, missed)
    return [dict(row) for row in rows]


async def person(database: Database, user_id: int, company_id: int | None = None) -> dict[str, Any]:
    """Return a user and the state of their devices. Raises `NotFound` for users of other companies."""
    row = await database.row(_SQL["person"], user_id, company_id)
    if row is None:
        raise NotFound
    return {**row, "devices": [_device_status(device) for device in await database.rows(_SQL["devices"], user_id)]}


async def of_late(
    database: Database, user_id: int, since: datetime, limit: int, company_id: int | None = None
) -> Lately:
    """Return up to `limit` events of a user since a time, received or not, each explained."""
    found = await database.rows(_SQL["events"], user_id, since, company_id, limit, MAX_EVENTS_SCANNED)
    reach = await database.value(_SQL["reach"], since, MAX_EVENTS_SCANNED, company_id)
    explained = []
    for row in found:
        status = await event_status.explain(database, row["id"], user_id, Viewer(company_id=company_id))
        explained.append({"type": row["kind"].partition("/")[0], "accepted_at": row["accepted_at"], **status})
    return Lately(explained, reach or since)


def _device_status(row: Record) -> dict[str, Any]:
    """Return a device, and the state of its lane in `state` and `what`."""
    if not row["has_lane"]:
        state, what = "unserved", "no key is set for this provider and app"
    elif row["stopped_at"]:
        state, what = "stopped", row["lane_reason"]
    else:
        state, what = row["state"] or "untried", row["reason"]
    return {**row, "state": state, "what": what}


def _lines(found: Mapping[str, Any]) -> list[str]:
    state = f"delivered to the inbox at {time_of(found['delivered_at'])}" if found["recipient"] else "not delivered"
    why = {"named": "named in notify.users"}.get(found["why"], found["why"])
    lines = [f"{state}: {why}"]
    lines += [f"{did} at {time_of(found[f'{did}_at'])}" for did in ("read", "deleted") if found[f"{did}_at"]]
    if found["recipient"] and not found["devices"]:
        lines.append("not pushed: at delivery, no device had a push service with a key")
    for device in found["devices"]:
        push = _push_state(device["state"], device["what"])
        lines.append(f"{device['type']} ...{device['token_ending']}: {push}")
    return lines


def _push_state(state: str, what: str | None) -> str:
    """Return the state of a push, with the reason if it adds something."""
    return f"{state}; {what}" if what and what != state else state
