"""Idempotency keys: a POST request that is repeated does nothing and is answered as the first time.

The key stands in the transaction of what the request does: both are on disk, or neither. A repeat that comes while the
first is under way waits for its end. Only successes are kept, for 24 hours.
"""

from dataclasses import astuple, dataclass
from uuid import UUID

from tocsin.db.pool import Connection, queries
from tocsin.errors import KeyReused, Unavailable

MAX_KEY_LENGTH = 255
"""Characters of the longest key."""

_SQL = queries("idempotency")


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A key of a caller's own, for one method and path."""

    caller: str
    method: str
    path: str
    key: str


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What was answered the first time."""

    status: int
    body: str
    import_id: UUID | None = None
    """Of an import, which is answered when it is applied; where it is given up, its key is free."""


async def begin(connection: Connection, key: IdempotencyKey, digest: bytes) -> StoredAnswer | None:
    """Take a key for this transaction, or return what was answered under it; raises `KeyReused` for another body."""
    if await connection.fetchval(_SQL["begin"], *astuple(key), digest):
        return None
    row = await connection.fetchrow(_SQL["answer"], *astuple(key))
    if row is None:  # it has just been forgotten
        raise Unavailable
    if row["digest"] != digest:
        raise KeyReused
    return StoredAnswer(row["status"], row["body"], row["import_id"])


async def keep(connection: Connection, key: IdempotencyKey, answer: StoredAnswer) -> None:
    """Keep what is answered under a key that this transaction took."""
    await connection.execute(_SQL["keep"], *astuple(key), *astuple(answer))
