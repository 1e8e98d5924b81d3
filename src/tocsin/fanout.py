"""Fan-out: an event becomes an entry in the inbox of each recipient.

A chunk is one transaction: the progress of the job, the heads, the entries, the recipients and the content. So a chunk
is delivered exactly once, completely or not at all.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from tocsin import inbox, jobs
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection, Record
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.ids import MAX_ID
from tocsin.jobs import DIRECT_MAX_RECIPIENTS, Job, Queue
from tocsin.notifications import body_of

BULK_CHUNK_SIZE = 10_000
"""Maximum recipients per transaction of the bulk queue."""

DIRECT_MAX_IDS = 1_000
"""Maximum users and teams that an event in the direct queue names. Larger events go to the bulk queue, even if they
have few recipients: the look-up would delay the other events of the claim."""

EVERYONE = MAX_ID

_SQL = queries("fanout")


class Undeliverable(Exception):  # noqa: N818 - a fact about an event
    """An event can never be delivered; the message is the reason of the dead letter."""


@dataclass(frozen=True, slots=True)
class Done:
    """What was delivered: the events that are complete, and the users who received something."""

    events: Sequence[UUID]
    user_ids: Collection[int]


@dataclass(frozen=True, slots=True)
class Pushes:
    """The lanes of pushes, and the function that wakes their dispatcher."""

    lanes: Sequence[str]
    publish: Callable[[], object]


async def deliver(
    database: Database, catalogue: Catalogue, worker: UUID, leased: Sequence[Job], pushes: Pushes | None = None
) -> Done:
    """Deliver the next chunk of the event of each job, in order.

    Queues pushes to the devices in the lanes of `pushes`. An event in the direct queue that reaches many users is only
    moved to the bulk queue, and the jobs that follow it in its batch are released. Raises `Undeliverable` if an event
    cannot be rendered, and `Lost` if another worker has a job; nothing is delivered then.
    """
    queue: Queue = leased[0].queue
    limit, most_named = (_chunk(leased), EVERYONE) if queue == "bulk" else (DIRECT_MAX_RECIPIENTS + 1, DIRECT_MAX_IDS)
    ids, progress = [job.id for job in leased], [job.progress for job in leased]
    outlines = await database.rows(_SQL["outline"], ids, progress, limit, most_named, len(ids))
    waiting = await _waiting(database, leased, {outline["id"] for outline in outlines if outline["reach"] == limit})
    ready = [outline for outline in outlines if outline["id"] not in waiting]
    many = [outline for outline in ready if outline["reach"] == limit]
    chunks = ready if queue == "bulk" else [outline for outline in ready if outline["reach"] < limit]
    done = [outline["id"] for outline in ready if outline["reach"] < limit]
    entered: Sequence[Record] = ()
    async with database.transaction() as connection:
        await jobs.hold(connection, worker, ids)
        await jobs.finish(connection, worker, done)
        await jobs.save_progress(connection, worker, [(outline["id"], _step(outline, queue)) for outline in many])
        await jobs.hand_back(connection, worker, list(waiting))
        if chunks:
            entered = await _enter(connection, catalogue, chunks, limit, queue, pushes.lanes if pushes else ())
            await _forget_erased(connection, [chunk for chunk in chunks if chunk["reach"] < limit], entered)
    if pushes and any(each["pushed"] for each in entered):
        pushes.publish()
    return Done(done, {user_id for each in entered for user_id in each["user_ids"]})


async def behind_locks(database: Database, leased: Sequence[Job]) -> list[Job]:
    """Return the jobs of the direct queue that reach a user whose head is locked by another session."""
    ids = [job.id for job in leased]
    rows = await database.rows(_SQL["behind_locks"], ids, DIRECT_MAX_RECIPIENTS + 1, DIRECT_MAX_IDS)
    found = {row["event_id"] for row in rows}
    return [job for job in leased if job.id in found]


def _chunk(leased: Sequence[Job]) -> int:
    """Return the recipients per chunk: half as many after each failure, in case the chunk was too large."""
    return BULK_CHUNK_SIZE >> min(max(job.attempts for job in leased) - 1, 6)


async def _waiting(database: Database, leased: Sequence[Job], many: Collection[UUID]) -> set[UUID]:
    """Return the jobs that wait for an earlier job of their batch. A large event delays all later ones."""
    waiting = await jobs.out_of_turn(database, leased)
    taking_long: set[UUID] = set()
    for job in leased:
        if job.batch in taking_long:
            waiting.add(job.id)
        elif job.batch and job.id in many and job.id not in waiting:
            taking_long.add(job.batch)
    return waiting


def _step(outline: Record, queue: Queue) -> int:
    reached: int = outline["up_to" if queue == "bulk" else "after_user"]
    return reached


async def _enter(  # noqa: PLR0913, PLR0917 - all that a chunk is
    connection: Connection,
    catalogue: Catalogue,
    chunks: Sequence[Record],
    limit: int,
    queue: Queue,
    lanes: Sequence[str],
) -> Sequence[Record]:
    """Write chunks into inboxes; return the events with recipients, their users and whether there are pushes."""
    entered = await inbox.enter(
        connection,
        [
            (chunk["id"], chunk["after_user"], chunk["up_to"] if chunk["reach"] == limit else EVERYONE)
            for chunk in chunks
        ],
        list(catalogue.languages),
        list(lanes),
        is_bulk=queue == "bulk",
    )
    said = [
        (event["id"], language, _rendered(catalogue, event, language))
        for event in entered
        for language in event["languages"]
    ]
    if said:
        await connection.execute(_SQL["insert_contents"], *map(list, zip(*said, strict=True)))
    return entered


async def _forget_erased(connection: Connection, last: Sequence[Record], entered: Sequence[Record]) -> None:
    """Remove users who were erased before from events whose last chunks were entered and did not reach all of them."""
    reached = {event["id"]: len(event["user_ids"]) for event in entered}
    if left_out := [chunk["id"] for chunk in last if reached.get(chunk["id"], 0) < chunk["reach"]]:
        await connection.execute(_SQL["forget_erased"], left_out)


def _rendered(catalogue: Catalogue, event: Record, language: str) -> str:
    try:
        return body_of(catalogue, dict(event), language)
    except LookupError as error:
        raise Undeliverable(f"cannot render {event['kind']} in {language}: {error}") from error
