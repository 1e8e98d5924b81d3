"""Results: records what the answers of providers mean for deliveries, devices and lanes, in batches."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import chain
from uuid import UUID

import structlog

from tocsin import devices
from tocsin.backoff import FIRST, Backoff
from tocsin.db.admission import KIND
from tocsin.db.connections import STATEMENT_TIMEOUT
from tocsin.db.pool import Database
from tocsin.errors import Unavailable
from tocsin.isolation import LOCKED_DELAY, LockConflicts, do_in_parts
from tocsin.metrics import Metrics
from tocsin.pubsub import PubSub
from tocsin.push import deliveries
from tocsin.push.channels import Delivered, Gone, Later, Outcome, Refused, Stopped, Unauthorised
from tocsin.push.deliveries import DeliveryKey, Settled, retried
from tocsin.push.lanes import Answered, Lane
from tocsin.push.services import PushServices

GATHER_TIME = 0.01
"""Seconds to wait for more answers before a batch is recorded."""

LAST_TIMEOUT = STATEMENT_TIMEOUT
"""Seconds for which a process that stops tries to record the last answers: as long as a statement may take."""

PROBE_INTERVAL = 30.0
"""Seconds after which a stopped lane tries one push."""

DOUBTFUL_DELAY = timedelta(minutes=10)
"""How long a delivery is delayed if its device may be wrong, and its lane has delivered nothing yet."""

CERTAIN_ATTEMPTS = 5
"""Attempts, over more than ten minutes, after which a service that accepts other pushes refuses this device."""

NOTED = 30.0
"""Seconds after which a delivery of a lane is written to the database again."""

log = structlog.get_logger(__name__)


class ResultWriter:
    """Records the answers of lanes. `worker` is the id that holds the leases."""

    def __init__(
        self, database: Database, worker: UUID, lanes: Mapping[str, Lane], pubsub: PubSub, metrics: Metrics
    ) -> None:
        self._database = database
        self._worker = worker
        self._lanes = lanes
        self._pubsub = pubsub
        self._metrics = metrics
        self._services = PushServices(database, pubsub)
        self.backoffs = {name: Backoff(f"answers of {name}", failed=metrics.failure) for name in lanes}
        self._conflicts = {name: LockConflicts() for name in lanes}
        self._writing = {name: asyncio.Lock() for name in lanes}

    def keys_reloaded(self) -> None:
        """Forget the results of push services, because the keys may have changed."""
        self._services.keys_reloaded()

    async def run(self, lane: Lane) -> None:
        """Record the answers of a lane, forever."""
        KIND.set(f"answers of {lane.name}")
        backoff = self.backoffs[lane.name]
        while True:
            if not lane.answered:
                lane.arrivals.clear()
                await lane.arrivals.wait()
            await asyncio.sleep(GATHER_TIME)
            try:
                await self.settle(lane)
                if not lane.kept:
                    backoff.succeeded()
            except Exception as error:  # noqa: BLE001 - no error may end the loop
                await backoff.pause(error)

    async def settle(self, lane: Lane) -> None:
        """Record all answers until now in one batch; if that fails, in halves. A batch under way ends first."""
        async with self._writing[lane.name]:
            await self._settle(lane)

    async def finish(self, lane: Lane) -> None:
        """Record the last answers of a lane; behind a lock and in an outage, try again for `LAST_TIMEOUT` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_TIMEOUT):
                await self._settle_all(lane)
        if lane.under_way:
            log.warning("pushes will be sent again: no result was recorded", lane=lane.name, count=len(lane.under_way))

    async def _settle_all(self, lane: Lane) -> None:
        while True:
            lane.retry_set_aside()
            try:
                await self.settle(lane)
            except Exception as error:  # noqa: BLE001 - it is tried again
                self.backoffs[lane.name].note(error)
            if not lane.answered and not lane.kept:
                return
            await asyncio.sleep(FIRST)

    async def _settle(self, lane: Lane) -> None:
        answered, lane.answered = lane.answered, []
        mine = [each for each in answered if not self._is_retried(lane, each)]
        waiting: deque[Sequence[Answered]] = deque([mine] if mine else [])
        try:
            await do_in_parts(
                waiting,
                lambda part: self._write_back(lane, part),
                lambda each, error: self._give_up(lane, each, error),
                self._conflicts[lane.name],
            )
        except Unavailable:
            lane.answered = [*chain.from_iterable(waiting), *lane.answered]
            raise

    async def _give_up(self, lane: Lane, each: Answered, error: Exception) -> None:
        """Keep an answer that cannot be recorded now: its push was sent, and must not be sent again.

        It stays under way, so that the number of such answers is limited by the window.
        """
        self.backoffs[lane.name].note(error)
        lane.set_aside(each, LOCKED_DELAY)

    async def _write_back(self, lane: Lane, answered: Sequence[Answered]) -> None:
        settled: list[Settled] = []
        gone: dict[UUID, datetime] = {}
        back: list[DeliveryKey] = []
        outcomes = [_outcome(lane, each) for each in answered]
        for each, (judge, outcome) in zip(answered, outcomes, strict=True):
            keys = [delivery.key for delivery in (each.delivery, *each.bundle)]
            is_outdated = isinstance(outcome, Unauthorised | Stopped) and each.answer.sent_at < lane.renewed_at
            result = None if is_outdated else await self._result(judge, each, outcome, gone)
            if result is None:
                back += keys
            else:
                settled += _of_bundle(result, keys)
        # Results last: after them, the same deliveries may be claimed again, and nothing may be repeated then.
        if gone:
            await deliveries.drop(self._database, gone)
        if back:
            await deliveries.put_back(self._database, self._worker, back)
        if settled:
            await deliveries.settle(self._database, self._worker, settled)
        for _, outcome in outcomes:
            self._metrics.answer(lane.name, outcome)
        lane.under_way.difference_update(done.key for done in settled)
        lane.under_way.difference_update(back)
        lane.progress.set()
        ages = {each.delivery.key: each.delivery.now - each.delivery.made_at for each in answered}
        for done in settled:
            took = ages[done.key].total_seconds() if done.key in ages else None
            self._metrics.push(lane.name, done.state, took)
        if settled:
            self._pubsub.publish("settled")

    async def _result(self, lane: Lane, each: Answered, outcome: Outcome, gone: dict[UUID, datetime]) -> Settled | None:
        """Return the new state of a delivery; None: it is put back, as if it had never been claimed.

        `lane` is the one that answered: a second try through another lane shows nothing about the first one.
        """
        key = each.delivery.key
        match outcome:
            case Delivered():
                await self._has_delivered(lane, each)
                return Settled(key, "delivered", None, "delivered")
            case Gone(reason, at):
                lane.waits_since = lane.fails_since = None  # the provider judges pushes again
                gone[key.device_id] = at or each.delivery.looked_at
                return Settled(key, "gone", None, f"the device is gone: {reason}")
            case Later(reason, after, lane_waits):
                if lane_waits:
                    lane.wait(lane_waits, reason)
                least = max(lane.channel.min_retry_delay, lane_waits or 0.0)
                result = retried(each.delivery, reason, after, least)
                lane.fail(result.due_at - each.delivery.now if result.due_at else timedelta(), reason)
                return result
            case Unauthorised(reason, after):
                return await self._unauthorised(lane, each, reason, after)
            case Refused(reason, doubtful):
                return await self._refused(lane, each, reason, gone, doubtful=doubtful)
            case Stopped(reason):
                await self.stop_lane(lane, reason)
                return None

    async def _has_delivered(self, lane: Lane, each: Answered) -> None:
        now = time.monotonic()
        if lane.stopped or now - lane.noted > NOTED:
            lane.noted = now
            if stopped_at := await deliveries.lane_works(self._database, lane.name):
                log.info("lane resumed", lane=lane.name, stopped_since=stopped_at.isoformat())
        lane.resume()
        if each.retry_lane:
            await deliveries.found_as(self._database, each.delivery.key.device_id, each.push.address)
            await devices.follow(self._database, each.delivery.key.device_id)
        if service := lane.channel.service(each.push.address):
            await self._services.delivered(lane.name, service)
        if not lane.channel.accepts_silent_push:
            await deliveries.note_closed(self._database, each.delivery.key.device_id, each.delivery.position)

    async def _unauthorised(self, lane: Lane, each: Answered, reason: str, after: float | None) -> Settled:
        """Delay a push whose service refused the authentication. If it accepts others, the subscription is the cause.

        The device is kept: for a subscription that has ended, the service answers 404 or 410.
        """
        service, delivery = lane.channel.service(each.push.address), each.delivery
        await self._services.refused(lane.name, service, reason)
        if delivery.attempts >= CERTAIN_ATTEMPTS and await deliveries.service_has_delivered(
            self._database, lane.name, service, delivery.made_at
        ):
            return Settled(delivery.key, "refused", None, f"refused: {reason}, while {service} takes other pushes")
        return retried(delivery, reason, after, lane.channel.min_retry_delay)

    async def _refused(
        self, lane: Lane, each: Answered, reason: str, gone: dict[UUID, datetime], *, doubtful: bool
    ) -> Settled:
        if not doubtful:
            log.error("push refused", lane=lane.name, reason=reason)
            return Settled(each.delivery.key, "refused", None, f"refused: {reason}")
        if await deliveries.lane_has_delivered(self._database, lane.name):
            gone[each.delivery.key.device_id] = each.delivery.looked_at
            return Settled(each.delivery.key, "gone", None, f"the device is gone: {reason}")
        log.error("device set aside: its token or the lane's settings are wrong", lane=lane.name, reason=reason)
        due_at = each.delivery.now + DOUBTFUL_DELAY
        if due_at >= each.delivery.expires_at:
            return Settled(each.delivery.key, "dead", None, f"given up: {reason}")
        return Settled(each.delivery.key, "later", due_at, f"set aside until its lane has delivered: {reason}")

    def _is_retried(self, lane: Lane, each: Answered) -> bool:
        try:
            return self._retry_alternative(lane, each)
        except Exception:
            log.exception("failed to retry push through another endpoint", lane=lane.name)
            return False

    def _retry_alternative(self, lane: Lane, each: Answered) -> bool:
        """Try an alternative address of the device, once; return whether a request was sent."""
        address = None if each.retry_lane or each.refused else lane.channel.alternative(each.push, each.answer)
        if address is None:
            return False
        same = address.environment == each.push.address.environment
        by = lane if same else self._lanes.get(lane.sandbox_twin)
        if by is None or by.stopped:
            return False
        push = replace(each.push, address=address)
        request = by.channel.request(push)
        if isinstance(request, Refused):
            return False
        lane.send(request, each._replace(push=push, retry_lane=by, first=each.answer), by)
        return True

    async def stop_lane(self, lane: Lane, reason: str) -> None:
        """Stop a lane for a while and log it: none of its pushes can be sent."""
        if lane.stopped != reason:
            log.error("lane stopped: the provider refused its settings", lane=lane.name, reason=reason)
        lane.stopped = reason
        lane.pause(PROBE_INTERVAL)
        await deliveries.lane_stops(self._database, lane.name, reason)


def _of_bundle(result: Settled, keys: Sequence[DeliveryKey]) -> list[Settled]:
    """Return the states of deliveries that were one push: if it is retried, those after the first are held for it."""
    others = result._replace(state="held") if result.state == "later" else result
    return [result._replace(key=keys[0]), *(others._replace(key=key) for key in keys[1:])]


def _outcome(lane: Lane, each: Answered) -> tuple[Lane, Outcome]:
    """Return the lane that gave the answer that counts, and what the answer means.

    If the answer to the second try is doubtful, or is about the settings of the other lane, the first answer counts.
    """
    if each.refused:
        return lane, each.refused
    judge = each.retry_lane or lane
    outcome = judge.channel.outcome(each.push, each.answer)
    is_unclear = isinstance(outcome, Stopped) or (isinstance(outcome, Refused) and outcome.doubtful)
    if each.first is None or each.delivery.address is None or not is_unclear:
        return judge, outcome
    return lane, lane.channel.outcome(replace(each.push, address=each.delivery.address), each.first)
