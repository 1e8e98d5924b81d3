"""Clears: silent pushes that remove from phones what was read or deleted on another device."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from tocsin.backoff import Backoff
from tocsin.db.admission import KIND
from tocsin.db.pool import Database
from tocsin.ids import new_id
from tocsin.pubsub import PubSub, wait
from tocsin.push import deliveries
from tocsin.push.channels import Push, Refused
from tocsin.push.deliveries import Clear
from tocsin.push.lanes import Lane

LIFETIME = timedelta(hours=1)
"""How long a provider keeps a clear for a phone that is offline."""

POLL_INTERVAL = 0.5
"""Seconds after which it looks for clears of which it got no message."""


class ClearSender:
    """Sends each clear once, without retries, through the lanes by name."""

    def __init__(
        self, database: Database, lanes: Mapping[str, Lane], pubsub: PubSub, stopping: asyncio.Event, backoff: Backoff
    ) -> None:
        self._database = database
        self._lanes = lanes
        self._pubsub = pubsub
        self._stopping = stopping
        self._backoff = backoff

    async def run(self) -> None:
        """Send clears until `stopping` is set."""
        KIND.set("clears")
        while not self._stopping.is_set():
            wakeup = self._pubsub.listen_for("clear")
            try:
                if not await self._send_all():
                    await wait(wakeup, POLL_INTERVAL)
                self._backoff.succeeded()
            except Exception as error:  # noqa: BLE001 - no error may end the loop
                await self._backoff.pause(error)

    async def _send_all(self) -> bool:
        """Send the next clears; return whether there were any."""
        found = await deliveries.clears(self._database)
        for clear in found:
            lane = self._lanes.get(clear.lane)
            if lane is None or lane.stopped:
                continue
            try:
                _send(lane, clear)
            except Exception as error:  # noqa: BLE001 - one push that cannot be made must not stop the others
                self._backoff.note(error)
        return bool(found)


def _send(lane: Lane, clear: Clear) -> None:
    push = Push(new_id(), clear.address, clear.unread, datetime.now(UTC) + LIFETIME, None, clear.what)
    request = lane.channel.request(push)
    if not isinstance(request, Refused):
        lane.transport.submit(request).add_done_callback(lambda _: None)
