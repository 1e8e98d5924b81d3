"""Detects a connection pooler that shares one session of the server among several clients, as in transaction mode."""

from collections.abc import Sequence

import asyncpg

from tocsin.db.connections import CONNECT_TIMEOUT, Connection, in_time, reach
from tocsin.db.url import target_of
from tocsin.errors import Refusal

COMPARISONS = 5
"""How often two connections are compared: each time, other clients may have the session that would prove it."""

_MARK = "select pg_backend_pid(), set_config('tocsin.connection', $1, false)"
_LOOK = "select pg_backend_pid(), current_setting('tocsin.connection', true)"


async def refuse_shared_sessions(url: str, named_by: str = "TOCSIN_DATABASE_URL") -> None:
    """Raise `Refusal` if a pooler does not keep one server session per connection.

    A shared session would lose settings and locks, or keep them for other clients of the pooler. So this comes before
    the settings of a session. The test: while another connection is in a transaction, the first one must still have its
    session, and a setting that only the test uses.
    """
    connections: list[Connection] = []
    try:
        for mark in ("first", "second"):
            connection = await reach(target_of(url), CONNECT_TIMEOUT, statements=0)
            connections.append(connection)
            with in_time():
                await _session(connection, mark)
        is_shared = await _are_mixed(connections)
    except asyncpg.PostgresConnectionError as error:
        if "pooling mode" not in str(error):
            raise
        is_shared = True
    finally:
        for connection in connections:
            connection.terminate()
    if is_shared:
        raise Refusal(
            "The pooler in front of the database shares one session among several clients, as in transaction mode; set"
            f" it to session mode, or name the server itself in {named_by}."
        )


async def _are_mixed(connections: Sequence[Connection]) -> bool:
    """Return whether connections do not keep their sessions."""
    first, second = connections
    seen = set()
    for _ in range(COMPARISONS):
        seen.add(await _session(first, "first"))
        async with second.transaction():
            seen.add(await _session(second, "second"))
            try:
                seen.add(tuple(await first.fetchrow(_LOOK) or ()))
            except TimeoutError:
                await second.execute("select 1")  # the server answers, so it is the pooler that has no other session
                return True
        if len(seen) != len(connections) or len(dict(seen)) != len(connections):
            return True
    return False


async def _session(connection: Connection, mark: str) -> tuple[int, str]:
    """Mark a session, and return its process id with the mark."""
    process_id, marked = await connection.fetchrow(_MARK, mark) or (0, "")
    return process_id, marked
