"""Marks: what a caller does to notifications in their inbox. Single ones are marked several by one statement."""

from collections.abc import Sequence
from typing import Literal, NamedTuple
from uuid import UUID

from tocsin import inbox
from tocsin.auth.claims import UserCaller
from tocsin.db.connections import Record, fetch_long
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import Invalid, Missing, NotFound
from tocsin.inbox import lock_own, refusal
from tocsin.shared_statements import SharedStatements
from tocsin.validation import field_error

MANY = 100_000
"""Unread notifications beyond which all are marked by a statement that may take longer than others."""

_SQL = queries("inbox")


class AskedMark(NamedTuple):
    """A mark that a caller asks for."""

    user_id: int
    issued: float | None
    id: UUID
    change: Literal["read", "unread", "deleted"]


class SingleMarks:
    """Marks single notifications, those of several users by one statement."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shared = SharedStatements(self._mark, _count_of_users)

    async def read(self, user: UserCaller, id_: UUID) -> None:
        """Mark one notification as read; if it is read already, `read_at` stays. Raises like `one`."""
        await self._set(user, id_, "read")

    async def unread(self, user: UserCaller, id_: UUID) -> None:
        """Mark one notification as unread. Raises like `one`."""
        await self._set(user, id_, "unread")

    async def delete(self, user: UserCaller, id_: UUID) -> None:
        """Delete one notification. Deleting it again has no effect. Raises `NotFound`, and like `owner`."""
        await self._change(user, id_, "deleted")

    async def _set(self, user: UserCaller, id_: UUID, change: Literal["read", "unread"]) -> None:
        if await self._change(user, id_, change):
            raise Missing

    async def _change(self, user: UserCaller, id_: UUID, change: Literal["read", "unread", "deleted"]) -> bool:
        """Change one notification, and return whether it was deleted before."""
        mark = AskedMark(user.id, user.issued, id_, change)
        row = await self._shared.of(mark) or await self._wait_and_mark(user, mark)
        if row["is_deleted"] is None:
            raise NotFound
        return bool(row["is_deleted"])

    async def _wait_and_mark(self, user: UserCaller, mark: AskedMark) -> Record:
        """Mark one notification when its inbox is no longer locked. Raises like `owner`."""
        async with self._database.transaction() as connection:
            await lock_own(connection, user)
            row = await connection.fetchrow(_SQL["marks"], *([each] for each in mark))
            if row is None:
                raise await refusal(connection.fetchval, user)
            return row

    async def _mark(self, marks: Sequence[AskedMark]) -> dict[AskedMark, Record]:
        rows = await self._database.rows(_SQL["marks"], *map(list, zip(*marks, strict=True)))
        found = {row["user_id"]: row for row in rows}
        return {mark: found[mark.user_id] for mark in marks if mark.user_id in found}


def _count_of_users(marks: Sequence[AskedMark]) -> int:
    """Return how many of the marks are of different users: each takes the next position of its inbox."""
    users = set[int]()
    for each in marks:
        if each.user_id in users:
            break
        users.add(each.user_id)
    return len(users)


async def read_all(database: Database, user: UserCaller, up_to: UUID | None = None) -> None:
    """Mark all notifications as read that the inbox contained at the call, or those up to `up_to`.

    Raises `Invalid` if `up_to` is not in the inbox, and like `owner`.
    """
    async with database.transaction() as connection:
        last: int | None
        last, unread = await lock_own(connection, user)
        if up_to is not None:
            last = await connection.fetchval(_SQL["position"], user.id, up_to)
            if last is None:
                raise Invalid([field_error("up_to", "unknown", "is not in this inbox")])
        if unread > MANY:
            await fetch_long(connection, _SQL["read_all"], user.id, last)
        else:
            await connection.execute(_SQL["read_all"], user.id, last)


async def read_some(database: Database, user: UserCaller, ids: Sequence[UUID]) -> None:
    """Mark these notifications as read. Ids that are not in the inbox are ignored. Raises like `owner`."""
    async with database.transaction() as connection:
        await lock_own(connection, user)
        await inbox.mark(connection, [(id_, user.id) for id_ in ids], "read")
