"""Events, and calls that post them and read their state."""

from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx

from tests.support.built_in import CATALOGUE
from tests.support.service import Api
from tocsin.ids import new_id

CASE = "65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88"


SAMPLES = CATALOGUE.samples
"""The samples of all kinds by name."""


def note(*users: int, teams: tuple[int, ...] = (), **more: Any) -> dict[str, Any]:
    sample = deepcopy(SAMPLES["note"]["event"])
    return {**sample, "notify": {"users": list(users), "teams": list(teams)}, **more}


def custom(*users: int, teams: tuple[int, ...] = (), body: str = "Hello") -> dict[str, Any]:
    return {"type": "custom", "notify": {"users": list(users), "teams": list(teams)}, "params": {"body": body}}


LATER = timedelta(hours=1)


def message_event(body: str, *users: int, **more: Any) -> dict[str, Any]:
    return {**custom(*users), "params": {"body": body}, **more}


def in_future(ahead: timedelta = LATER) -> str:
    return (datetime.now(UTC) + ahead).isoformat()


def id_made(moment: datetime) -> str:
    """Return a new id of version 7 as if it was made at a time."""
    return str(UUID(int=int(moment.timestamp() * 1000) << 80 | new_id().int & ((1 << 80) - 1)))


async def post(api: Api, event: dict[str, Any], **more: Any) -> httpx.Response:
    return await api.as_service("POST", "/events", json=event, **more)


async def state(api: Api, id_: str | UUID, wait: int = 0) -> dict[str, Any]:
    answer = await api.as_service("GET", f"/events/{id_}?wait={wait}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def accepted(api: Api, *users: int, **more: Any) -> UUID:
    """Post a message to these users, and return its id."""
    event = {"type": "custom", "notify": {"users": users, **more}, "params": {"body": "Hello"}}
    answer = await post(api, event)
    assert answer.status_code == 202, answer.text
    return UUID(answer.json()["id"])
