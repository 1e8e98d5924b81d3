"""Probes: a test push to a device of a user, and a test of the credentials of a lane."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

from tocsin.db.connections import Record
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import NotFound
from tocsin.ids import new_id
from tocsin.push import deliveries
from tocsin.push.channels import (
    Address,
    Delivered,
    DeviceType,
    Gone,
    Later,
    Outcome,
    Push,
    Refused,
    Stopped,
    Unauthorised,
)
from tocsin.push.content import Composer
from tocsin.push.lanes import Lane

PROBE_TIMEOUT = 10.0
"""Seconds to wait for the provider's answer."""

LIFETIME = timedelta(minutes=5)
"""How long the provider keeps a test push for a device that is offline."""

_NO_DEVICE = "0" * 64
"""A token that no provider gives to a device."""

_SQL = queries("probe")


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of a test push, in the states of deliveries. `stopped`: the settings of the lane are wrong."""

    lane: str
    state: Literal["delivered", "gone", "later", "refused", "skipped", "stopped"]
    reason: str


async def device_of(
    database: Database, user_id: int, token: str | None = None, device_id: UUID | None = None
) -> Record:
    """Return a device of a user by its token or its id, for `send`. Raises `NotFound`."""
    device = await database.row(_SQL["device"], user_id, token, device_id)
    if device is None:
        raise NotFound
    return device


async def send(database: Database, composer: Composer, lanes: Sequence[Lane], device: Record) -> ProbeResult:
    """Send a test push to a device of an active user, independent of preferences, and return the result.

    A device that no longer exists is removed.
    """
    lane = next((lane for lane in lanes if lane.name == device["lane"]), None)
    if lane is None or not device["active"]:
        return _unsent(device)
    outcome, sent_at = await _push(lane, deliveries.address_of(device), composer, device["unread"], device["locale"])
    match outcome:
        case Delivered():
            return ProbeResult(lane.name, "delivered", "delivered")
        case Gone(reason, at):
            await deliveries.drop(database, {device["id"]: at or sent_at})
            return ProbeResult(lane.name, "gone", f"the device is gone: {reason}")
        case Later(reason) | Unauthorised(reason):
            return ProbeResult(lane.name, "later", reason)
        case Refused(reason):
            return ProbeResult(lane.name, "refused", reason)
        case Stopped(reason):
            return ProbeResult(lane.name, "stopped", reason)


def _unsent(device: Record) -> ProbeResult:
    if device["active"]:
        return ProbeResult(device["lane"], "stopped", "no key is set for this provider and app")
    return ProbeResult(device["lane"], "skipped", "the user is not active: nothing is delivered")


async def credentials(lane: Lane, composer: Composer, device: DeviceType) -> Later | Stopped | None:
    """Return why a provider refuses the credentials of a lane, or cannot be asked; None if it accepts them.

    It is asked to push to a token that belongs to no device. `device` is the channel's `probe_type`.
    """
    address = Address(_NO_DEVICE, device, lane.environment, lane.app, datetime.now(UTC))
    outcome, _ = await _push(lane, address, composer, 0, "en")
    if isinstance(outcome, Later) and outcome.after == 0.0:  # the channel has renewed its token
        outcome, _ = await _push(lane, address, composer, 0, "en")
    return outcome if isinstance(outcome, Later | Stopped) else None


async def _push(lane: Lane, address: Address, composer: Composer, badge: int, locale: str) -> tuple[Outcome, datetime]:
    """Send a test push through a lane; return its outcome, and when it was sent."""
    now = datetime.now(UTC)
    found = await lane.channel.ready()
    if found is not None:
        return found, now
    push = Push(new_id(), address, badge, now + LIFETIME, composer.test(locale))
    request = lane.channel.request(push)
    if isinstance(request, Refused):
        return request, now
    try:
        answer = await asyncio.wait_for(lane.transport.submit(request), PROBE_TIMEOUT)
    except TimeoutError:
        return Later(f"the provider has not answered within {PROBE_TIMEOUT:.0f} seconds"), now
    return lane.channel.outcome(push, answer), answer.sent_at
