"""Dead letters: jobs and pushes that failed permanently. They can be listed and requeued."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any
from uuid import UUID

from tocsin import audit
from tocsin.audit import Actor
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.pubsub import PubSub
from tocsin.push import deliveries

KEPT = timedelta(days=30)
"""The retention period of dead letters. Those of erasures and resolutions stay until they are replayed."""

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
    jobs = await database.rows(_SQL["dead_letters"], before, limit, company_id)
    pushes = await deliveries.dead(database, before, limit, company_id)
    latest = sorted([*jobs, *pushes], key=itemgetter("at"), reverse=True)
    return [dict(letter) for letter in latest[:limit]]


async def replay(  # noqa: PLR0913, PLR0917 - what to replay, and for whom
    database: Database,
    pubsub: PubSub,
    ids: Sequence[UUID] | None,
    since: datetime,
    actor: Actor,
    lane: str | None = None,
) -> Replayed:
    """Requeue the dead letters of these events, or all since a time; with `lane`, only pushes of that lane.

    If the actor is bound to a company, only dead letters of that company are requeued.
    """
    async with database.transaction() as connection:
        done = await _requeue(connection, ids, since, lane, actor.company_id)
        if done.jobs or done.pushes:
            subject = f"event:{ids[0]}" if ids and len(ids) == 1 else lane and f"lane:{lane}"
            await audit.record(connection, actor, "replayed", subject, jobs=done.jobs, pushes=done.pushes)
    for topic in ("direct", "bulk", "push"):
        pubsub.publish(topic)
    return done


async def _requeue(
    connection: Connection, ids: Sequence[UUID] | None, since: datetime, lane: str | None, company_id: int | None
) -> Replayed:
    jobs = [] if lane else await connection.fetch(_SQL["requeue"], ids, since, company_id)
    if ids is None:
        pushes = await deliveries.replay_lane(connection, lane, since, REQUEUE_BATCH_SIZE, company_id)
    else:
        pushes = await deliveries.replay(connection, ids, company_id)
    return Replayed(len(jobs), pushes)
