"""Dead letters: jobs and pushes that failed permanently. They can be listed and requeued."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from tocsin.db.pool import Database, queries
from tocsin.notifications import time_of
from tocsin.pubsub import PubSub
from tocsin.push import deliveries

KEPT = timedelta(days=30)
"""The retention period of dead letters."""

REQUEUE_BATCH_SIZE = 10_000
"""Maximum pushes per replay."""

_SQL = queries("jobs")


@dataclass(frozen=True, slots=True)
class Replayed:
    """The number of requeued jobs and pushes."""

    jobs: int
    pushes: int


async def listed(
    database: Database, before: datetime, limit: int, company_id: int | None = None
) -> list[dict[str, Any]]:
    """Return up to `limit` dead letters before a time, the newest first, of one company or of all."""
    jobs = [
        {
            "what": "job",
            "task": row["task"],
            "event_id": str(row["id"]),
            "user_id": None,
            "lane": row["lane"],
            "attempts": row["attempts"],
            "reason": row["reason"],
            "at": row["died_at"],
        }
        for row in await database.rows(_SQL["dead_letters"], before, limit, company_id)
    ]
    pushes = [
        {
            "what": "push",
            "task": "push",
            "event_id": str(row["event_id"]),
            "user_id": row["user_id"],
            "lane": row["lane"],
            "attempts": row["attempts"],
            "reason": row["reason"],
            "at": row["settled_at"],
        }
        for row in await deliveries.dead(database, before, limit, company_id)
    ]
    latest = sorted([*jobs, *pushes], key=lambda letter: letter["at"], reverse=True)[:limit]
    return [{**letter, "at": time_of(letter["at"])} for letter in latest]


async def replay(  # noqa: PLR0913, PLR0917 - what to replay, and for whom
    database: Database,
    pubsub: PubSub,
    ids: Sequence[UUID] | None,
    since: datetime,
    lane: str | None = None,
    company_id: int | None = None,
) -> Replayed:
    """Requeue the dead letters of these events, or all since a time; with `lane`, only pushes of that lane.

    With `company_id`, only dead letters of that company are requeued.
    """
    jobs = [] if lane else await database.rows(_SQL["requeue"], ids, since, company_id)
    if ids is None:
        pushes = await deliveries.replay_lane(database, lane, since, REQUEUE_BATCH_SIZE, company_id)
    else:
        pushes = await deliveries.replay(database, ids, company_id)
    for topic in ("direct", "bulk", "push"):
        pubsub.publish(topic)
    return Replayed(len(jobs), pushes)
