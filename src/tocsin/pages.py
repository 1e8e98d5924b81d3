"""Pages of inboxes, and the cursors by which a client knows whether its page is current; several by one statement."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from tocsin.auth.claims import UserCaller
from tocsin.db.connections import Record
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.inbox import admitted, cursor_of, made_in
from tocsin.shared_statements import SharedStatements

NEWEST = 2**63 - 1
"""A position above all others."""

OLDEST = -(2**62)
"""A position below all others. Imported history has positions of 0 and less."""

PARALLEL_PAGES = 4
"""Statements for pages that run at the same time."""

ROWS_OF_PAGES = 120
"""Rows of pages after which a statement takes no more of them: one that has to read from the disk delays the others."""

_SQL = queries("inbox")


@dataclass(frozen=True, slots=True)
class Page:
    """Notifications as JSON objects, joined by commas, the newest first; `last` is the position of the last of them.

    `head` is the cursor of the inbox when it was read.
    """

    data: str
    total: int
    unread: int
    last: int | None
    more: bool
    head: str


class AskedPage(NamedTuple):
    """A page that is asked for: at most `limit` (at most 100) notifications below position `before`."""

    user_id: int
    before: int
    limit: int
    unread: bool


class Cursors:
    """Looks up the cursors of inboxes: an unchanged page needs only the cursor."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shared = SharedStatements(self._look)

    async def of(self, user: UserCaller) -> str:
        """Return the cursor of the caller's inbox. It is different after each change. Raises like `owner`."""
        found = await admitted(self._database, user, await self._shared.of(user.id))
        return cursor_of(made_in(found), found["at"])

    async def _look(self, user_ids: Sequence[int]) -> dict[int, Record]:
        return {row["user_id"]: row for row in await self._database.rows(_SQL["heads"], user_ids)}


class Pages:
    """Looks up pages of inboxes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shared = SharedStatements(self._look, _count_of_next, PARALLEL_PAGES)

    async def of(self, user: UserCaller, *, unread: bool, before: int = NEWEST, limit: int) -> Page:
        """Return up to `limit` (at most 100) notifications of a caller below position `before`. Raises like `owner`."""
        row = await self._shared.of(AskedPage(user.id, before, limit, unread))
        found = await admitted(self._database, user, row)
        _, at, _, _, total, unread_count, more, last, data, _ = found
        return Page(data, total, unread_count, last, more, cursor_of(made_in(found), at))

    async def _look(self, asked: Sequence[AskedPage]) -> dict[AskedPage, Record]:
        if len(asked) == 1:
            row = await self._database.row(_SQL["page"], *asked[0])
            return {asked[0]: row} if row else {}
        columns = map(list, zip(*asked, strict=True))
        return {asked[row["number"] - 1]: row for row in await self._database.rows(_SQL["pages"], *columns)}


def _count_of_next(asked: Sequence[AskedPage]) -> int:
    """Return how many of the pages that are asked for have few rows together."""
    rows = accumulate(page.limit for page in asked)
    return next((count for count, total in enumerate(rows, 1) if total >= ROWS_OF_PAGES), len(asked))


async def skip(database: Database, user_id: int, *, unread: bool, count: int) -> int:
    """Return the position below which an inbox continues after its `count` newest; `OLDEST` if it ends before."""
    if count == 0:
        return NEWEST
    found: int | None = await database.value(_SQL["unread_skip" if unread else "skip"], user_id, count)
    return OLDEST if found is None else found
