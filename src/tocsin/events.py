"""Events: accepted once and for all, and what became of them.

An event, what it is about, and the job to deliver it are one statement and so one transaction: it is on disk wholly
before its producer is told that it was accepted.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any, NamedTuple
from uuid import UUID

from tocsin.catalogue import Checked
from tocsin.db.pool import Connection, Database, Record, fetch, queries
from tocsin.directory import people, unknown
from tocsin.errors import FieldError, IdReused, Invalid, NotFound, TooLate, Unavailable
from tocsin.ids import MAX_ID, new_id
from tocsin.jobs import DIRECT_MAX_RECIPIENTS
from tocsin.notifications import time_of, to_json
from tocsin.pubsub import PubSub, wait
from tocsin.push import deliveries

SETTLED = frozenset({"delivered", "failed", "cancelled"})
"""The states that an event stays in."""

WAITING = frozenset({"queued", "later", "held"})
"""The states of a push that is still to be sent."""

BATCH_SIZE = 200
"""How many events that are posted one by one share a transaction at most."""

MAX_IDS_PER_BATCH = 20_000
"""Ids that the events of one such transaction name together; one event that names more has it for itself."""

ANY_COMPANY = 0
"""What stands for the company of a service that is bound to none, where a key needs a value."""

Row = tuple[Any, ...]


class Waiting(NamedTuple):
    """An event that waits to be stored: its row, how many ids it names, and who waits for what is unknown of it."""

    row: Row
    named: int
    unknown_ids: "asyncio.Future[Record | None]"


_POLL_INTERVAL = 0.25
_SQL = queries("events")


@dataclass(frozen=True, slots=True)
class Draft:
    """An event that was checked, and whom it is for.

    `service` posted it; none: its actor did. `id` and `digest` are there where the producer gave an id: the digest is
    that of all that was posted under it. Who is `excepted` is left out; one that `skips` goes on without those who are
    unknown. It is held until `deliver_at`; `key` is the service's own name for it.
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

    @property
    def named(self) -> int:
        """How many ids it names."""
        return len(self.users) + len(self.teams) + len(self.excepted)

    @property
    def cost(self) -> int:
        """How many people its delivery looks up: of each team, as many as a job reaches, and those who are excepted."""
        return 1 + len(self.users) + len(self.excepted) + len(self.teams) * (DIRECT_MAX_RECIPIENTS + len(self.excepted))


@dataclass(frozen=True, slots=True)
class Accepted:
    """An event that is on disk: its id, and who was skipped because nobody knows them."""

    id: UUID
    skipped_users: Sequence[int] = ()
    skipped_teams: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who asks about events: a service sees its own, one bound to a company those posted for it; None sees all."""

    service: str | None = None
    company_id: int | None = None


class Intake:
    """Accepts events: those that are posted while others are being stored share one transaction.

    Half of what a transaction costs is its commit, and a statement costs little more for ten events than for one. An
    intake that is not shared stores each by itself, for its database is one transaction.
    """

    def __init__(self, database: Database, pubsub: PubSub, *, is_shared: bool = True) -> None:
        self._database = database
        self._pubsub = pubsub
        self._is_shared = is_shared
        self._waiting: list[Waiting] = []
        self._storing: asyncio.Task[None] | None = None

    async def accept(self, draft: Draft) -> Accepted:
        """Store an event durably; raises `Invalid` where it names somebody unknown, `IdReused` for an id in use."""
        if draft.id or draft.key or not self._is_shared:
            return (await self._accept([draft], [""]))[0]
        filled = (await _people_of(self._database, [draft], [""]))[0] if draft.checked.unfilled else {}
        id_ = new_id()
        unknown_ids: asyncio.Future[Record | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(_row(id_, draft, filled), draft.named, unknown_ids))
        if self._storing is None or self._storing.done():
            self._storing = asyncio.create_task(self._store())
        return _accepted(id_, draft, await unknown_ids)

    async def accept_batch(self, drafts: Sequence[Draft]) -> list[Accepted]:
        """Store all of these durably, to be delivered in their order, or none; raises like `accept`."""
        return await self._accept(drafts, [f"events.{position}." for position in range(len(drafts))])

    async def _accept(self, drafts: Sequence[Draft], prefixes: Sequence[str]) -> list[Accepted]:
        async with self._database.transaction() as connection:
            accepted = await _store_all(connection, drafts, prefixes)
        self._pubsub.publish("direct")
        return accepted

    async def _store(self) -> None:
        while self._waiting:
            count = _count_of_next(self._waiting)
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            await self._store_together(batch)

    async def _store_together(self, batch: Sequence[Waiting]) -> None:
        try:
            columns = zip(*(each.row for each in batch), strict=True)
            rows = await self._database.rows(_SQL["accept"], *map(list, columns))
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must be told
            await self._tell(batch, error)
            return
        self._pubsub.publish("direct")
        unknown_ids = {row["event_id"]: row for row in rows}
        for each in batch:
            if not each.unknown_ids.done():
                each.unknown_ids.set_result(unknown_ids.get(each.row[0]))

    async def _tell(self, batch: Sequence[Waiting], error: Exception) -> None:
        """Tell an outage to all who wait; of anything else each is told of their own event: halves are stored again."""
        middle = len(batch) // 2
        if middle and not isinstance(error, Unavailable):
            for half in (batch[:middle], batch[middle:]):
                await self._store_together(half)
            return
        for each in batch:
            if not each.unknown_ids.done():
                each.unknown_ids.set_exception(error)


def _count_of_next(waiting: Sequence[Waiting]) -> int:
    """Return how many of these are stored together next."""
    named = accumulate(each.named for each in waiting[:BATCH_SIZE])
    return max(1, sum(1 for total in named if total <= MAX_IDS_PER_BATCH))


async def unknown_among(
    database: Database, users: Sequence[Any], teams: Sequence[Any], company_id: int | None
) -> dict[str, set[int]]:
    """Return the ids, by `users` and `teams`, that name nobody the caller may address; what is no id is passed over."""
    ids = [[id_ for id_ in given if type(id_) is int and 0 < id_ <= MAX_ID] for given in (users, teams)]
    return _by_field(await database.row(_SQL["unknown"], *ids, company_id))


def unknown_recipients(
    unknown_ids: Mapping[str, set[int]], users: Sequence[Any], teams: Sequence[Any], prefix: str = ""
) -> list[FieldError]:
    """Return a fault for each position of an event's recipients that holds one of these strangers."""
    return [
        field_error
        for field, given in (("users", users), ("teams", teams))
        for field_error in unknown(f"{prefix}notify.{field}", given, unknown_ids[field])
    ]


async def cancel(database: Database, pubsub: PubSub, id_: UUID, owner: Viewer, operator: str | None = None) -> None:
    """Stop an event: nobody is told from here on. Raises `NotFound`, and `TooLate` for one that is delivered.

    An `operator` is named in what became of it, unless they posted it themselves.
    """
    async with database.transaction() as connection:
        event = await connection.fetchrow(_SQL["owned"], id_, owner.service, owner.company_id)
        if event is None:
            raise NotFound
        await _cancel(connection, id_, None if event["service"] == operator else operator)
    _publish_settled(pubsub)


async def cancel_by_key(database: Database, pubsub: PubSub, key: str, owner: Viewer) -> None:
    """Stop the event that a service's key names; raises like `cancel`."""
    async with database.transaction() as connection:
        id_ = await connection.fetchval(_SQL["key"], owner.service, owner.company_id or ANY_COMPANY, key)
        if id_ is None:
            raise NotFound
        await _cancel(connection, id_)
    _publish_settled(pubsub)


async def stop(connection: Connection, ids: Sequence[UUID]) -> None:
    """Stop those of these events that are not delivered to the end yet."""
    await connection.execute(_SQL["replace"], ids, [None] * len(ids))


async def state(database: Database, pubsub: PubSub, id_: UUID, reader: Viewer, *, seconds: float = 0) -> dict[str, Any]:
    """Return what became of an event as soon as that is settled, at the latest after `seconds`; or raise `NotFound`."""
    end = time.monotonic() + seconds
    while True:
        wakeup = pubsub.listen_for("settled")
        row = await database.row(_SQL["event"], id_, reader.service, reader.company_id)
        if row is None:
            raise NotFound
        left = end - time.monotonic()
        if left <= 0 or (row["state"] in SETTLED and not await deliveries.is_waiting(database, id_)):
            break
        await wait(wakeup, min(left, _POLL_INTERVAL))
    pushes = await deliveries.counts(database, id_)
    answer = {
        "id": str(row["id"]),
        "type": row["kind"].partition("/")[0],
        "state": row["state"],
        "recipients": row["recipients"],
        "read": await database.value(_SQL["readers"], id_),
        "dropped": row["dropped"],
        "pushes": pushes,
    }
    cancelled = row["operator"] and f"cancelled by an operator: {row['operator']}"
    more = {"reason": row["reason"] or cancelled, "replaced_by": row["replaced_by"] and str(row["replaced_by"])}
    return answer | {name: value for name, value in more.items() if value}


async def is_there(database: Database, id_: UUID, reader: Viewer) -> bool:
    """Tell whether there is an event that the reader may see."""
    return await database.row(_SQL["event"], id_, reader.service, reader.company_id) is not None


async def explain(database: Database, id_: UUID, user_id: int, reader: Viewer) -> dict[str, Any]:
    """Return whether and why one person was a recipient of an event, and what became of it; or raise `NotFound`."""
    row = await database.row(_SQL["person"], id_, user_id, reader.service, reader.company_id)
    if row is None:
        raise NotFound
    team = row["team_id"] or None
    return {
        "event_id": str(id_),
        "user_id": user_id,
        "recipient": row["created_at"] is not None,
        "why": _why(row),
        "team_id": team,
        "delivered_at": time_of(row["created_at"]),
        "read_at": time_of(row["read_at"]),
        "deleted_at": time_of(row["deleted_at"]),
        "devices": [_device_status(device) for device in await deliveries.of_person(database, id_, user_id)],
    }


async def customs(
    database: Database, before: datetime, limit: int, company_id: int | None = None
) -> list[dict[str, Any]]:
    """Return up to `limit` custom notifications, the latest before a moment first: who sent them, and to how many."""
    return [
        {
            "id": str(row["id"]),
            "accepted_at": time_of(row["accepted_at"]),
            "service": row["service"],
            "sender": row["actor"]
            and {"id": row["actor"], **{name: row[name] for name in ("first_name", "last_name")}},
            **{name: row[name] for name in ("users", "teams", "recipients", "dropped")},
        }
        for row in await database.rows(_SQL["customs"], before, limit, company_id)
    ]


def _device_status(row: Record) -> dict[str, Any]:
    """Say what was decided about one device, and what its provider answered."""
    words = "waits for its turn" if row["state"] == "queued" else row["reason"]
    if row["stopped_at"] and row["state"] in WAITING:
        stopped = f"{row['lane']} has stopped since {time_of(row['stopped_at'])} UTC: {row['lane_reason']}"
        words = stopped if row["state"] == "queued" else f"{words}; {stopped}"
    return {
        "type": row["type"],
        "token_ending": row["token_ending"],
        "lane": row["lane"],
        "state": row["state"],
        "attempts": row["attempts"],
        "settled_at": time_of(row["settled_at"]),
        "what": words,
    }


def _why(row: Record) -> str:
    """Say in words why somebody was told of an event, or was not."""
    if row["created_at"]:
        return "named" if not row["team_id"] else f"a member of team {row['team_id']}"
    if row["is_excepted"]:
        return "left out: the event excludes them"
    if not row["is_known"]:
        return "there is no such user in the directory"
    if row["member_of"] is None and (not row["is_named"] or row["is_successor"]):
        former = "not for them: the id was another user's when the event was posted"
        return former if row["is_named"] else "neither named nor in one of its teams"
    if not row["is_named"] and row["is_actor"]:
        return "left out: it was their own doing"
    return _why_not_yet(row)


def _why_not_yet(row: Record) -> str:
    if row["pending"]:
        return f"not delivered yet: due at {time_of(row['due_at'])}"
    if row["operator"]:
        return f"not delivered: an operator ({row['operator']}) cancelled the event before their turn"
    if row["cancelled"]:
        return "not delivered: the event was cancelled before their turn"
    if row["reason"]:
        return f"not delivered: {row['reason']}"
    if not row["active"]:
        return "dropped: not active when it was delivered"
    return "not told: they joined after it was delivered"


async def _store_all(connection: Connection, drafts: Sequence[Draft], prefixes: Sequence[str]) -> list[Accepted]:
    """Store what is new of these; what was posted before under the same ids is answered as it was then."""
    repeated = await _repeated(connection, drafts)
    ids = _ids_of(drafts)
    new: dict[UUID, tuple[Draft, str]] = {}
    for draft, id_, prefix in zip(drafts, ids, prefixes, strict=True):
        if id_ not in repeated:
            new.setdefault(id_, (draft, prefix))
    unknown_ids = await _store_new(connection, new) if new else {}
    return [
        repeated.get(id_) or _accepted(id_, draft, unknown_ids.get(id_)) for draft, id_ in zip(drafts, ids, strict=True)
    ]


def _ids_of(drafts: Sequence[Draft]) -> list[UUID]:
    """Return the id of each; raises `IdReused` where one is given to two that differ."""
    digests: dict[UUID, bytes | None] = {}
    for draft in drafts:
        if draft.id and digests.setdefault(draft.id, draft.digest) != draft.digest:
            raise IdReused
    return [draft.id or new_id() for draft in drafts]


async def _repeated(connection: Connection, drafts: Sequence[Draft]) -> dict[UUID, Accepted]:
    """Return what was posted before; raises `IdReused` where that was something else, or somebody else's."""
    given = {draft.id: draft for draft in drafts if draft.id}
    if not given:
        return {}
    first = next(iter(given.values()))
    found = {}
    for row in await connection.fetch(_SQL["posted"], list(given), first.service, first.company_id):
        draft = given[row["id"]]
        if not row["own"] or row["digest"] != draft.digest:
            raise IdReused
        found[row["id"]] = Accepted(row["id"], row["skipped_users"] or [], row["skipped_teams"] or [])
    return found


async def _store_new(connection: Connection, new: Mapping[UUID, tuple[Draft, str]]) -> Mapping[UUID, Record]:
    drafts = [draft for draft, _ in new.values()]
    prefixes = [prefix for _, prefix in new.values()]
    filled = await _people_of(connection, drafts, prefixes)
    batch = new_id() if len(new) > 1 else None
    keys = {draft.key: id_ for id_, (draft, _) in new.items() if draft.key}
    before = await _hold_keys(connection, drafts[0], keys)
    rows = [
        _row(id_, draft, people_of_it, None if draft.deliver_at else batch, len(new) - position)
        for position, ((id_, (draft, _)), people_of_it) in enumerate(zip(new.items(), filled, strict=True), 1)
    ]
    found = await connection.fetch(_SQL["accept"], *map(list, zip(*rows, strict=True)))
    unknown_ids = {row["event_id"]: row for row in found}
    _refuse_unknown(new, unknown_ids)
    await _repeated(connection, drafts)  # one that somebody else posted under the same id in the meantime
    await _replace(connection, new, keys, before)
    return unknown_ids


def _refuse_unknown(new: Mapping[UUID, tuple[Draft, str]], unknown_ids: Mapping[UUID, Record]) -> None:
    field_errors = [
        field_error
        for id_, (draft, prefix) in new.items()
        if not draft.skips and id_ in unknown_ids
        for field_error in _field_errors_of(unknown_ids[id_], draft.users, draft.teams, prefix)
    ]
    if field_errors:
        raise Invalid(field_errors)


async def _hold_keys(connection: Connection, draft: Draft, keys: Mapping[str, UUID]) -> dict[str, UUID]:
    """Lock the keys of a service until the end of the transaction, and return which event each named until now."""
    if not keys:
        return {}
    owner = (draft.service, draft.company_id or ANY_COMPANY)
    rows = await connection.fetch(_SQL["hold_keys"], *owner, list(keys), list(keys.values()))
    await connection.execute(_SQL["name_keys"], *owner, list(keys), list(keys.values()))
    return {row["key"]: row["event_id"] for row in rows}


async def _replace(
    connection: Connection,
    new: Mapping[UUID, tuple[Draft, str]],
    keys: Mapping[str, UUID],
    before: Mapping[str, UUID],
) -> None:
    """Stop what has not been delivered under these keys, the earlier events of the same batch included."""
    replaced = {before[key]: keys[key] for key in before}
    replaced |= {id_: keys[draft.key] for id_, (draft, _) in new.items() if draft.key}
    pairs = [(old, by) for old, by in replaced.items() if old != by]
    if pairs:
        await connection.execute(_SQL["replace"], *map(list, zip(*pairs, strict=True)))


async def _cancel(connection: Connection, id_: UUID, operator: str | None = None) -> None:
    if not await connection.fetchval(_SQL["cancel"], id_, operator):
        raise TooLate


def _publish_settled(pubsub: PubSub) -> None:
    for topic in ("settled", "direct"):
        pubsub.publish(topic)


def _accepted(id_: UUID, draft: Draft, unknown_ids: Record | None) -> Accepted:
    if unknown_ids is None:
        return Accepted(id_)
    if not draft.skips:
        raise Invalid(_field_errors_of(unknown_ids, draft.users, draft.teams))
    return Accepted(id_, unknown_ids["users"], unknown_ids["teams"])


def _row(id_: UUID, draft: Draft, filled: Mapping[str, Any], batch: UUID | None = None, lag: int = 0) -> Row:
    """Return an event as the statement takes it: one value a column, arrays as text."""
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
        to_json({**checked.data, **filled}),
        to_json(checked.params),
        to_json(list(dict.fromkeys([*checked.subjects, *draft.about, *own]))),
        _array(draft.excepted),
        draft.skips,
        draft.deliver_at,
        draft.key,
        draft.digest,
        batch,
        lag,
        draft.cost,
    )


def _array(ids: Iterable[int]) -> str:
    return f"{{{','.join(map(str, dict.fromkeys(ids)))}}}"


async def _people_of(
    store: Database | Connection, drafts: Sequence[Draft], prefixes: Sequence[str]
) -> list[Mapping[str, Any]]:
    """Return, for each draft, the user objects for those fields of `data` that hold only a user's id."""
    wanted = {id_ for draft in drafts for id_ in draft.checked.unfilled.values()}
    if not wanted:
        return [{} for _ in drafts]
    known = await people(store, wanted, drafts[0].company_id)
    field_errors = [
        FieldError(f"{prefix}data.{field}", "unknown", f"The {prefix}data.{field} field is not a known user.")
        for draft, prefix in zip(drafts, prefixes, strict=True)
        for field, id_ in draft.checked.unfilled.items()
        if id_ not in known
    ]
    if field_errors:
        raise Invalid([*field_errors, *await _unknown_of_all(store, drafts, prefixes)])
    return [{field: known[id_] for field, id_ in draft.checked.unfilled.items()} for draft in drafts]


async def _unknown_of_all(
    store: Database | Connection, drafts: Sequence[Draft], prefixes: Sequence[str]
) -> list[FieldError]:
    """Return the faults of all recipients that nobody knows, but of drafts that skip those."""
    asked = [(draft, prefix) for draft, prefix in zip(drafts, prefixes, strict=True) if not draft.skips]
    users = list({id_ for draft, _ in asked for id_ in draft.users})
    teams = list({id_ for draft, _ in asked for id_ in draft.teams})
    [found] = await fetch(store, _SQL["unknown"], users, teams, drafts[0].company_id)
    unknown_ids = _by_field(found)
    return [
        field_error
        for draft, prefix in asked
        for field_error in unknown_recipients(unknown_ids, draft.users, draft.teams, prefix)
    ]


def _field_errors_of(
    unknown_ids: Record, users: Sequence[Any], teams: Sequence[Any], prefix: str = ""
) -> list[FieldError]:
    return unknown_recipients(_by_field(unknown_ids), users, teams, prefix)


def _by_field(unknown_ids: Mapping[str, Sequence[int]] | Record | None) -> dict[str, set[int]]:
    return {field: set(unknown_ids[field]) if unknown_ids else set() for field in ("users", "teams")}
