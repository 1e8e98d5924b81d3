"""Deliveries: one push of a notification to one device, from the inbox to the provider's answer.

A delivery is created in the transaction that writes the inbox, claimed under a lease like a job, checked again, and
settled in batches. Every write names the worker that must still hold the lease.
"""

import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple
from uuid import UUID

from tocsin.db.connections import Connection, Record, fetch_long
from tocsin.db.pool import Database, fetch
from tocsin.db.statements import queries
from tocsin.push.channels import Address

State = Literal["queued", "later", "held", "delivered", "gone", "refused", "dead", "muted", "skipped"]

STATES: tuple[State, ...] = ("queued", "delivered", "gone", "later", "held", "refused", "dead", "muted", "skipped")
"""All states of a delivery. `skipped`: read, deleted, cancelled or moved before it was sent."""

RETRY_DELAYS = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0)
"""Seconds before each retry; the last is repeated."""

JITTER = 0.1
"""Maximum fraction by which a delay is increased at random."""

LIFETIME = timedelta(hours=24)
"""How long after its creation, or after the end of its hold, a delivery is sent."""

MAX_BUNDLED = 1_000
"""Maximum held deliveries of a device that are claimed together; more follow in further bundles."""

MAX_CLEARED = 90
"""Notifications that a clear names for all providers. More are cleared as all, if nothing is unread."""

MAX_COUNTED = 1_000_000
"""The number up to which the due deliveries of a lane are counted."""

_COLUMNS = (
    *(
        "user_id",
        "attempts",
        "state",
        "made_at",
        "looked_at",
        "unread",
        "position",
        "place",
        "locale",
        "language",
        "kind",
        "params",
    ),
    *("body", "told_up_to"),
)
UNSERVED = "has no keys at any running worker"
"""What is said of a lane that no running worker serves, such as that of an app that was removed."""

_SQL = queries("deliveries")


Period = tuple[datetime, datetime | None]
"""From a time until before another one, if that is given."""


class DeliveryKey(NamedTuple):
    """The primary key of a delivery."""

    event_id: UUID
    device_id: UUID


@dataclass(frozen=True, slots=True)
class Delivery:
    """A leased delivery, with the current state of its notification, user and device.

    `address` is None if the device was removed or belongs to another user. `body` are the first five keys of the
    notification's JSON. `place` is the position of the notification, `position` that of the inbox. `made_at` is when it
    was created or replayed, or when its hold ended. `looked_at` is when this state was read, by the clock of the
    database, which is that of all due times.
    """

    key: DeliveryKey
    user_id: int
    made_at: datetime
    looked_at: datetime
    locale: str
    language: str
    kind: str
    params: str
    body: str
    attempts: int = 0
    state: State = "queued"
    address: Address | None = None
    lapsed: str = ""
    unread: int = 0
    position: int = 0
    place: int = 0
    told_up_to: int | None = None
    _looked: float = field(default_factory=time.monotonic)

    @property
    def now(self) -> datetime:
        """The time by the clock of the database, independent of the clock of this process."""
        return self.looked_at + timedelta(seconds=time.monotonic() - self._looked)

    @property
    def expires_at(self) -> datetime:
        """When the delivery expires."""
        return self.made_at + LIFETIME


class Settled(NamedTuple):
    """The new state of a delivery, the time when it is due again, and the reason."""

    key: DeliveryKey
    state: State
    due_at: datetime | None = None
    reason: str | None = None


async def claim(database: Database, worker: UUID, lane: str, limit: int, *, bulk: bool) -> list[Delivery]:
    """Lease up to `limit` due deliveries of a lane, and return them with their current state."""
    rows = await database.rows(_SQL["claim"], worker, lane, bulk, limit)
    held = [row["device_id"] for row in rows if row["state"] in {"held", "later"}]  # a bundle that failed is `later`
    if held:
        rows += await database.rows(_SQL["claim_held"], worker, held, lane, MAX_BUNDLED - 1)
    if not rows:
        return []
    found = await database.rows(_SQL["look"], [row["event_id"] for row in rows], [row["device_id"] for row in rows])
    return [_delivery(row) for row in found]


async def settle(database: Database, worker: UUID, settled: Sequence[Settled]) -> None:
    """Write the new states of deliveries whose lease is still held, in the order of keys in which rows are locked."""
    settled = sorted(settled, key=lambda outcome: outcome.key)
    keys = [outcome.key for outcome in settled]
    columns = ([getattr(outcome, name) for outcome in settled] for name in ("state", "due_at", "reason"))
    await database.value(_SQL["settle"], worker, *_columns_of(keys), *columns)


async def put_back(database: Database, worker: UUID, keys: Sequence[DeliveryKey]) -> None:
    """Return deliveries to the queue, as if they had never been claimed."""
    await database.value(_SQL["put_back"], worker, *_columns_of(sorted(keys)))


async def release(database: Database, worker: UUID) -> None:
    """Release all leases of a worker."""
    await database.value(_SQL["release"], worker)


async def release_held(connection: Connection, user_ids: Sequence[int]) -> None:
    """Release the held deliveries of these users, to be decided again."""
    await fetch_long(connection, _SQL["release_held"], user_ids)


async def decide_again(database: Database, user_ids: Sequence[int]) -> None:
    """Release the held deliveries of these users, whose preferences have changed, to be decided again.

    This must follow the commit of the change: until then, further deliveries are held by the preferences before. The
    transaction of the change releases them, too, in case that this process is killed.
    """
    if user_ids:
        async with database.transaction() as connection:
            await release_held(connection, user_ids)


async def release_all_held(database: Database, after: DeliveryKey, limit: int) -> DeliveryKey | None:
    """Release up to `limit` held deliveries after the key `after`; return the last key, None after the end.

    The order is by device and event, so that a delivery that is held again is not released twice.
    """
    row = await database.row(_SQL["release_all_held"], after.device_id, after.event_id, limit)
    return DeliveryKey(**row) if row else None


async def rules(database: Database) -> str | None:
    """Return the digest of the preference policy by which deliveries were held, if it was stored."""
    found: str | None = await database.value(_SQL["rules"])
    return found


async def put_rules(database: Database, digest: str) -> None:
    """Store the digest of the preference policy by which deliveries are held from now on."""
    await database.value(_SQL["put_rules"], digest)


async def release_others(database: Database, worker: UUID, lane: str, under_way: Collection[DeliveryKey]) -> int:
    """Release the leases of a worker in a lane, except those under way; return their number."""
    return len(await database.rows(_SQL["release_others"], worker, lane, *_columns_of(sorted(under_way))))


async def drop(database: Database, gone: Mapping[UUID, datetime]) -> None:
    """Remove devices that no longer exist since a time, unless they were registered after it."""
    await database.value(_SQL["drop"], list(gone), list(gone.values()))


async def counts(database: Database, event_id: UUID, but: Sequence[int] = ()) -> dict[State, int]:
    """Return the number of deliveries of an event in each state, without those to users of the companies `but`."""
    found = {row["state"]: row["count"] for row in await database.rows(_SQL["counts"], event_id, but)}
    return {state: found.get(state, 0) for state in STATES}


async def is_waiting(database: Database, event_id: UUID) -> bool:
    """Return whether any delivery of an event is queued or will be retried. Held deliveries do not count."""
    return bool(await database.value(_SQL["is_waiting"], event_id))


async def of_person(database: Database, event_id: UUID, user_id: int) -> list[Record]:
    """Return the deliveries of an event to the devices of one user, and the devices without a key (`unserved`)."""
    return await database.rows(_SQL["of_person"], event_id, user_id)


@dataclass(frozen=True, slots=True)
class Clear:
    """The notifications to clear on one phone, because they were read or deleted on another device."""

    lane: str
    address: Address
    unread: int
    what: tuple[UUID, ...] | Literal["all"]


async def clears(database: Database, limit: int = 200) -> list[Clear]:
    """Take users with notifications to clear, and return what each of their phones must clear.

    A phone that was detached, or whose user was erased or deactivated, must once clear everything. If the database
    fails before all is read, nothing is taken.
    """
    async with database.transaction() as connection:
        due = await connection.fetch(_SQL["claim_clears"], limit)
        rows = await connection.fetch(_SQL["cleared"], *map(list, zip(*due, strict=True))) if due else []
        told = {row["user_id"]: row for row in rows if row["all_read"] or row["ids"] or row["raised"]}
        last = await connection.fetch(_SQL["claim_last_clears"], limit)
        phones = await connection.fetch(_SQL["phones"], list(told)) if told else []
    found = [Clear(phone["lane"], address_of(phone), 0, "all") for phone in last]
    for phone in phones:
        row = told[phone["user_id"]]
        is_all = row["all_read"] or (not row["unread"] and len(row["ids"]) > MAX_CLEARED)
        what: tuple[UUID, ...] | Literal["all"] = "all" if is_all else tuple(row["ids"])
        found.append(Clear(phone["lane"], address_of(phone), row["unread"], what))
    return found


def address_of(row: Record) -> Address:
    """Return the address of a device."""
    keys = (row["p256dh"] or "", row["auth"] or "", row["server_key"] or "")
    return Address(row["token"], row["type"], row["environment"], row["app"], row["registered_at"], *keys)


async def closed(database: Database, user_id: int, told_up_to: int | None) -> tuple[UUID, ...]:
    """Return the latest notifications that were read or deleted after a position; empty without a position."""
    if told_up_to is None:
        return ()
    return tuple(row["id"] for row in await database.rows(_SQL["closed"], user_id, told_up_to))


async def note_closed(database: Database, device_id: UUID, position: int) -> None:
    """Record the position up to which a browser knows what to close."""
    await database.value(_SQL["note_closed"], [device_id], [position])


async def found_as(database: Database, device_id: UUID, address: Address) -> None:
    """Record the environment and the VAPID key by which a device was reached."""
    await database.value(_SQL["found_as"], device_id, address.environment, address.server_key or None)


async def enter_lane(database: Database, name: str, configuration: str) -> None:
    """Register a lane; if its configuration changed, reset it."""
    await database.value(_SQL["enter_lane"], name, configuration)


async def lane_works(database: Database, name: str) -> datetime | None:
    """Record that a lane has delivered; return since when it was stopped, if it was."""
    stopped_at: datetime | None = await database.value(_SQL["lane_works"], name)
    return stopped_at


async def lane_stops(database: Database, name: str, reason: str) -> None:
    """Record that a lane has stopped, and why."""
    await database.value(_SQL["lane_stops"], name, reason)


async def lane_has_delivered(database: Database, name: str) -> bool:
    """Return whether a lane has delivered since its configuration changed."""
    return bool(await database.value(_SQL["lane_has_delivered"], name))


async def lanes(database: Database) -> list[Record]:
    """Return all lanes: `name`, `delivered_at`, `stopped_at`, `reason`, `due` (a number of deliveries) and `oldest`.

    `due` is counted up to `MAX_COUNTED`; `oldest` is the longest wait in seconds.
    """
    return await database.rows(_SQL["lanes"], MAX_COUNTED)


async def service_refuses(database: Database, lane: str, origin: str, reason: str) -> None:
    """Record that a push service of a lane refused the authentication, and why."""
    await database.value(_SQL["service_refuses"], lane, origin, reason)


async def service_delivers(database: Database, lane: str, origin: str) -> datetime | None:
    """Record that a push service of a lane accepted a push; return since when it refused the authentication, if it did.

    The delayed pushes are then due at once.
    """
    refused_at: datetime | None = await database.value(_SQL["service_delivers"], lane, origin)
    return refused_at


async def service_has_delivered(database: Database, lane: str, origin: str, since: datetime) -> bool:
    """Return whether a push service of a lane has accepted a push since a time."""
    return bool(await database.value(_SQL["service_has_delivered"], lane, origin, since))


async def refusing(database: Database | Connection) -> list[Record]:
    """Return the push services that refuse the authentication: `lane`, `origin`, `refused_at`, `reason`."""
    return await fetch(database, _SQL["refusing"])


async def oldest(database: Database) -> float:
    """Return the seconds for which the oldest due push has waited."""
    return float(await database.value(_SQL["oldest"]))


async def stopped(database: Database) -> dict[str, bool]:
    """Return whether each lane has stopped, without counting its deliveries."""
    return {row["name"]: row["stopped"] for row in await database.rows(_SQL["stopped"])}


async def dead(database: Database, before: datetime | None, limit: int, company_id: int | None = None) -> list[Record]:
    """Return deliveries that were given up, ever or before a time, the latest first, of one company or of all."""
    return await database.rows(_SQL["dead"], before, limit, company_id)


async def replay(
    connection: Connection, event_ids: Sequence[UUID], company_id: int | None = None, lane: str | None = None
) -> int:
    """Requeue the deliveries of these events that were given up, or those of one lane; return their number."""
    [[count]] = await fetch_long(connection, _SQL["replay"], event_ids, company_id, lane)
    return int(count)


async def replay_lane(
    connection: Connection, lane: str | None, period: Period, limit: int, company_id: int | None = None
) -> int:
    """Requeue the first deliveries of a lane, or of all, that were given up in a period; return their number."""
    arguments = lane, period[0], limit, company_id, period[1]
    return len(await fetch_long(connection, _SQL["replay_lane"], *arguments))  # reads other lanes and companies, too


def next_try(attempts: int, after: float | None, least: float, now: datetime, expires_at: datetime) -> datetime | None:
    """Return when to try again after a number of attempts; None if the delivery expires before.

    `after` seconds, if the provider asked for them, replace the delay of the schedule; `least` is the minimum.
    """
    step = RETRY_DELAYS[min(attempts, len(RETRY_DELAYS)) - 1] if after is None else after
    wait = max(step, least) * (1 + random.uniform(0, JITTER))  # noqa: S311 - spreads tries, hides nothing
    due_at = now + timedelta(seconds=wait)
    return due_at if due_at < expires_at else None


def retried(delivery: Delivery, reason: str, after: float | None = None, least: float = 0.0) -> Settled:
    """Return the state of a delivery that is tried again, as in `next_try`, or given up."""
    due_at = next_try(delivery.attempts, after, least, delivery.now, delivery.expires_at)
    if due_at is None:
        return Settled(delivery.key, "dead", None, f"given up: {reason}")
    return Settled(delivery.key, "later", due_at, f"again at {due_at:%Y-%m-%d %H:%M:%S} UTC: {reason}")


def _columns_of(keys: Sequence[DeliveryKey]) -> tuple[list[UUID], list[UUID]]:
    return [key.event_id for key in keys], [key.device_id for key in keys]


def _delivery(row: Record) -> Delivery:
    key = DeliveryKey(row["event_id"], row["device_id"])
    address = address_of(row) if row["is_theirs"] else None
    return Delivery(key=key, address=address, lapsed=_lapsed(row), **{name: row[name] for name in _COLUMNS})


def _lapsed(row: Record) -> str:
    """Return why a delivery is no longer sent; empty if it is."""
    reasons: Iterable[tuple[Any, str]] = (
        (not row["is_theirs"], "the device was detached, or belongs to another user now"),
        (not row["active"], "the user is not active"),
        (row["cancelled"], "the event was cancelled before its turn"),
        (row["deleted_at"] or not row["body"], "deleted before its turn"),
        (row["read_at"], "read before its turn"),
    )
    return next((words for applies, words in reasons if applies), "")
