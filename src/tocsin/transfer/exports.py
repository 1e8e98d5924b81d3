"""Exports: users, teams, devices and notifications as lines of JSON, in the format of imports.

An export is a consistent snapshot. It contains the tokens of devices, so the file must be kept secret.
"""

from collections.abc import AsyncIterator

from tocsin import audit
from tocsin.audit import Actor
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.db.statements import queries

_BEFORE_ALL = -(2**62)
_SQL = queries("exports")


async def export(database: Database, actor: Actor) -> AsyncIterator[str]:
    """Yield the lines of everything, or of the actor's company, as of the start; without line ends.

    The audit log has the export before the first line, because a reader can stop at any line. Notifications that a user
    received in another company are only in an export of everything.
    """
    company_id = actor.company_id
    await audit.record_alone(database, actor, "exported")
    async with database.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        for part in ("users", "teams"):
            async for line in _walk(connection, part, company_id):
                yield line
        async for line in _walk(connection, "devices", company_id):
            yield line
        async for person in _people(connection, company_id):
            async for line in _walk(connection, "notifications", person, company_id, after=_BEFORE_ALL):
                yield line


async def _walk(connection: Connection, part: str, *of: int | None, after: int = 0) -> AsyncIterator[str]:
    """Yield the lines of a statement, up to a thousand at a time. A row without a line only marks the progress."""
    while rows := await connection.fetch(_SQL[part], after, *of):
        for row in rows:
            if row["line"] is not None:
                yield row["line"]
        after = rows[-1]["last"]


async def _people(connection: Connection, company_id: int | None) -> AsyncIterator[int]:
    after = 0
    while rows := await connection.fetch(_SQL["people"], after, company_id):
        for row in rows:
            yield row["last"]
        after = rows[-1]["last"]
