"""Sessions of people in the console: a secret in a cookie, and short-lived tokens for the API that are made from it.

The database has hashes of both, so that a copy of it opens no session.
"""

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from tocsin import audit
from tocsin.audit import Actor
from tocsin.auth.claims import ROLES, OperatorCaller
from tocsin.auth.oidc import Identity
from tocsin.db.connections import Record
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import Unauthenticated
from tocsin.ids import new_id

SESSION_LIFETIME = 8 * 3600
"""Seconds after which a person has to sign in again."""

IDLE_LIFETIME = 3600
"""Seconds after which a session ends that no visible page has renewed."""

TOKEN_INTERVAL = 300
"""Seconds after which a session gets another token. Each is valid for one to two intervals."""

MAX_SESSIONS = 10
"""Maximum sessions of one person. One more ends the oldest."""

PREFIX = "console_"
"""The beginning of every token of a session. No JWT has it."""

_COOKIE = re.compile(r"([0-9a-f]{32})\.([A-Za-z0-9_-]{43})")
_TOKEN = re.compile(PREFIX + _COOKIE.pattern)
_SQL = queries("console_sessions")


@dataclass(frozen=True, slots=True)
class SessionToken:
    """A token for the API, the seconds for which it is valid, and the caller that it names."""

    token: str
    seconds: int
    caller: OperatorCaller


async def begin(database: Database, person: Identity, request_id: str) -> str:
    """Begin a session, record it in the audit log, and return the value of its cookie."""
    id_, secret = new_id(), secrets.token_urlsafe(32)
    async with database.transaction() as connection:
        await connection.execute(
            _SQL["begin"],
            id_,
            _hash(secret),
            person.subject,
            person.name,
            person.role,
            person.company_id,
            SESSION_LIFETIME,
            MAX_SESSIONS,
        )
        actor = _actor(person.subject, person.name, person.company_id, request_id)
        await audit.record(connection, actor, "signed_in", role=person.role)
    return f"{id_.hex}.{secret}"


async def renew(database: Database, cookie: str, clock: Callable[[], float] = time.time) -> SessionToken | None:
    """Return the current token of a session; None if there is no such session, or it has ended."""
    given = _COOKIE.fullmatch(cookie)
    if given is None:
        return None
    interval, passed = divmod(int(clock()), TOKEN_INTERVAL)
    made = hmac.digest(given[2].encode(), f"tocsin console token {interval}".encode(), "sha256")
    secret = base64.urlsafe_b64encode(made).rstrip(b"=").decode()
    row = await database.row(_SQL["renew"], UUID(given[1]), _hash(given[2]), _hash(secret), IDLE_LIFETIME)
    seconds = 2 * TOKEN_INTERVAL - passed
    if row is None:
        return None
    return SessionToken(f"{PREFIX}{given[1]}.{secret}", seconds, _caller(row))


async def caller_of(database: Database, token: str) -> OperatorCaller:
    """Return the caller of a token of a session. Raises `Unauthenticated`."""
    given = _TOKEN.fullmatch(token)
    row = given and await database.row(_SQL["of_token"], UUID(given[1]), _hash(given[2]), 2 * TOKEN_INTERVAL)
    if not row:
        raise Unauthenticated("The session has ended; sign in again.", presented=True)
    return _caller(row)


async def finish(database: Database, cookie: str, request_id: str) -> None:
    """End a session, if there is one, and record that in the audit log."""
    given = _COOKIE.fullmatch(cookie)
    if given is None:
        return
    async with database.transaction() as connection:
        row = await connection.fetchrow(_SQL["finish"], UUID(given[1]), _hash(given[2]))
        if row and row["was_open"]:
            actor = _actor(row["subject"], row["name"], row["company_id"], request_id)
            await audit.record(connection, actor, "signed_out")


async def finish_all(database: Database, subject: str | None, actor: Actor) -> int:
    """End the sessions of one person, or of all, record that in the audit log, and return their number."""
    async with database.transaction() as connection:
        ended = len(await connection.fetch(_SQL["finish_all"], subject))
        if ended:
            named = None if subject is None else f"operator:{subject}"
            await audit.record(connection, actor, "sessions_ended", named, sessions=ended)
    return ended


def _caller(row: Record) -> OperatorCaller:
    scopes = frozenset({ROLES[row["role"]]})
    return OperatorCaller(row["subject"], scopes, row["company_id"], int(row["ends_at"]), row["name"])


def _actor(subject: str, name: str | None, company_id: int | None, request_id: str) -> Actor:
    return Actor(f"operator {subject}", company_id, request_id, name=name)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
