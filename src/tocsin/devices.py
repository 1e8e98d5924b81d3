"""Devices: the phones and browsers of users. A token belongs to one user at a time."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal
from uuid import UUID

from tocsin.db.connections import Connection
from tocsin.db.pool import Database, fetch
from tocsin.db.statements import queries
from tocsin.errors import NotFound, Unauthenticated

MAX_DEVICES = 50
"""Maximum devices of a user. One more removes the one unused for longest."""

ENDING = 6
"""The number of last characters of a token that are shown."""

_SQL = queries("devices")


@dataclass(frozen=True, slots=True)
class Device:
    """A phone: the token from its push service, and how it is reached.

    Or a browser, whose token is the endpoint of its subscription, with its keys.
    """

    token: str
    type: Literal["iOS", "Android", "Web"]
    provider: str
    environment: Literal["production", "sandbox"]
    app: str
    p256dh: str | None = None
    auth: str | None = None


async def register(database: Database, user_id: int, device: Device, replaces: str | None = None) -> None:
    """Assign a device to a user, whichever user had it before. A token that it replaces is removed if it is the user's.

    The pushes that wait for the replaced token are sent to a token that is new.

    Raises `Unauthenticated` if the user is erased or inactive.
    """
    async with database.transaction() as connection:
        await connection.execute(_SQL["hold_owner"], user_id)
        if not await connection.fetchval(_SQL["is_active"], user_id):
            raise Unauthenticated.inactive(user_id)
        replaced: UUID | None = None
        if replaces and replaces != device.token:
            await connection.execute(_SQL["lock_in_order"], device.token, replaces)
            replaced = await connection.fetchval(_SQL["detach"], user_id, replaces)
        if id_ := await connection.fetchval(_SQL["register"], user_id, *astuple(device), replaced):
            await follow(connection, id_)
        await enforce_device_limit(connection, user_id)


async def follow(store: Database | Connection, id_: UUID) -> None:
    """Send the pushes that wait for a device through its lane, which has changed.

    Its former lane could only report that the device is of another app or environment, and it would be removed.
    """
    await fetch(store, _SQL["follow"], id_)


async def enforce_device_limit(connection: Connection, user_id: int) -> None:
    """Remove the devices of a user that are unused for longest, if there are too many."""
    await connection.execute(_SQL["keep"], user_id, MAX_DEVICES)


async def detach(database: Database, user_id: int, token: str) -> None:
    """Remove a token from a user, if it is the user's."""
    await database.value(_SQL["detach"], user_id, token)


async def detach_for(database: Database, user_id: int, company_id: int | None, token: str | None = None) -> None:
    """Remove one token, or all, from a user of the company. Raises `NotFound` for an unknown user."""
    if await database.value(_SQL["user"], user_id, company_id) is None:
        raise NotFound
    async with database.transaction() as connection:
        await clear_phones(connection, [user_id], token)
        if token is None:
            await detach_all(connection, user_id)
        else:
            await connection.execute(_SQL["detach"], user_id, token)


async def clear_phones(connection: Connection, user_ids: Sequence[int], token: str | None = None) -> None:
    """Make the phones of users, or one of them, clear all notifications, which a new owner must not see."""
    await connection.execute(_SQL["clear_phones"], user_ids, token)


async def detach_all(store: Database | Connection, user_id: int) -> None:
    """Remove all devices of a user."""
    await fetch(store, _SQL["detach_all"], user_id)


async def devices_of(database: Database, user_id: int) -> list[dict[str, Any]]:
    """Return a user's devices, the last registered first, with only the last characters of their tokens."""
    return [dict(row) for row in await database.rows(_SQL["devices"], user_id)]


async def by_ending(database: Database, ending: str, company_id: int | None, limit: int) -> list[dict[str, Any]]:
    """Return devices whose tokens end with these last characters, the last registered first, with their owners."""
    return [dict(row) for row in await database.rows(_SQL["by_ending"], ending, company_id, limit)]
