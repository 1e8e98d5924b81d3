"""Posted events: those that other applications post by `tocsin.post`, in transactions of their own.

The function checks what the database knows and stores the event with a job. A worker validates the event as the API
does, and accepts it, or makes a dead letter of it, in the transaction that ends the job.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from tocsin import jobs
from tocsin.acceptance import Accepted, Draft, Outcome
from tocsin.db.connections import Connection, Record
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import IdReused, Invalid, Malformed, Problem
from tocsin.events import Intake
from tocsin.jobs import Job, Lost

MAX_WAITING = 1_000_000
"""Maximum due jobs of the direct queue with which events can be posted."""

MAX_REASON_LENGTH = 500
"""Maximum characters of the reason of a dead letter."""

Check = Callable[[str, str, int | None], Draft]
"""Returns the draft of an event: its JSON, and the service and the company that post it. Raises a `Problem`."""

REFUSALS = (IdReused, Invalid, Malformed)
"""The problems of an event itself."""

_SQL = queries("posts")


@dataclass(frozen=True, slots=True)
class Post:
    """A valid event that was posted, and the id of its job."""

    job: UUID
    id: UUID
    draft: Draft


class Posts:
    """Accepts the posted events of a worker's jobs. `types` are those of the catalogue."""

    def __init__(self, database: Database, intake: Intake, check: Check, types: Sequence[str]) -> None:
        self._database = database
        self._intake = intake
        self._check = check
        self._types = types

    async def accept(self, worker: UUID, leased: Sequence[Job]) -> None:
        """Accept the events of these jobs, or make dead letters of them; those with a key in their turn.

        If this fails, it can be called again: what is done is left out.
        """
        rows = await self._database.rows(_SQL["taken"], worker, [job.id for job in leased])
        for part in _parts(await self._valid(worker, rows)):
            await self._accept_part(worker, part)

    async def permit(self) -> None:
        """Record which types of notification can be posted, and how many events."""
        async with self._database.connection() as connection:
            await connection.execute(_SQL["types"], self._types)
            await connection.execute(_SQL["limit"], MAX_WAITING)

    async def _valid(self, worker: UUID, rows: Sequence[Record]) -> list[Post]:
        """Return the valid events, and refuse the others.

        Their recipients were known when they were posted: those that are unknown now have been erased, and are skipped.
        """
        posts = []
        for row in rows:
            await asyncio.sleep(0)
            try:
                draft = self._check(row["body"], row["service"], row["company_id"])
            except REFUSALS as problem:
                await self._refuse(worker, row["id"], problem)
            else:
                posts.append(Post(row["id"], row["event_id"], replace(draft, skips=True, id=row["event_id"])))
        return posts

    async def _accept_part(self, worker: UUID, part: Sequence[Post]) -> None:
        if part[0].draft.key and not await self._is_first(worker, part[0]):
            return

        async def settle(connection: Connection, outcomes: Mapping[UUID, Outcome]) -> None:
            await _settle(connection, worker, part, outcomes)

        try:
            await self._intake.accept_with({post.id: post.draft for post in part}, settle)
        except REFUSALS as problem:  # only of an event with a key
            await self._refuse(worker, part[0].job, problem)

    async def _is_first(self, worker: UUID, post: Post) -> bool:
        """Return whether it is the turn of an event with a key; if not, return its job to the queue."""
        async with self._database.transaction() as connection:
            is_first: bool = await connection.fetchval(_SQL["is_first"], post.job)
            if not is_first:
                await jobs.hand_back(connection, worker, [post.job])
        return is_first

    async def _refuse(self, worker: UUID, job: UUID, problem: Problem) -> None:
        async with self._database.transaction() as connection:
            await _refuse(connection, worker, job, problem)


async def _settle(connection: Connection, worker: UUID, part: Sequence[Post], outcomes: Mapping[UUID, Outcome]) -> None:
    """End the jobs of these events. Raises the `Problem` of an event that must be tried again."""
    accepted, with_erased = list[UUID](), list[UUID]()
    for post in part:
        outcome = outcomes[post.id]
        if isinstance(outcome, Accepted):
            accepted.append(post.job)
            if outcome.skipped_users and not outcome.is_repeated:
                with_erased.append(post.id)
        elif isinstance(outcome, REFUSALS):
            await _refuse(connection, worker, post.job, outcome)
        else:
            raise outcome
    await jobs.finish(connection, worker, accepted)
    await connection.execute(_SQL["forget"], accepted)
    if with_erased:
        await connection.execute(_SQL["forget_erased"], with_erased)


async def _refuse(connection: Connection, worker: UUID, job: UUID, problem: Problem) -> None:
    """Make a dead letter of an event. Raises `Lost` if the lease of its job is lost."""
    errors = problem.errors()
    reason = " ".join(error["message"] for error in errors)[:MAX_REASON_LENGTH]
    if not await jobs.move_to_dead_letters(connection, worker, job, reason):
        raise Lost
    await connection.execute(_SQL["refuse"], job, json.dumps(errors))


def _parts(posts: Sequence[Post]) -> Iterator[list[Post]]:
    """Yield the events that are stored together: all but those with a key or a repeated id, which are stored alone."""
    first: dict[UUID, Post] = {}
    for post in posts:
        if not post.draft.key:
            first.setdefault(post.id, post)
    if first:
        yield list(first.values())
    yield from ([post] for post in posts if first.get(post.id) is not post)
