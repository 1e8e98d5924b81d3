"""The inbox of one user: pages of it, and what its owner does with it.

Every change first takes the lock of the inbox's head, so that changes and deliveries of one inbox happen one after
the other, in the order of their positions.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from tocsin.database import Connection, Database, queries
from tocsin.errors import Missing, NotFound, Unauthenticated

NEWEST = 2**63 - 1
"""A position above all that there will be."""

_SQL = queries("inbox")


@dataclass(frozen=True, slots=True)
class Page:
    """Notifications as joined JSON objects, newest first; `last` is the position of the last of them."""

    data: str
    total: int
    unread: int
    last: int | None
    more: bool


async def page(database: Database, user_id: int, *, unread: bool, before: int = NEWEST, limit: int) -> Page:
    """Return up to `limit` notifications, at most 100, below position `before`."""
    rows = await database.rows(_SQL["unread_page" if unread else "page"], user_id, before, limit)
    if not rows:
        raise Unauthenticated(presented=True)
    total, unread_count, more, last, data = rows[0]
    return Page(data, total, unread_count, last, more)


async def skip(database: Database, user_id: int, *, unread: bool, count: int) -> int:
    """Return the position below which an inbox goes on after its `count` newest: 0 where it ends before that."""
    if count == 0:
        return NEWEST
    return await database.value(_SQL["unread_skip" if unread else "skip"], user_id, count) or 0


async def one(database: Database, user_id: int, id_: UUID) -> str:
    """Return one notification as JSON; raises `NotFound`, or `Missing` where its owner deleted it."""
    row = await database.row(_SQL["one"], user_id, id_)
    if row is None:
        raise NotFound
    if row["deleted"]:
        raise Missing
    data: str = row["data"]
    return data


async def owner(database: Database, user_id: int) -> dict[str, Any]:
    """Return the user object and company of a caller, or raise `Unauthenticated` where there is none any more."""
    row = await database.row(_SQL["caller"], user_id)
    if row is None:
        raise Unauthenticated(presented=True)
    return dict(row)


async def read(database: Database, user_id: int, id_: UUID) -> None:
    """Mark one notification as read; the first time stays. Raises like `one`."""
    async with database.transaction() as connection:
        await _lock(connection, user_id)
        deleted = await connection.fetchval(_SQL["read_one"], user_id, id_)
    if deleted is None:
        raise NotFound
    if deleted:
        raise Missing


async def read_all(database: Database, user_id: int) -> None:
    """Mark as read all that the inbox held when this was called."""
    async with database.transaction() as connection:
        began = await _lock(connection, user_id)
        await connection.execute(_SQL["read_all"], user_id, began)


async def _lock(connection: Connection, user_id: int) -> int:
    row = await connection.fetchrow(_SQL["lock"], user_id)
    if row is None:
        raise Unauthenticated(presented=True)
    began: int = row["began"]
    return began
