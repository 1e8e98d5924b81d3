"""Resolutions: mark as read, remove or rewrite the notifications about a subject, for all their users.

A resolution applies to the events that exist when it is accepted, not to later ones. It is processed by jobs, each for
some thousand events, which read the records of recipients, some thousand users per transaction.
"""

import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from tocsin import audit, inbox, jobs
from tocsin.audit import Actor
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection, Record, fetch_long
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.ids import new_id
from tocsin.inbox import Change
from tocsin.jobs import Job
from tocsin.notifications import body_of, erased_body, is_imported, to_json
from tocsin.pubsub import PubSub

How = Literal["read", "gone", "erased"]

CHANGES: Mapping[How, Change] = {"read": "read", "gone": "deleted", "erased": "rewritten"}
"""What a resolution does to notifications."""

USERS_BATCH_SIZE = {"direct": 500, "bulk": 5_000}
"""Maximum users per transaction, by queue. Resolutions of more users continue in the bulk queue."""

RECORDS_BATCH_SIZE = 500
"""Maximum records of recipients per transaction: no user has more changes of one position."""

EVENTS_PER_JOB = 2_000
"""Maximum events of a job. The first job of a resolution is in the direct queue, others in the bulk queue."""

EVENTS_BATCH_SIZE = 200
"""Maximum events per transaction that rewrites them."""

POLL_INTERVAL = 0.3
"""Seconds after which events that were still being delivered are checked again."""

KEY = "key:"
"""The prefix of a subject that is a key of a service. It refers only to events of that service."""

_SQL = queries("resolutions")


@dataclass(frozen=True, slots=True)
class Resolution:
    """A request to resolve the notifications about `subject`, for these `users` or for all (None).

    A resolution by a service of a company applies only to users of that company.
    """

    subject: str
    how: How
    users: Sequence[int] | None
    service: str
    company_id: int | None


async def resolve(database: Database, pubsub: PubSub, resolution: Resolution, actor: Actor) -> None:
    """Store a resolution durably. Events that it removes are not delivered if they are still waiting."""
    owner = resolution.service if resolution.subject.startswith(KEY) else None
    about = resolution.subject, owner, resolution.company_id
    parts = EVENTS_PER_JOB, f"resolution:{new_id()}"
    async with database.transaction() as connection:
        if resolution.how == "gone":
            await fetch_long(connection, _SQL["hold"], *about)
        if resolution.how == "gone" and resolution.users is None:
            await fetch_long(connection, _SQL["cancel"], *about)
        elif resolution.how == "gone":
            await fetch_long(connection, _SQL["except"], *about, resolution.users)
        asked = resolution.how, resolution.users
        [[count]] = await fetch_long(connection, _SQL["accept"], *about, *asked, *parts)
        details: dict[str, Any] = {"as": resolution.how, "events": count}
        if resolution.users is not None:
            details["users"] = len(resolution.users)
        await audit.record(connection, actor, "subject_resolved", resolution.subject, **details)
    for topic in ("direct", "settled"):
        pubsub.publish(topic)


async def settle(database: Database, catalogue: Catalogue, worker: UUID, job: Job) -> Collection[int]:
    """Run the next step of a job of a resolution; return the users whose inboxes it processed.

    Raises `Lost` if the lease of the job is lost.
    """
    await database.value(_SQL["begin"], job.id)
    resolution = await database.row(_SQL["resolution"], job.id)
    if resolution is None:
        async with database.transaction() as connection:
            await jobs.finish(connection, worker, [job.id])
    elif not resolution["rewritten"]:
        await _rewrite(database, catalogue, worker, job)
    else:
        return await _settle(database, worker, job, resolution)
    return ()


async def _settle(database: Database, worker: UUID, job: Job, resolution: Record) -> Collection[int]:
    chunks = await database.rows(_SQL["chunks"], job.id, USERS_BATCH_SIZE[job.queue], RECORDS_BATCH_SIZE)
    is_last = not chunks or not chunks[0]["more"]
    async with database.transaction() as connection:
        if not is_last:
            await jobs.save_progress(connection, worker, [(job.id, job.progress + 1)])
            await connection.execute(_SQL["advance"], job.id, chunks[-1]["event_id"], chunks[-1]["after_user"])
        elif resolution["again"]:
            await jobs.hand_back(connection, worker, [job.id], POLL_INTERVAL)
            await connection.execute(_SQL["restart"], job.id)
        else:
            await jobs.finish(connection, worker, [job.id])
            await connection.execute(_SQL["forget"], job.id)
        return await _settle_chunks(connection, resolution, chunks)


async def _settle_chunks(connection: Connection, resolution: Record, chunks: Sequence[Record]) -> Collection[int]:
    reached = {id_ for chunk in chunks for id_ in chunk["user_ids"]}
    if resolution["users"] is not None:
        reached &= set(resolution["users"])
    concerned = await inbox.lock(connection, reached, resolution["company_id"])
    entries = [(chunk["event_id"], id_) for chunk in chunks for id_ in chunk["user_ids"] if id_ in concerned]
    if entries:
        await inbox.mark(connection, entries, CHANGES[resolution["how"]])
    return concerned


async def _rewrite(database: Database, catalogue: Catalogue, worker: UUID, job: Job) -> None:
    """Remove the personal data from the next events, in all languages."""
    async with database.transaction() as connection:
        await jobs.save_progress(connection, worker, [(job.id, job.progress + 1)])
        found = await connection.fetch(_SQL["to_rewrite"], job.id, EVENTS_BATCH_SIZE)
        if not found:
            await connection.execute(_SQL["rewritten"], job.id)
            return
        ids = [event["id"] for event in found]
        await connection.execute(_SQL["hold_deliveries"], ids)
        blank = {event["id"]: _without_words(catalogue, event) for event in found if event["kind"] is not None}
        said = await connection.fetch(_SQL["contents"], list(blank))
        await connection.execute(
            _SQL["rewrite"],
            list(blank),
            [event["data"] for event in blank.values()],
            [event["params"] for event in blank.values()],
            [row["event_id"] for row in said],
            [row["language"] for row in said],
            [_render_again(catalogue, blank[row["event_id"]], row) for row in said],
        )
        await connection.execute(_SQL["advance"], job.id, ids[-1], -1)


def _without_words(catalogue: Catalogue, event: Record) -> dict[str, Any]:
    data, params = catalogue.erase(event["kind"], json.loads(event["data"]), json.loads(event["params"]))
    return {**event, "data": to_json(data), "params": to_json(params), "erased": True}


def _render_again(catalogue: Catalogue, event: Mapping[str, Any], said: Record) -> str:
    if not is_imported(said["language"]):
        with contextlib.suppress(LookupError):  # the kind was removed or changed since
            return body_of(catalogue, event, said["language"])
    return erased_body(catalogue, said["body"], said["language"])
