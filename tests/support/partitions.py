"""Databases whose tables have no partitions, or those of a new installation."""

from unittest.mock import patch

from tests.support.database import url_for
from tocsin.db import migrate
from tocsin.db.connections import connect
from tocsin.ids import new_id
from tocsin.postgres.supervisor import Embedded


async def new_database(server: Embedded, name: str) -> str:
    """Make a database as a new installation has it, and return its url. The template of others may be of last month."""
    url = await _empty_database(server, name)
    await migrate.migrate(url)
    return url


async def _empty_database(server: Embedded, name: str) -> str:
    connection = await connect(server.url)
    await connection.execute(f"drop database if exists {name} with (force)")
    await connection.execute(f"create database {name}")
    await connection.close()
    return url_for(server, name)


async def whole_database(server: Embedded, name: str) -> str:
    """Make a database that had an event before tables could have partitions, and return its url."""
    url = await _empty_database(server, name)
    steps = migrate.steps()
    before = [step.name for step in steps].index("partitions")
    with patch.object(migrate, "steps", lambda: steps[:before]):
        await migrate.migrate(url)
    connection = await connect(url)
    await connection.execute(
        "insert into events (id, kind, data, params, users, teams, subjects, accepted_at, generation)"
        " values ($1, 'custom', '{}', '{}', '{}', '{}', '{}', now() - interval '1 minute', 0)",
        event := new_id(),
    )
    await connection.execute("insert into cancellations (event_id) values ($1)", event)
    await connection.close()
    taken = await migrate.migrate(url)
    assert taken[0].name == "partitions"
    return url
