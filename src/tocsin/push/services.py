"""The push services of a lane that has several, and whether they accept who we are: noted, logged, and told again."""

import time
from dataclasses import dataclass

import structlog

from tocsin.db.pool import Database
from tocsin.pubsub import PubSub
from tocsin.push import deliveries

NOTED = 30.0
"""Seconds after which the same is noted again in the database."""

LOGGED = 600.0
"""Seconds after which a refusal is logged again while it lasts."""

_NEVER = -1e9

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Seen:
    """What this process noted of a service, and when, by the monotonic clock."""

    refuses: bool = False
    delivered: float = _NEVER
    refused: float = _NEVER
    logged: float = _NEVER


class PushServices:
    """What the push services of all lanes answered last; each is named by its lane and origin.

    A service that refuses who we are holds back its own pushes and no others: each of them keeps to its schedule, and
    all go at once when the service accepts one.
    """

    def __init__(self, database: Database, pubsub: PubSub) -> None:
        self._database = database
        self._pubsub = pubsub
        self._seen: dict[tuple[str, str], _Seen] = {}

    async def delivered(self, lane: str, origin: str) -> None:
        """Note that a service took a push."""
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
        """Note that a service refused who we are."""
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
                remedy="check TOCSIN_VAPID_SUBJECT, TOCSIN_VAPID_KEY_FILE and the clock",
            )

    def keys_reloaded(self) -> None:
        """Forget what was seen: the keys may be others now."""
        self._seen.clear()
