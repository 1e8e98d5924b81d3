"""Events: accept them one by one or in batches, and store together what arrives at the same time."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

from tocsin import audit
from tocsin.acceptance import EVENTS_PER_TURN, Accepted, Draft, Entered, Outcome, few_of, store_events
from tocsin.at_once import AtOnce
from tocsin.batches import Batches, Turn
from tocsin.db.connections import Connection
from tocsin.db.pool import LOCK_TIMEOUT, Borrowed, Database
from tocsin.db.statements import queries
from tocsin.disk_guard import DiskGuard
from tocsin.errors import FieldError, IdReused, Invalid, Locked, Overrun, Problem
from tocsin.event_keys import hold_keys, name_keys
from tocsin.ids import new_id
from tocsin.isolation import LockConflicts, do_in_parts
from tocsin.pacing import Pace
from tocsin.pubsub import PubSub
from tocsin.validation import reported_count, under, up_to_limit

BATCH_SIZE = 200
"""Maximum events, posted one by one, per transaction."""

TURN_TIMEOUT = 5.0
"""Seconds for which a batch waits for those before it. Then it is queued, because one of them may wait for a lock."""

MAX_GATHERING = 0.02
"""Maximum seconds for which events are gathered after a statement, which may have waited for a lock."""

MAX_IDS_PER_BATCH = 20_000
"""Maximum ids that the events of such a transaction name together. An event that names more is stored by itself."""

MAX_COUNTED_MEMBERS = 100_000
"""Maximum memberships that are read to count the recipients of an event."""

T = TypeVar("T")

_SQL = queries("events")


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """An event that waits to be stored, and its outcome."""

    id: UUID
    draft: Draft
    outcome: asyncio.Future[Outcome]

    def succeed(self, outcome: Outcome) -> None:
        """Return the outcome to the caller, unless it no longer waits."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def fail(self, error: Exception) -> None:
        """Raise an error in the caller, unless the event has an outcome.

        Frames in the traceback of the error hold this object, which holds the error: only what is unexpected keeps it.
        """
        if not self.outcome.done():
            self.outcome.set_exception(error.with_traceback(None) if isinstance(error, Problem) else error)


class Intake:
    """Accepts events. Events that arrive while others are being stored are stored together, by one statement.

    Half of the cost of a transaction is its commit, and a statement costs little more for ten events than for one.
    If the database is a transaction of the caller, each event is stored separately. With `at_once`, events with few
    recipients are delivered by the statement that stores them. The cells of a process share a `turn`.
    """

    def __init__(
        self,
        database: Database,
        pubsub: PubSub,
        disk: DiskGuard,
        at_once: AtOnce | None = None,
        turn: Turn | None = None,
    ) -> None:
        self.at_once = at_once
        self.turn = turn or Turn()
        self._database = database
        self._disk = disk
        self._pubsub = pubsub
        self._batches = Batches(self._store_batch, _count_of_next, self.turn, self._gather)
        self._conflicts = LockConflicts()
        self._pace = Pace(EVENTS_PER_TURN)
        self._delivering = asyncio.Lock()

    async def accept(self, draft: Draft) -> Accepted:
        """Store an event durably. Raises `Invalid` for unknown recipients, and `IdReused` if the id is in use.

        An event with a key can wait for other sessions that use the key. It is stored in a separate transaction, so
        that no other event waits; so is one that is recorded in the audit log, since a batch is one statement. Raises
        `Unavailable` if the disk is almost full.
        """
        self._disk.check()
        if draft.key or draft.actor or isinstance(self._database, Borrowed):
            return (await self._store_all([draft], [""]))[0]
        waiting = Waiting(draft.id or new_id(), draft, asyncio.get_running_loop().create_future())
        self._batches.add([waiting])
        try:
            return _accepted(await waiting.outcome)
        finally:
            del waiting  # or this frame would hold an error, and that this frame by its traceback

    async def accept_batch(self, drafts: Sequence[Draft]) -> list[Accepted]:
        """Store all events durably, or none. They are delivered in their order. Raises like `accept`."""
        self._disk.check()
        return await self._store_all(drafts, [f"events.{position}." for position in range(len(drafts))])

    async def accept_with(
        self, drafts: Mapping[UUID, Draft], settle: Callable[[Connection, Mapping[UUID, Outcome]], Awaitable[None]]
    ) -> None:
        """Store those of these events that are valid. `settle` records the outcome of each, in the same transaction.

        An event with a key must come alone; its `Problem` is raised, which ends the transaction.
        """

        async def store(at_once: AtOnce | None) -> tuple[None, Entered]:
            async with self._database.transaction() as connection:
                named = await hold_keys(connection, drafts)
                outcomes, entered = await store_events(connection, drafts, at_once)
                if named:
                    _raise_problems(list(outcomes.values()), [""])
                stored = [
                    id_ for id_, found in outcomes.items() if isinstance(found, Accepted) and not found.is_repeated
                ]
                await name_keys(connection, drafts, stored, named)
                await settle(connection, outcomes)
            return None, entered

        _, entered = await self._try_at_once(store)
        self._announce(entered)

    async def _store_all(self, drafts: Sequence[Draft], prefixes: Sequence[str]) -> list[Accepted]:
        ids = [draft.id or new_id() for draft in drafts]
        by_id: dict[UUID, Draft] = {}
        for id_, draft in zip(ids, drafts, strict=True):
            if by_id.setdefault(id_, draft).digest != draft.digest:
                raise IdReused

        async def store(at_once: AtOnce | None) -> tuple[list[Accepted], Entered]:
            return await self._store_in_one(ids, by_id, prefixes, at_once)

        async with self._one_batch_at_a_time(by_id) as is_free:
            accepted, entered = await (self._try_at_once(store) if is_free else store(None))
        self._announce(entered)
        return accepted

    @asynccontextmanager
    async def _one_batch_at_a_time(self, drafts: Mapping[UUID, Draft]) -> AsyncIterator[bool]:
        """Let one batch at a time be delivered at once; yield False after `TURN_TIMEOUT`, when it has to be queued.

        Batches for the same users at the same time would lock each other out, and the queue costs twice as much.
        """
        is_batch = len(drafts) > 1 and self.at_once is not None and not self.at_once.is_paused
        if not (is_batch and few_of(drafts, is_batch=True)):
            yield True
            return
        try:
            async with asyncio.timeout(TURN_TIMEOUT):
                await self._delivering.acquire()
        except TimeoutError:
            yield False
            return
        try:
            yield True
        finally:
            self._delivering.release()

    async def _store_in_one(
        self, ids: Sequence[UUID], drafts: Mapping[UUID, Draft], prefixes: Sequence[str], at_once: AtOnce | None
    ) -> tuple[list[Accepted], Entered]:
        """Store the events of a request in one transaction."""
        async with self._database.transaction() as connection:
            named = await hold_keys(connection, drafts)
            batch = new_id() if len(drafts) > 1 else None
            outcomes, entered = await store_events(connection, drafts, at_once, batch)
            _raise_problems([outcomes[id_] for id_ in ids], prefixes)
            accepted = [_accepted(outcomes[id_]) for id_ in ids]
            stored = [event.id for event in accepted if not event.is_repeated]
            await name_keys(connection, drafts, stored, named)
            await _record(connection, drafts, stored)
        return accepted, entered

    async def _gather(self, began: float, ended: float) -> None:
        """Wait for more events, after a statement for several, if other processes store some, too."""
        self._pubsub.say("storing")
        if others := self._pubsub.others("storing"):
            until = ended + gathering_time(ended - began, others)
            await asyncio.sleep(until - asyncio.get_running_loop().time())

    async def _store_batch(self, batch: Sequence[Waiting]) -> None:
        """Store these together. An event that fails, or waits for a lock, fails alone; an outage fails all."""

        async def failed(waiting: Waiting, error: Exception) -> None:
            waiting.fail(error)

        try:
            await do_in_parts(deque([batch]), self._store_together, failed, self._conflicts)
        except Exception as error:  # noqa: BLE001 - the callers raise it
            for waiting in batch:
                waiting.fail(error)

    async def _store_together(self, batch: Sequence[Waiting]) -> None:
        drafts = {waiting.id: waiting.draft for waiting in batch}
        acquire = self._database.transaction if LOCK_TIMEOUT.get() else self._database.connection

        async def store(at_once: AtOnce | None) -> tuple[dict[UUID, Outcome], Entered]:
            async with acquire() as connection:
                return await store_events(connection, drafts, at_once)

        outcomes, entered = await self._try_at_once(store)
        self._pace.add(*(partial(waiting.succeed, outcomes[waiting.id]) for waiting in batch))
        self._announce(entered)

    async def _try_at_once(self, store: Callable[[AtOnce | None], Awaitable[T]]) -> T:
        """Store events, and deliver them at once if nothing hinders that."""
        if self.at_once is None or self.at_once.is_paused:
            return await store(None)
        try:
            return await store(self.at_once)
        except Problem as error:
            if not isinstance(error, Locked | Overrun):
                raise
            self.at_once.pause(error)
        except Exception as error:  # noqa: BLE001 - if delivery fails, the events are stored nevertheless
            self.at_once.pause(error)
        return await store(None)

    def _announce(self, entered: Entered) -> None:
        if entered.is_queued:
            self._pubsub.publish("direct")
        if entered.took and self.at_once:
            self._pubsub.publish_changes(entered.user_ids)
            self._pubsub.publish("settled")
            if entered.is_pushed:
                self._pubsub.publish("push")
            for seconds in entered.took:
                self.at_once.entered(seconds)


def gathering_time(seconds: float, others: int) -> float:
    """Return for how long events are gathered after a statement of so many seconds, while others store some, too.

    So their statements take turns, and each is about as full as that of one process.
    """
    return min(MAX_GATHERING, seconds * others)


def _count_of_next(waiting: Sequence[Waiting]) -> int:
    """Return the size of the next batch. A batch contains each id once."""
    ids: set[UUID] = set()
    total = 0
    for each in waiting[:BATCH_SIZE]:
        total += each.draft.named
        if each.id in ids or (ids and total > MAX_IDS_PER_BATCH):
            break
        ids.add(each.id)
    return len(ids)


async def count_of_recipients(database: Database, draft: Draft, most: int) -> int:
    """Return how many active users an event reaches, counted up to `most`.

    At most `MAX_COUNTED_MEMBERS` memberships are read. If teams have more, users of several teams may be missing.
    """
    users, teams = list(dict.fromkeys(draft.users)), list(dict.fromkeys(draft.teams))
    arguments = users, teams, draft.checked.actor, draft.company_id, most, MAX_COUNTED_MEMBERS
    count: int = await database.value(_SQL["count_of_recipients"], *arguments)
    return count


def _accepted(outcome: Outcome) -> Accepted:
    try:
        if isinstance(outcome, Problem):
            raise outcome
        return outcome
    finally:
        del outcome  # as above


def _raise_problems(outcomes: Sequence[Outcome], prefixes: Sequence[str]) -> None:
    """Raise the problems of the events of a request. Field errors of all events are raised together."""
    field_errors, reported = list[FieldError](), 0
    for outcome, prefix in zip(outcomes, prefixes, strict=True):
        if isinstance(outcome, Invalid):
            found = up_to_limit([under(prefix, each) for each in outcome.field_errors], reported)
            field_errors += found
            reported += reported_count(found)
        else:
            _accepted(outcome)
    if field_errors:
        raise Invalid(field_errors)


async def _record(connection: Connection, drafts: Mapping[UUID, Draft], stored: Sequence[UUID]) -> None:
    """Record the senders of custom notifications in the audit log."""
    for id_ in stored:
        draft = drafts[id_]
        if draft.actor:
            details = {"users": len(draft.users), "teams": len(draft.teams), "recipients": draft.recipients}
            await audit.record(connection, draft.actor, "custom_sent", f"event:{id_}", draft.company_id, **details)
