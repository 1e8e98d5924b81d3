"""Devices: the phones that a user's notifications are pushed to. A token belongs to one user at a time."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal

from tocsin.db.pool import Connection, Database, fetch, queries
from tocsin.errors import NotFound, Unauthenticated

MAX_DEVICES = 50
"""How many devices a user has at most; the longest unused one goes."""

Provider = Literal["apns", "fcm", "web"]

TYPES: Mapping[str, Provider] = {"iOS": "apns", "Android": "fcm"}
"""The types of phones, each with its own provider."""

ENDING = 6
"""How many of the last characters of a token are ever shown."""

_SQL = queries("devices")
_APNS = re.compile(r"([0-9A-Fa-f]{2}){8,256}")
_FCM = re.compile(r"[A-Za-z0-9_:-]{32,4096}|[cdef][A-Za-z0-9_-]{21}")


@dataclass(frozen=True, slots=True)
class Device:
    """A phone: the token that its push service gave it, and where it is to be reached.

    Or a browser, whose token is the endpoint of its subscription, with its keys.
    """

    token: str
    type: Literal["iOS", "Android", "Web"]
    provider: Provider
    environment: Literal["production", "sandbox"]
    app: str
    p256dh: str | None = None
    auth: str | None = None


def token_of(text: str, provider: Provider) -> str | None:
    """Return a token as it is kept, or None for what no token of this provider looks like.

    Apple's are hexadecimal, and the same in upper and lower case; Google's are registration tokens or installation ids.
    """
    if provider == "apns":
        return text.lower() if _APNS.fullmatch(text) else None
    return text if _FCM.fullmatch(text) else None


async def register(database: Database, user_id: int, device: Device, replaces: str | None = None) -> None:
    """Make a device the user's own, whoever had it before; the token that it replaces goes if it is theirs.

    Raises `Unauthenticated` where the user is gone or inactive.
    """
    async with database.transaction() as connection:
        await connection.execute(_SQL["hold_owner"], user_id)
        if not await connection.fetchval(_SQL["is_active"], user_id):
            raise Unauthenticated.inactive(user_id)
        tokens = [device.token]
        if replaces and replaces != device.token:
            tokens = [row["token"] for row in await connection.fetch(_SQL["in_order"], [device.token, replaces])]
        for token in tokens:
            if token == device.token:
                await connection.execute(_SQL["register"], user_id, *astuple(device))
            else:
                await connection.execute(_SQL["detach"], user_id, token)
        await enforce_device_limit(connection, user_id)


async def enforce_device_limit(connection: Connection, user_id: int) -> None:
    """Let the longest unused devices of a user go, if there are too many."""
    await connection.execute(_SQL["keep"], user_id, MAX_DEVICES)


async def detach(database: Database, user_id: int, token: str) -> None:
    """Take a token from a user, if it is theirs; another's is left alone."""
    await database.value(_SQL["detach"], user_id, token)


async def detach_for(database: Database, user_id: int, company_id: int | None, token: str | None = None) -> None:
    """Take one token, or all of them, from a user of the company. Raises `NotFound` where there is no such user."""
    if await database.value(_SQL["user"], user_id, company_id) is None:
        raise NotFound
    async with database.transaction() as connection:
        await clear_phones(connection, [user_id], token)
        if token is None:
            await detach_all(connection, user_id)
        else:
            await connection.execute(_SQL["detach"], user_id, token)


async def clear_phones(connection: Connection, user_ids: Sequence[int], token: str | None = None) -> None:
    """Have the phones of users, or one of them, clear all that they show: it is not theirs to see from now on."""
    await connection.execute(_SQL["clear_phones"], user_ids, token)


async def detach_all(store: Database | Connection, user_id: int) -> None:
    """Take all devices from a user."""
    await fetch(store, _SQL["detach_all"], user_id)


async def devices_of(database: Database, user_id: int) -> list[dict[str, Any]]:
    """Return a user's devices, the last registered first, with the last characters of their tokens alone."""
    return [dict(row) for row in await database.rows(_SQL["devices"], user_id)]


async def by_ending(database: Database, ending: str, company_id: int | None, limit: int) -> list[dict[str, Any]]:
    """Return devices whose tokens end with these last characters, the last registered first, with their owners."""
    return [dict(row) for row in await database.rows(_SQL["by_ending"], ending, company_id, limit)]
