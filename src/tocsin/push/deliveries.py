"""Deliveries: one push of a notification to one device, from the inbox to what its provider answered.

A delivery is made in the transaction that writes the inbox, claimed under a lease like a job, looked at again as things
are then, and settled in batches. Every write names the worker that must still hold it.
"""

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple
from uuid import UUID

from tocsin.db.pool import Connection, Database, Record, fetch, queries
from tocsin.push.channels import Address

State = Literal["queued", "later", "held", "delivered", "gone", "refused", "dead", "muted", "skipped"]

STATES: tuple[State, ...] = ("queued", "delivered", "gone", "later", "held", "refused", "dead", "muted", "skipped")
"""All states of a delivery; `skipped` was read, deleted, cancelled or moved before its turn."""

RETRY_DELAYS = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0)
"""Seconds to wait before each further try; the last again and again."""

JITTER = 0.1
"""How much longer a wait may be, as a part of it."""

LIFETIME = timedelta(hours=24)
"""How long after it came into the inbox a push is worth sending."""

_SQL = queries("deliveries")


class DeliveryKey(NamedTuple):
    """What names a delivery."""

    event_id: UUID
    device_id: UUID


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery under our lease, with all that decides what becomes of it, as it is now.

    `address` is none where the device is gone or somebody else's; `body` are the first five keys of the notification.
    `place` is where it stands in the inbox, `position` how far the inbox has come.
    """

    key: DeliveryKey
    user_id: int
    attempts: int
    state: State
    made_at: datetime
    address: Address | None
    lapsed: str
    unread: int
    position: int
    place: int
    locale: str
    language: str
    kind: str
    params: str
    body: str
    told_up_to: int | None

    @property
    def expires_at(self) -> datetime:
        """When it is no longer worth sending."""
        return self.made_at + LIFETIME


class Settled(NamedTuple):
    """What became of a delivery: a later state, when it is due again if it is, and why, in words."""

    key: DeliveryKey
    state: State
    due_at: datetime | None = None
    reason: str | None = None


async def claim(database: Database, worker: UUID, lane: str, limit: int, *, bulk: bool) -> list[Delivery]:
    """Lease up to `limit` deliveries of a lane that are due, and return them as things are now."""
    rows = await database.rows(_SQL["claim"], worker, lane, bulk, limit)
    held = [row["device_id"] for row in rows if row["state"] == "held"]
    if held:
        rows += await database.rows(_SQL["claim_held"], worker, held, lane)
    if not rows:
        return []
    found = await database.rows(_SQL["look"], [row["event_id"] for row in rows], [row["device_id"] for row in rows])
    return [_delivery(row) for row in found]


async def settle(database: Database, worker: UUID, settled: Sequence[Settled]) -> None:
    """Write back what became of deliveries, where they are still ours, in the order of their keys, as erasing goes."""
    settled = sorted(settled, key=lambda outcome: outcome.key)
    keys = [outcome.key for outcome in settled]
    columns = ([getattr(outcome, name) for outcome in settled] for name in ("state", "due_at", "reason"))
    await database.value(
        _SQL["settle"], worker, [key.event_id for key in keys], [key.device_id for key in keys], *columns
    )


async def put_back(database: Database, worker: UUID, keys: Sequence[DeliveryKey]) -> None:
    """Hand deliveries back, as if they had never been claimed."""
    keys = sorted(keys)
    await database.value(_SQL["put_back"], worker, [key.event_id for key in keys], [key.device_id for key in keys])


async def release(database: Database, worker: UUID) -> None:
    """Free all that a worker holds."""
    await database.value(_SQL["release"], worker)


async def release_held(store: Database | Connection, user_ids: Sequence[int]) -> None:
    """Have what is held for these users decided again: what held it may be over."""
    await fetch(store, _SQL["release_held"], user_ids)


async def release_all_held(database: Database, after: DeliveryKey, limit: int) -> DeliveryKey | None:
    """Have some of all that is held decided again, the next after `after`; return the last of them, None: all were.

    They go in the order of devices and events, so that what is held anew meanwhile is not taken twice.
    """
    row = await database.row(_SQL["release_all_held"], after.device_id, after.event_id, limit)
    return DeliveryKey(**row) if row else None


async def rules(database: Database) -> str | None:
    """Return the digest of the operator's rules by which what is held was decided, if it was kept."""
    found: str | None = await database.value(_SQL["rules"])
    return found


async def put_rules(database: Database, digest: str) -> None:
    """Keep the digest of the operator's rules by which what is held is decided from now on."""
    await database.value(_SQL["put_rules"], digest)


async def release_others(database: Database, worker: UUID, lane: str, under_way: Collection[DeliveryKey]) -> int:
    """Free what a worker holds in a lane but for these; return how many that were."""
    keys = sorted(under_way)
    return len(
        await database.rows(
            _SQL["release_others"], worker, lane, [key.event_id for key in keys], [key.device_id for key in keys]
        )
    )


async def drop(database: Database, gone: Mapping[UUID, datetime]) -> None:
    """Forget devices that are gone since a moment, unless they were registered after it."""
    await database.value(_SQL["drop"], list(gone), list(gone.values()))


async def counts(database: Database, event_id: UUID) -> dict[State, int]:
    """Return how many deliveries of an event are in each state."""
    found = {row["state"]: row["count"] for row in await database.rows(_SQL["counts"], event_id)}
    return {state: found.get(state, 0) for state in STATES}


async def is_waiting(database: Database, event_id: UUID) -> bool:
    """Tell whether any delivery of an event is still to be sent, by itself and soon: what is held is not."""
    return bool(await database.value(_SQL["is_waiting"], event_id))


async def of_person(database: Database, event_id: UUID, user_id: int) -> list[Record]:
    """Return the deliveries of an event to one person's devices."""
    return await database.rows(_SQL["of_person"], event_id, user_id)


@dataclass(frozen=True, slots=True)
class Clear:
    """What one phone is to be told that was read or deleted elsewhere."""

    lane: str
    address: Address
    unread: int
    what: tuple[UUID, ...] | Literal["all"]


async def clears(database: Database, limit: int = 200) -> list[Clear]:
    """Take the users whose phones are to be told, and return what each phone is.

    Phones whose user was erased, is not active any more or had them detached are told once to clear all.
    """
    taken = {row["user_id"]: row for row in await database.rows(_SQL["claim_clears"], limit)}
    told = {user_id: row for user_id, row in taken.items() if row["all_read"] or row["ids"] or row["raised"]}
    found = [
        Clear(phone["lane"], address_of(phone), 0, "all")
        for phone in await database.rows(_SQL["claim_last_clears"], limit)
    ]
    if not told:
        return found
    for phone in await database.rows(_SQL["phones"], list(told)):
        row = told[phone["user_id"]]
        what: tuple[UUID, ...] | Literal["all"] = "all" if row["all_read"] else tuple(row["ids"])
        found.append(Clear(phone["lane"], address_of(phone), row["unread"], what))
    return found


def address_of(row: Record) -> Address:
    """Return the address in the columns of a device."""
    keys = (row["p256dh"] or "", row["auth"] or "", row["server_key"] or "")
    return Address(row["token"], row["type"], row["environment"], row["app"], row["registered_at"], *keys)


async def closed(database: Database, user_id: int, told_up_to: int | None) -> tuple[UUID, ...]:
    """Return the latest that was read or deleted since a browser was told; nothing where it never was."""
    if told_up_to is None:
        return ()
    return tuple(row["id"] for row in await database.rows(_SQL["closed"], user_id, told_up_to))


async def note_closed(database: Database, device_id: UUID, position: int) -> None:
    """Note up to where a browser was told what to close."""
    await database.value(_SQL["note_closed"], [device_id], [position])


async def found_as(database: Database, device_id: UUID, address: Address) -> None:
    """Note how a device turned out to be known: in the other environment, or by another key of ours."""
    await database.value(_SQL["found_as"], device_id, address.environment, address.server_key or None)


async def enter_lane(database: Database, name: str, configuration: str) -> None:
    """Make a lane known; with another configuration it begins anew."""
    await database.value(_SQL["enter_lane"], name, configuration)


async def lane_works(database: Database, name: str) -> datetime | None:
    """Note that a lane has just delivered; return since when it had stopped, if it had."""
    stopped_at: datetime | None = await database.value(_SQL["lane_works"], name)
    return stopped_at


async def lane_stops(database: Database, name: str, reason: str) -> None:
    """Note that nothing of a lane can go, and why."""
    await database.value(_SQL["lane_stops"], name, reason)


async def lane_has_delivered(database: Database, name: str) -> bool:
    """Tell whether a lane has delivered since its configuration last changed."""
    return bool(await database.value(_SQL["lane_has_delivered"], name))


async def lanes(database: Database) -> list[Record]:
    """Return all lanes: `name`, `delivered_at`, `stopped_at`, `reason`, and how many deliveries are `due`.

    `oldest` are the seconds that the longest of them waits.
    """
    return await database.rows(_SQL["lanes"])


async def service_refuses(database: Database, lane: str, origin: str, reason: str) -> None:
    """Note that a push service of a lane refused who we are, and why."""
    await database.value(_SQL["service_refuses"], lane, origin, reason)


async def service_delivers(database: Database, lane: str, origin: str) -> datetime | None:
    """Note that a push service of a lane took a push; return since when it had refused us, if it had.

    What it refused for longer than a moment is due at once then.
    """
    refused_at: datetime | None = await database.value(_SQL["service_delivers"], lane, origin)
    return refused_at


async def service_has_delivered(database: Database, lane: str, origin: str, since: datetime) -> bool:
    """Tell whether a push service of a lane has taken a push since a moment."""
    return bool(await database.value(_SQL["service_has_delivered"], lane, origin, since))


async def refusing(database: Database) -> list[Record]:
    """Return the push services that refuse who we are: `lane`, `origin`, `refused_at`, `reason`."""
    return await database.rows(_SQL["refusing"])


async def oldest(database: Database) -> float:
    """Return for how many seconds the longest waiting push has been due."""
    return float(await database.value(_SQL["oldest"]))


async def stopped(database: Database) -> dict[str, bool]:
    """Return all lanes, and whether they have stopped, without counting what is due."""
    return {row["name"]: row["stopped"] for row in await database.rows(_SQL["stopped"])}


async def dead(database: Database, before: datetime, limit: int, company_id: int | None = None) -> list[Record]:
    """Return deliveries that were given up, the latest before a moment first, of one company or of all."""
    return await database.rows(_SQL["dead"], before, limit, company_id)


async def replay(database: Database, event_ids: Sequence[UUID], company_id: int | None = None) -> int:
    """Queue the deliveries of these events that were given up once more; return how many."""
    return len(await database.rows(_SQL["replay"], event_ids, company_id))


async def replay_lane(
    database: Database, lane: str | None, since: datetime, limit: int, company_id: int | None = None
) -> int:
    """Queue deliveries of a lane, or of all, that were given up since a moment once more; return how many."""
    return len(await database.rows(_SQL["replay_lane"], lane, since, limit, company_id))


def next_try(attempts: int, after: float | None, least: float, expires_at: datetime) -> datetime | None:
    """Return when to try again after so many attempts, None where that would be too late.

    What the provider asked for, `after` seconds, takes the step's place; `least` is what it asks for at all times.
    """
    step = RETRY_DELAYS[min(attempts, len(RETRY_DELAYS)) - 1] if after is None else after
    wait = max(step, least) * (1 + random.uniform(0, JITTER))  # noqa: S311 - spreads tries, hides nothing
    due_at = datetime.now(UTC) + timedelta(seconds=wait)
    return due_at if due_at < expires_at else None


def _delivery(row: Record) -> Delivery:
    address = None
    if row["is_theirs"]:
        address = address_of(row)
    return Delivery(
        DeliveryKey(row["event_id"], row["device_id"]),
        row["user_id"],
        row["attempts"],
        row["state"],
        row["made_at"],
        address,
        _lapsed(row),
        row["unread"] or 0,
        row["position"] or 0,
        row["place"] or 0,
        row["locale"] or "",
        row["language"] or "",
        row["kind"] or "",
        row["params"] or "{}",
        row["body"] or "",
        row["told_up_to"],
    )


def _lapsed(row: Record) -> str:
    """Say in words why a delivery is no longer to be made; nothing where it is."""
    reasons: Iterable[tuple[Any, str]] = (
        (not row["is_theirs"], "the device was detached, or is somebody else's now"),
        (not row["active"], "the user is not active"),
        (row["cancelled"], "the event was cancelled before its turn"),
        (row["deleted_at"] or not row["body"], "deleted before its turn"),
        (row["read_at"], "read before its turn"),
    )
    return next((words for applies, words in reasons if applies), "")
