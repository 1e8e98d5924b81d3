"""Explaining in words what became of a person's notifications: for whoever is asked why something did not come."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from tocsin import events
from tocsin.database import Database, queries
from tocsin.errors import NotFound, Refusal
from tocsin.events import Reader
from tocsin.notifications import time_of

_SQL = queries("explain")


async def of_event(database: Database, event_id: UUID, user_id: int) -> AsyncIterator[str]:
    """Yield, line by line, whether and why somebody was told of an event. Raises `Refusal` for an unknown event."""
    try:
        found = await events.explain(database, event_id, user_id, Reader())
    except NotFound:
        raise Refusal(f"There is no event {event_id}.") from None
    for line in _lines(found):
        yield line


async def of_user(database: Database, user_id: int, since: datetime) -> AsyncIterator[str]:
    """Yield what came to a person since a moment, what did not and why, and the state of their devices.

    Raises `Refusal` for somebody unknown.
    """
    person = await database.row(_SQL["person"], user_id)
    if person is None:
        raise Refusal(f"There is no user {user_id}.")
    state = "active" if person["active"] else "NOT ACTIVE: nothing is delivered"
    yield f"user {user_id}, {person['first_name']} {person['last_name']}: {state}; {person['unread']} unread"
    devices = await database.rows(_SQL["devices"], user_id)
    if not devices:
        yield "no devices: nothing is pushed"
    for device in devices:
        last = time_of(device["last_delivered_at"]) or "never"
        yield f"device {device['type']} ...{device['token_ending']} by {device['lane']}: last delivered {last}"
    for row in await database.rows(_SQL["events"], user_id, since):
        yield f"{time_of(row['accepted_at'])} {row['kind']} {row['id']}"
        for line in _lines(await events.explain(database, row["id"], user_id, Reader())):
            yield f"    {line}"


def _lines(found: Mapping[str, Any]) -> list[str]:
    came = f"came into the inbox at {found['delivered_at']}" if found["recipient"] else "did not come"
    lines = [f"{came}: {found['why']}"]
    lines += [f"{did} at {found[f'{did}_at']}" for did in ("read", "deleted") if found[f"{did}_at"]]
    for device in found["devices"]:
        lines.append(f"{device['type']} ...{device['token_ending']}: {device['state']}; {device['what']}")
    return lines
