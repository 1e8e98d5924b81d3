"""Idempotency keys: a repeated POST request has no effect and gets the response of the first.

The key is stored in the transaction of the request: both are committed, or neither is. A repeated request waits while
the first is being processed. Only successful responses are kept, for 24 hours.
"""

from dataclasses import astuple, dataclass
from uuid import UUID

from tocsin.db.connections import Connection
from tocsin.db.statements import queries
from tocsin.errors import KeyReused, Unavailable

MAX_KEY_LENGTH = 255
"""Maximum characters of a key."""

_SQL = queries("idempotency")


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A key of a caller, for one method and path."""

    caller: str
    method: str
    path: str
    key: str


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The response to the first request."""

    status: int
    body: str
    import_id: UUID | None = None
    """Of an import, whose response is known when it was applied. If the import is given up, its key is released."""


async def begin(connection: Connection, key: IdempotencyKey, digest: bytes) -> StoredAnswer | None:
    """Take the key for this transaction, or return its stored response. Raises `KeyReused` for another body."""
    if await connection.fetchval(_SQL["begin"], *astuple(key), digest):
        return None
    row = await connection.fetchrow(_SQL["answer"], *astuple(key))
    if row is None:  # the key expired just now
        raise Unavailable
    if row["digest"] != digest:
        raise KeyReused
    return StoredAnswer(row["status"], row["body"], row["import_id"])


async def keep(connection: Connection, key: IdempotencyKey, answer: StoredAnswer) -> None:
    """Store the response for a key that this transaction took."""
    await connection.execute(_SQL["keep"], *astuple(key), *astuple(answer))
