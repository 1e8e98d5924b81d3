"""Posters: the database roles that may post events by `tocsin.post`, each as one service and for one company or all."""

from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import Refusal

_SQL = queries("posters")

RIGHTS = ('usage on schema "{schema}"', "execute on function post(jsonb)", "select on own_posts")
"""All that a poster may do."""


async def permit(database: Database, role: str, service: str, company_id: int | None) -> None:
    """Let a role post events as a service, for a company or for all. Raises `Refusal` if there is no such role."""
    async with database.transaction() as connection:
        quoted = await _quoted(connection, role)
        for right in RIGHTS:
            await connection.execute(f"grant {right.format(schema=database.schema)} to {quoted}")
        await connection.execute(_SQL["add"], role, service, company_id)


async def withdraw(database: Database, role: str) -> None:
    """Take the right to post from a role. Raises `Refusal` if it has none. Its events that wait stay accepted."""
    async with database.transaction() as connection:
        if not await connection.fetchval(_SQL["remove"], role):
            raise Refusal(f"The role {role} may not post events: there is nothing to remove.")
        if await connection.fetchval(_SQL["role"], role):
            quoted = await _quoted(connection, role)
            for right in RIGHTS:
                await connection.execute(f"revoke {right.format(schema=database.schema)} from {quoted}")


async def _quoted(connection: Connection, role: str) -> str:
    quoted: str | None = await connection.fetchval(_SQL["role"], role)
    if quoted is None:
        raise Refusal(f"There is no role {role}: as the owner of the server, run: create role {role} login")
    return quoted
