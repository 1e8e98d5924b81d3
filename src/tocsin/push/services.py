"""The push services of a lane that has several, and whether they accept the authentication."""

import time
from dataclasses import dataclass

import structlog

from tocsin.db.pool import Database
from tocsin.pubsub import PubSub
from tocsin.push import deliveries

NOTED = 30.0
"""Seconds after which the same result is written to the database again."""

LOGGED = 600.0
"""Seconds after which a lasting refusal is logged again."""

_NEVER = -1e9

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Seen:
    """The last results of a service in this process, with times of the monotonic clock."""

    refuses: bool = False
    delivered: float = _NEVER
    refused: float = _NEVER
    logged: float = _NEVER


class PushServices:
    """The last results of the push services of all lanes. A service is identified by its lane and origin.

    A service that refuses the authentication delays only its own pushes: each follows the retry schedule, and all are
    sent at once when the service accepts one.
    """

    def __init__(self, database: Database, pubsub: PubSub) -> None:
        self._database = database
        self._pubsub = pubsub
        self._seen: dict[tuple[str, str], _Seen] = {}

    async def delivered(self, lane: str, origin: str) -> None:
        """Record that a service accepted a push."""
        seen, now = self._seen.setdefault((lane, origin), _Seen()), time.monotonic()
        if not seen.refuses and now - seen.delivered < NOTED:
            return
        refused_at = await deliveries.service_delivers(self._database, lane, origin)
        seen.refuses, seen.delivered = False, now
        if refused_at is None:
            return
        seen.logged = _NEVER
        log.info("push service accepts pushes again", lane=lane, service=origin, refused_since=refused_at.isoformat())
        self._pubsub.publish("push")

    async def refused(self, lane: str, origin: str, reason: str) -> None:
        """Record that a service refused the authentication."""
        seen, now = self._seen.setdefault((lane, origin), _Seen()), time.monotonic()
        if now - seen.refused < NOTED and seen.refuses:
            return
        await deliveries.service_refuses(self._database, lane, origin, reason)
        seen.refuses, seen.refused = True, now
        if now - seen.logged >= LOGGED:
            seen.logged = now
            log.error(
                "push service refused the authentication",
                lane=lane,
                service=origin,
                reason=reason,
                hint="check TOCSIN_VAPID_SUBJECT, TOCSIN_VAPID_KEY_FILE and the clock",
            )

    def keys_reloaded(self) -> None:
        """Forget all results, because the keys may have changed."""
        self._seen.clear()
