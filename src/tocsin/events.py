"""Events: accept and store them.

One statement stores an event, its subjects and its job, in one transaction: the event is durable before it is accepted.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from tocsin import audit
from tocsin.at_once import MAX_COST as MAX_COST_AT_ONCE
from tocsin.at_once import AtOnce
from tocsin.audit import Actor
from tocsin.batches import Batches, Turn
from tocsin.cancellation import ANY_COMPANY, hold, replace
from tocsin.catalogue import Checked
from tocsin.db.connections import Connection, Record
from tocsin.db.pool import LOCK_TIMEOUT, Borrowed, Database
from tocsin.db.statements import queries
from tocsin.directory import UnknownRecipients, people
from tocsin.disk_guard import DiskGuard
from tocsin.errors import FieldError, IdReused, Invalid, Locked, Overrun, Problem, Unavailable
from tocsin.ids import new_id
from tocsin.isolation import LockConflicts, do_in_parts
from tocsin.jobs import DIRECT_MAX_RECIPIENTS
from tocsin.notifications import to_json
from tocsin.pacing import Pace
from tocsin.pubsub import PubSub
from tocsin.validation import reported_count, under, up_to_limit

BATCH_SIZE = 200
"""Maximum events, posted one by one, per transaction."""

EVENTS_PER_TURN = 16
"""Events that are rendered or answered per turn of the event loop, so that other requests get their turns."""

TURN_TIMEOUT = 5.0
"""Seconds for which a batch waits for those before it. Then it is queued, because one of them may wait for a lock."""

MAX_GATHERING = 0.02
"""Maximum seconds for which events are gathered after a statement, which may have waited for a lock."""

MAX_IDS_PER_BATCH = 20_000
"""Maximum ids that the events of such a transaction name together. An event that names more is stored by itself."""

MAX_COUNTED_MEMBERS = 100_000
"""Maximum memberships that are read to count the recipients of an event."""

Users = Mapping[tuple[int | None, int], Mapping[str, Any]]
"""User objects of notifications, by the company of the caller and the user's id."""

T = TypeVar("T")

_SQL = queries("events")


@dataclass(frozen=True, slots=True)
class Draft:
    """A valid event and its recipients.

    `service` posted it; None: its actor did. `id` and `digest` are set if the request has an id; the digest is that of
    the whole event. Users in `excepted` are not notified. With `skips`, unknown recipients are ignored. The event is
    held until `deliver_at`. `key` is the name that the service gave it. If an `actor` sends a custom notification, it
    is recorded in the audit log, with the number of `recipients`.
    """

    checked: Checked
    users: Sequence[int]
    teams: Sequence[int]
    service: str | None
    company_id: int | None
    about: Sequence[str] = ()
    excepted: Sequence[int] = ()
    skips: bool = False
    deliver_at: datetime | None = None
    key: str | None = None
    id: UUID | None = None
    digest: bytes | None = None
    actor: Actor | None = None
    recipients: int = 0

    @property
    def named(self) -> int:
        """The number of ids that it names."""
        return len(self.users) + len(self.teams) + len(self.excepted)

    @property
    def cost(self) -> int:
        """Maximum users that its delivery looks up: of each team, as many as a job reaches and the excepted ones."""
        return 1 + len(self.users) + len(self.excepted) + len(self.teams) * (DIRECT_MAX_RECIPIENTS + len(self.excepted))


@dataclass(frozen=True, slots=True)
class Accepted:
    """An event that is on disk: its id, the unknown recipients that it skips, and whether it was posted before."""

    id: UUID
    skipped_users: Sequence[int] = ()
    skipped_teams: Sequence[int] = ()
    is_repeated: bool = False


Outcome = Accepted | Problem
"""The outcome of an event that is posted."""


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


@dataclass(frozen=True, slots=True)
class Entered:
    """What was delivered at once: the users, and whether there are pushes. The other events, if any, are queued.

    `took` are the seconds that each event took.
    """

    user_ids: Collection[int] = ()
    is_pushed: bool = False
    is_queued: bool = True
    took: Sequence[float] = ()


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
                named = await _hold_keys(connection, drafts)
                outcomes, entered = await _store(connection, drafts, at_once)
                if named:
                    _raise_problems(list(outcomes.values()), [""])
                stored = [
                    id_ for id_, found in outcomes.items() if isinstance(found, Accepted) and not found.is_repeated
                ]
                await _name_keys(connection, drafts, stored, named)
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
        if not (is_batch and _few_of(drafts, is_batch=True)):
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
            named = await _hold_keys(connection, drafts)
            batch = new_id() if len(drafts) > 1 else None
            outcomes, entered = await _store(connection, drafts, at_once, batch)
            _raise_problems([outcomes[id_] for id_ in ids], prefixes)
            accepted = [_accepted(outcomes[id_]) for id_ in ids]
            stored = [event.id for event in accepted if not event.is_repeated]
            await _name_keys(connection, drafts, stored, named)
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
                return await _store(connection, drafts, at_once)

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


async def _store(
    connection: Connection, drafts: Mapping[UUID, Draft], at_once: AtOnce | None, batch: UUID | None = None
) -> tuple[dict[UUID, Outcome], Entered]:
    """Store the events that are valid; return the outcome of each event by its id, and what was delivered at once.

    Jobs of events that are due at once belong to `batch`, if it is given. All of these are delivered at once, or none.
    """
    began = time.monotonic()
    users = await _users_of_data(connection, drafts.values())
    # The languages and lanes may change while this loop pauses.
    languages, lanes = (at_once.recent, at_once.lanes) if at_once else ((), None)
    few = _few_of(drafts, is_batch=batch is not None) if lanes is not None else frozenset[UUID]()
    rows, contents = [], list[tuple[int, str, str]]()
    for position, (id_, draft) in enumerate(drafts.items(), 1):
        if position % EVENTS_PER_TURN == 0:
            await asyncio.sleep(0)
        data = _data_of(draft, users)
        as_json = None if data is None else to_json(data)
        rows.append(_row(id_, draft, as_json))
        if at_once and id_ in few and data is not None and as_json is not None:
            contents += [
                (position, *content) for content in at_once.render(id_, draft.checked, data, as_json, languages)
            ]
    arguments = (*map(list, zip(*rows, strict=True)), batch, len(rows))
    if at_once and contents:
        words = map(list, zip(*contents, strict=True))
        entering = (*words, at_once.languages, lanes, batch is not None, DIRECT_MAX_RECIPIENTS)
        found = await connection.fetch(_SQL["accept_at_once"], *arguments, *entering)
        entered = _entered(found, len(drafts), at_once, time.monotonic() - began)
    else:
        found, entered = await connection.fetch(_SQL["accept"], *arguments), Entered()
    outcomes: dict[UUID, Outcome] = dict(zip(drafts, map(Accepted, drafts), strict=True))
    outcomes |= {row["id"]: _outcome(row, drafts[row["id"]], users) for row in found}
    refused = [row["id"] for row in found if not row["is_stored"] and drafts[row["id"]].id]
    if refused:
        outcomes |= {
            row["id"]: _outcome_of_repeat(row, drafts[row["id"]])
            for row in await connection.fetch(_SQL["posted"], refused)
        }
        await connection.fetch(_SQL["write_log"])
    return outcomes, entered


def _few_of(drafts: Mapping[UUID, Draft], *, is_batch: bool) -> frozenset[UUID]:
    """Return the events that are delivered at once if nothing hinders it.

    Of a batch, these are all or none, because it is delivered in its order. In a batch, an event with a key can be
    replaced by a later one.
    """
    few, left = set[UUID](), MAX_COST_AT_ONCE
    for id_, draft in drafts.items():
        if draft.deliver_at is None and draft.cost <= left and not (is_batch and draft.key):
            few.add(id_)
            left -= draft.cost
        elif is_batch:
            return frozenset()
    return frozenset(few)


def _entered(found: Sequence[Record], stored: int, at_once: AtOnce, seconds: float) -> Entered:
    """Return what the statement delivered. `stored` is the number of events."""
    at_once.learn(json.loads(found[0]["languages"] or "{}").values())
    delivered = [row for row in found if row["user_ids"] is not None]
    stored -= sum(not row["is_stored"] for row in found)
    return Entered(
        {user_id for row in delivered for user_id in row["user_ids"]},
        any(row["is_pushed"] for row in delivered),
        len(delivered) < stored,
        [seconds] * len(delivered),
    )


def _outcome(row: Record, draft: Draft, users: Users) -> Outcome:
    """Return the outcome of an event that was not stored or has unknown recipients."""
    if row["is_stored"]:
        return Accepted(row["id"], row["unknown_users"], row["unknown_teams"])
    field_errors = [
        FieldError(f"data.{field}", "unknown", f"The data.{field} field is not a known user.")
        for field, id_ in draft.checked.unfilled.items()
        if (draft.company_id, id_) not in users
    ]
    if not draft.skips:
        unknown = UnknownRecipients(frozenset(row["unknown_users"]), frozenset(row["unknown_teams"]))
        field_errors += unknown.field_errors(draft.users, draft.teams, "notify.")
    # Without errors, the id is in use. `_store` looks the event up; if it was removed since, the client must retry.
    return Invalid(field_errors) if field_errors else Unavailable()


def _outcome_of_repeat(row: Record, draft: Draft) -> Outcome:
    """Return the outcome of an event whose id is in use: the original one if it is the same event."""
    if (row["service"], row["company_id"], row["digest"]) != (draft.service, draft.company_id, draft.digest):
        return IdReused()
    return Accepted(row["id"], row["skipped_users"], row["skipped_teams"], is_repeated=True)


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


async def _hold_keys(connection: Connection, drafts: Mapping[UUID, Draft]) -> dict[str, UUID]:
    """Lock the keys of these events until the end of the transaction, and return the event of each key.

    A new key is assigned to the last of these events that has it. What is left to deliver of the others is locked too.
    """
    keys = {draft.key: id_ for id_, draft in drafts.items() if draft.key}
    if not keys:
        return {}
    owner = _owner(drafts)
    rows = await connection.fetch(_SQL["hold_keys"], *owner, list(keys), list(keys.values()))
    named = {row["key"]: row["event_id"] for row in rows}
    if earlier := set(named.values()) - drafts.keys():
        await hold(connection, list(earlier))
    return named


async def _name_keys(
    connection: Connection, drafts: Mapping[UUID, Draft], stored: Sequence[UUID], named: Mapping[str, UUID]
) -> None:
    """Assign each key to the last stored event that has it, and cancel the earlier ones."""
    keys = {draft.key: id_ for id_ in stored if (draft := drafts[id_]).key}
    replaced = {old: keys[key] for key, old in named.items() if key in keys}
    replaced |= {id_: keys[draft.key] for id_ in stored if (draft := drafts[id_]).key}
    pairs = [(old, new) for old, new in replaced.items() if old != new]
    if pairs:
        await connection.execute(_SQL["name_keys"], *_owner(drafts), list(keys), list(keys.values()))
        await replace(connection, pairs)


def _owner(drafts: Mapping[UUID, Draft]) -> tuple[str | None, int]:
    """Return the service and the company that own the keys of a request."""
    first = next(iter(drafts.values()))
    return first.service, first.company_id or ANY_COMPANY


async def _record(connection: Connection, drafts: Mapping[UUID, Draft], stored: Sequence[UUID]) -> None:
    """Record the senders of custom notifications in the audit log."""
    for id_ in stored:
        draft = drafts[id_]
        if draft.actor:
            details = {"users": len(draft.users), "teams": len(draft.teams), "recipients": draft.recipients}
            await audit.record(connection, draft.actor, "custom_sent", f"event:{id_}", draft.company_id, **details)


def _data_of(draft: Draft, users: Users) -> Mapping[str, Any] | None:
    """Return the data of an event with its users filled in; None if one is unknown."""
    unfilled = draft.checked.unfilled
    if not unfilled:
        return draft.checked.data
    filled = {field: users.get((draft.company_id, user)) for field, user in unfilled.items()}
    return {**draft.checked.data, **filled} if all(filled.values()) else None


def _row(id_: UUID, draft: Draft, data: str | None) -> tuple[Any, ...]:
    """Return the arguments of the statement for one event."""
    checked = draft.checked
    own = [f"key:{draft.key}"] if draft.key else []
    return (
        id_,
        draft.service,
        draft.company_id,
        checked.kind,
        checked.actor,
        _array(draft.users),
        _array(draft.teams),
        data,
        to_json(checked.params),
        _array_of_words([*checked.subjects, *draft.about, *own]),
        _array(draft.excepted),
        draft.skips,
        draft.deliver_at,
        draft.key,
        draft.digest,
        draft.cost,
    )


def _array(ids: Iterable[int]) -> str:
    return f"{{{','.join(map(str, dict.fromkeys(ids)))}}}"


def _array_of_words(words: Iterable[str]) -> str:
    """Return an array literal of PostgreSQL."""
    quoted = (word.replace("\\", r"\\").replace('"', r"\"") for word in dict.fromkeys(words))
    return "{" + ",".join(f'"{word}"' for word in quoted) + "}"


async def _users_of_data(connection: Connection, drafts: Iterable[Draft]) -> Users:
    """Return the users that the data of these events refers to by id."""
    wanted = {(draft.company_id, id_) for draft in drafts for id_ in draft.checked.unfilled.values()}
    return await people(connection, wanted) if wanted else {}
