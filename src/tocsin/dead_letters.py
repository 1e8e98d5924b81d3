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
"""Maximum jobs and pushes per replay, unless they are named."""

_SQL = queries("jobs")


@dataclass(frozen=True, slots=True)
class Replayed:
    """The number of requeued jobs and pushes."""

    jobs: int
    pushes: int


async def listed(
    database: Database, before: datetime | None, limit: int, company_id: int | None = None
) -> list[dict[str, Any]]:
    """Return up to `limit` dead letters, ever or before a time, the newest first, of one company or of all."""
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
    until: datetime | None = None,
) -> Replayed:
    """Requeue the dead letters of these events, or the first in a period; with `lane`, only pushes of that lane.

    If the actor is bound to a company, only dead letters of that company are requeued.
    """
    async with database.transaction() as connection:
        done = await _requeue(connection, ids, (since, until), lane, actor.company_id)
        if done.jobs or done.pushes:
            subject = f"event:{ids[0]}" if ids and len(ids) == 1 else lane and f"lane:{lane}"
            await audit.record(connection, actor, "replayed", subject, jobs=done.jobs, pushes=done.pushes)
    for topic in ("direct", "bulk", "push"):
        pubsub.publish(topic)
    return done


async def replay_all(
    database: Database, pubsub: PubSub, since: datetime, actor: Actor, lane: str | None = None
) -> Replayed:
    """Requeue all dead letters since a time, in steps; with `lane`, only pushes of that lane."""
    until: datetime = await database.value(_SQL["clock"])  # those that die again are left
    jobs = pushes = 0
    while True:
        done = await replay(database, pubsub, None, since, actor, lane, until)
        jobs, pushes = jobs + done.jobs, pushes + done.pushes
        if max(done.jobs, done.pushes) < REQUEUE_BATCH_SIZE:
            return Replayed(jobs, pushes)


async def _requeue(
    connection: Connection,
    ids: Sequence[UUID] | None,
    period: deliveries.Period,
    lane: str | None,
    company_id: int | None,
) -> Replayed:
    arguments = ids, period[0], company_id, period[1], REQUEUE_BATCH_SIZE
    jobs = [] if lane is not None else await connection.fetch(_SQL["requeue"], *arguments)
    if ids is None:
        pushes = await deliveries.replay_lane(connection, lane, period, REQUEUE_BATCH_SIZE, company_id)
    else:
        pushes = await deliveries.replay(connection, ids, company_id, lane)
    return Replayed(len(jobs), pushes)
