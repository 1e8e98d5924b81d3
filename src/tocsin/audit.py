"""The audit log: who did what, and when. It contains no text of notifications.

An entry is written in the transaction of the action: both are committed, or neither is. A trigger of the table refuses
to change entries, and to delete them, except by retention.
"""

import json
import os
import pwd
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from tocsin.db.connections import Connection, Record
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.ids import new_id
from tocsin.notifications import to_json

Action = Literal[
    "console_opened",
    "custom_sent",
    "event_cancelled",
    "exported",
    "imported",
    "preference_locks_changed",
    "replayed",
    "sessions_ended",
    "signed_in",
    "signed_out",
    "subject_resolved",
    "test_push_sent",
    "user_erased",
]

DEFAULT_RETENTION_DAYS = 365
"""Days for which entries are kept by default."""

MAX_EXAMINED = 10_000
"""Maximum entries that one page examines. A page of a rare caller or action may be empty although others follow."""

_SQL = queries("audit")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: the caller as in the log, their company, and the request.

    The name of a user (`user_id`) is looked up when an action is recorded. Other callers may have a `name`.
    """

    caller: str
    company_id: int | None = None
    request_id: str | None = None
    user_id: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries a page contains: of a company, a caller, an action and a time; None: of all."""

    company_id: int | None = None
    caller: str | None = None
    action: Action | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Entries, the latest first, and the id after which the next page begins, if there may be one."""

    entries: list[dict[str, Any]]
    next: UUID | None


def actor_of_command(command: str, company_id: int | None = None) -> Actor:
    """Return who acts by a command, by the name of the user of the operating system."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container
        name = f"uid {os.getuid()}"
    return Actor(f"command {command}", company_id, name=name)


async def record(
    connection: Connection,
    actor: Actor,
    action: Action,
    subject: str | None = None,
    company_id: int | None = None,
    **details: Any,
) -> None:
    """Record an action in this transaction. `company_id` is that of the subject; None: that of the actor."""
    await connection.execute(
        _SQL["record"],
        new_id(),
        action,
        actor.caller,
        actor.name,
        actor.user_id,
        company_id or actor.company_id,
        actor.request_id,
        subject,
        to_json(details),
    )


async def record_alone(database: Database, actor: Actor, action: Action, **more: Any) -> None:
    """Record an action that changes nothing else in the database."""
    async with database.transaction() as connection:
        await record(connection, actor, action, **more)


async def page(database: Database, wanted: AuditFilter, before: UUID | None, limit: int) -> AuditPage:
    """Return up to `limit` entries before another one, the latest first."""
    examined = MAX_EXAMINED if wanted.caller or wanted.action else limit + 1
    rows = await database.rows(
        _SQL["page"],
        wanted.company_id,
        before,
        wanted.since,
        wanted.until,
        wanted.caller,
        wanted.action,
        limit + 1,
        examined,
    )
    found, last = ([row for row in rows if row["is_last"] is is_last] for is_last in (False, True))
    if len(found) > limit:
        return AuditPage(list(map(_entry, found[:limit])), found[limit - 1]["id"])
    return AuditPage(list(map(_entry, found)), last[0]["id"] if last else None)


async def expire(connection: Connection, limit: int, days: int) -> int:
    """Delete up to `limit` entries that are older; return their number."""
    count: int = await connection.fetchval(_SQL["expire"], limit, days)
    return count


def _entry(row: Record) -> dict[str, Any]:
    return {**row, "at": row["happened_at"], "details": json.loads(row["details"])}
