"""Inboxes: their entries, changes and owners. Only this module and `marks` write heads, entries and changes.

Every change first locks the head of the inbox. So the changes and deliveries of an inbox are serialized, in the order
of their positions.
"""

import json
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from tocsin.auth.claims import CLOCK_SKEW, UserCaller
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection, Record
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import Missing, NotFound, Unauthenticated

FIRST_RECORD = -(2**31)
"""The `after_user` below all others."""

MAX_CHANGES, MAX_CHANGES_BYTES = 500, 256 * 1024
"""Maximum changes per response, and of their content. A change is never divided."""

Change = Literal["read", "deleted", "rewritten"]
"""A change of entries in several inboxes."""

_CURSOR = re.compile(r"([0-9a-f]{1,15})-([0-9]{1,18})")
_SQL = queries("inbox")


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of an inbox as JSON objects, joined by commas, in order. The next changes begin at `cursor`.

    `resync`: the changes are no longer stored, and the client must load the list. `more`: further changes exist. `head`
    is the cursor of the inbox when it was read.
    """

    data: str
    unread: int
    cursor: str
    head: str
    more: bool
    resync: bool


class UserCursor(NamedTuple):
    """A cursor of a user, with `made` as in `made_in`."""

    user_id: int
    made: int
    position: int


class Entry(NamedTuple):
    """One change: `notification`, `read`, `unread` or `deleted`, and its JSON."""

    position: int
    event: str
    data: str


@dataclass(slots=True)
class InboxChanges:
    """The changes of an inbox since a position, and its current position. `more`: further changes follow these.

    `made` identifies the inbox, as in `made_in`. Changes before `forgotten` are deleted.
    """

    made: int
    at: int
    unread: int
    forgotten: int
    made_at: datetime
    tokens_from: datetime | None = None
    entries: list[Entry] = field(default_factory=list)
    more: bool = False

    @property
    def cursor(self) -> str:
        """The cursor after all changes."""
        return cursor_of(self.made, self.at)

    def admits(self, issued: float | None) -> bool:
        """Return whether a token that was issued at this time is for this inbox, not for that of an erased user."""
        return _admits(issued, self.made_at, self.tokens_from)


async def changes(database: Database, user: UserCaller, since: str, limit: int = MAX_CHANGES) -> Changes:
    """Return up to `limit` (at most 500) changes since a cursor. If the cursor is not of this inbox, `resync` is set.

    Raises like `owner`.
    """
    made, position = position_in(since)
    found = (await changes_since(database, {user.id: position}, limit)).get(user.id)
    if found is None or not found.admits(user.issued):
        raise await refusal(database.value, user)
    if made != found.made and await continued(database, [UserCursor(user.id, made, position)]):
        made = found.made
    if made != found.made or not found.forgotten <= position <= found.at:
        return Changes("", found.unread, found.cursor, found.cursor, more=False, resync=True)
    upto = found.entries[-1].position if found.more else found.at
    data = ",".join(f'{{"event":"{entry.event}","data":{entry.data}}}' for entry in found.entries)
    return Changes(data, found.unread, cursor_of(found.made, upto), found.cursor, more=found.more, resync=False)


async def changes_since(
    database: Database, since: Mapping[int, int], limit: int = MAX_CHANGES
) -> dict[int, InboxChanges]:
    """Return up to `limit` (at most 500) changes of each of these inboxes since its position, of bounded size.

    Erased and inactive users are left out.
    """
    found: dict[int, InboxChanges] = {}
    if len(since) == 1:
        rows = await database.rows(_SQL["changes_of_one"], *next(iter(since.items())), limit, MAX_CHANGES_BYTES)
    else:
        rows = await database.rows(_SQL["changes"], list(since), list(since.values()), limit, MAX_CHANGES_BYTES)
    for row in rows:
        user_id, at, made_at, tokens_from, unread_count, forgotten, position, event, data, last, _ = row
        if user_id not in found:
            found[user_id] = InboxChanges(made_in(row), at, unread_count, forgotten, made_at, tokens_from)
        if event is not None:
            one = found[user_id]
            one.entries.append(Entry(position, event, data))
            one.more = position < last or (len(one.entries) >= limit and position < at)
    return found


async def continued(database: Database, cursors: Sequence[UserCursor]) -> set[UserCursor]:
    """Return which cursors are valid although a standby was promoted since then."""
    return {UserCursor(*row) for row in await database.rows(_SQL["continued"], *map(list, zip(*cursors, strict=True)))}


async def heads(database: Database, user_ids: Sequence[int]) -> dict[int, tuple[int, int, int]]:
    """Return for each of these inboxes when it was created, its position and its unread count."""
    rows = await database.rows(_SQL["heads"], user_ids)
    return {row["user_id"]: (made_in(row), row["at"], row["unread"]) for row in rows}


async def one(database: Database, user: UserCaller, id_: UUID) -> str:
    """Return one notification as JSON. Raises `NotFound`, `Missing` if the user deleted it, and like `owner`."""
    row = await admitted(database, user, await database.row(_SQL["one"], user.id, id_))
    data: str | None = row["data"]
    if data is None:
        raise NotFound
    if row["is_deleted"]:
        raise Missing
    return data


async def links(database: Database, catalogue: Catalogue, user_id: int, ids: Sequence[UUID]) -> dict[str, str | None]:
    """Return the links of a caller's notifications by their ids, None for those without a link."""
    found: dict[str, str | None] = {}
    for row in await database.rows(_SQL["links"], user_id, ids):
        kind = catalogue.kinds.get(row["kind"])
        data = json.loads(f"{{{row['body']}}}")["data"]
        found[str(row["event_id"])] = (kind.link_of(data, json.loads(row["params"])) or None) if kind else None
    return found


async def owner(database: Database, user: UserCaller) -> Record:
    """Return `company_id` and `locale` of a caller.

    Raises `Unauthenticated` if the user is erased or inactive, or was created after the token was issued.
    """
    return await admitted(database, user, await database.row(_SQL["caller"], user.id))


async def lock(connection: Connection, user_ids: Collection[int], company_id: int | None = None) -> set[int]:
    """Lock the heads of these users, or of those in one company, until the end of the transaction; return their ids."""
    return {row["user_id"] for row in await connection.fetch(_SQL["lock"], list(user_ids), company_id)}


async def put_heads(
    connection: Connection, user_ids: Sequence[int], locales: Sequence[str], active: Sequence[bool]
) -> Record:
    """Create or change the heads of users, in the order of ids.

    Returns who was deactivated (`retired`), and for how many seconds new tokens are not valid (`wait`).
    """
    [row] = await connection.fetch(_SQL["put_heads"], user_ids, locales, active)
    return row


async def mark(connection: Connection, entries: Sequence[tuple[UUID, int]], change: Change) -> None:
    """Apply a change to entries of locked inboxes, by event and user. Entries that have it already do not change."""
    await connection.execute(_SQL["mark"], *map(list, zip(*entries, strict=True)), change, len(entries))


async def expire(
    connection: Connection, first: tuple[UUID, int], end: UUID, cutoff: datetime, limit: int
) -> tuple[int, tuple[UUID, int]]:
    """Delete the next records of recipients that are older than `cutoff`, with their entries in inboxes.

    These are the records from one (its event and `after_user`) to the events before `end`, with about `limit` users.
    Records with an inbox that is in use stay. Returns how many are deleted, and the first key of the next ones.
    """
    row = await connection.fetchrow(_SQL["lock_expired"], *first, end, cutoff, limit)
    assert row is not None  # noqa: S101 - the statement returns one row
    following = (end, FIRST_RECORD) if row["event_id"] is None else (row["event_id"], row["after_user"])
    count = await connection.fetchval(_SQL["remove_range"], *first, *following, cutoff, row["busy"])
    return count, following


async def expire_oldest(connection: Connection, cutoff: datetime, limit: int) -> tuple[int, list[UUID]]:
    """Delete the oldest records of recipients that are older than `cutoff`, with their entries in inboxes.

    Records with an inbox that is in use stay. Returns how many are deleted, and the events that may have lost one.
    """
    row = await connection.fetchrow(_SQL["lock_oldest"], cutoff, limit)
    if row is None or row["event_ids"] is None:
        return 0, []
    count = await connection.fetchval(_SQL["remove_records"], row["event_ids"], row["after_users"], row["busy"])
    return count, list(dict.fromkeys(row["event_ids"]))


async def forget_changes(connection: Connection, limit: int) -> int:
    """Delete up to `limit` changes that are older than a week; return their number."""
    count: int = await connection.fetchval(_SQL["forget_changes"], limit)
    return count


async def enter(
    connection: Connection,
    chunks: Sequence[tuple[UUID, int, int]],
    languages: Sequence[str],
    push_lanes: Sequence[str],
    *,
    is_bulk: bool,
) -> Sequence[Record]:
    """Enter events into the inboxes of their recipients. A chunk is an event and a range of user ids.

    With `is_bulk`, each chunk is large, and is entered by a statement of its own. Creates a delivery for each device in
    one of `push_lanes`. Returns the events that have recipients: their content, their languages, their users, and
    whether there are deliveries.
    """
    statement, parts = ("enter_many", [[chunk] for chunk in chunks]) if is_bulk else ("enter", [chunks])
    found: list[Record] = []
    for part in parts:
        columns = map(list, zip(*part, strict=True))
        found += await connection.fetch(_SQL[statement], *columns, languages, push_lanes, len(part))
    return found


async def count_history(connection: Connection, *columns: Sequence[Any]) -> None:
    """Add imported notifications to the counts of locked inboxes: per user the total, unread and newest time.

    The last column has the users whose notifications were sorted. One statement changes each head: the second change of
    a row in a transaction would lock the user, for whom an erasure may wait that has locked them first.
    """
    await connection.execute(_SQL["count_history"], *columns)


async def recount(connection: Connection, user_ids: Sequence[int]) -> None:
    """Count the entries of locked inboxes again."""
    await connection.execute(_SQL["recount"], user_ids)


async def outdate_cursors(connection: Connection) -> None:
    """After a restore of the database, let all clients load their lists: what they saw last may be lost."""
    await connection.execute(_SQL["outdate_cursors"])


async def lock_own(connection: Connection, user: UserCaller) -> tuple[int, int]:
    """Lock the head of a caller until the end of the transaction; return the position before, and the unread count.

    Raises like `owner`.
    """
    row = await connection.fetchrow(_SQL["lock_own"], user.id, user.issued)
    if row is None:
        raise await refusal(connection.fetchval, user)
    return row["began"], row["unread"]


async def admitted(database: Database, user: UserCaller, row: Record | None) -> Record:
    """Return the row of the caller's head if the token is for this inbox. Raises like `owner`."""
    if row is None or not _admits(user.issued, row["made_at"], row["tokens_from"]):
        raise await refusal(database.value, user)
    return row


def _admits(issued: float | None, made_at: datetime, tokens_from: datetime | None) -> bool:
    if tokens_from is not None:
        return issued is not None and issued >= tokens_from.timestamp()
    since = made_at.timestamp() - CLOCK_SKEW
    return issued is None or issued >= since or since > time.time()  # the clock was put back since then


async def refusal(look: Callable[..., Awaitable[Any]], user: UserCaller) -> Unauthenticated:
    """Return why the caller's inbox is refused: its user does not exist, is inactive, or is another one of this id."""
    active: bool | None = await look(_SQL["standing"], user.id)
    if active is None:
        return Unauthenticated.unknown(user.id)
    if not active:
        return Unauthenticated.inactive(user.id)
    if user.issued is None:
        return Unauthenticated(
            f"The token does not say when it was issued (iat), and user {user.id} has the id of an erased user.",
            presented=True,
        )
    return Unauthenticated(f"The token was issued before user {user.id} was created.", presented=True)


def cursor_of(made: int, position: int) -> str:
    """Return the cursor of an inbox at a position."""
    return f"{made:x}-{position}"


def position_in(cursor: str) -> tuple[int, int]:
    """Return the inbox and the position of a cursor; zeros for an invalid one."""
    found = _CURSOR.fullmatch(cursor)
    return (int(found[1], 16), int(found[2])) if found else (0, 0)


def made_in(row: Record) -> int:
    """Return what identifies an inbox in cursors: when it was created, in microseconds since 1970, and the salt.

    The id of an erased user can get a new inbox, and a server that is promoted can give positions to other changes.
    """
    moment: datetime = row["made_at"]
    salt: int = row["salt"]
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond + salt
