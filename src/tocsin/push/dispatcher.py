"""The dispatcher: claims deliveries, decides about each by the current preferences, and sends pushes.

A lane is one provider with one app and environment. It claims as many deliveries as its window has room for, and keeps
a part of the window free for deliveries outside of bulk events, so that one push never waits for a hundred thousand.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

import structlog

from tocsin.backoff import Backoff
from tocsin.db.admission import KIND
from tocsin.db.pool import Database
from tocsin.errors import Unavailable
from tocsin.http_client.messages import Answer
from tocsin.isolation import LAST_LOCK_TIMEOUT, lock_timeout
from tocsin.metrics import Metrics
from tocsin.preferences import Held, Muted, Preferences
from tocsin.pubsub import PubSub, wait
from tocsin.push import deliveries
from tocsin.push.channels import Later, Push, Refused, Stopped
from tocsin.push.clears import ClearSender
from tocsin.push.content import Composer
from tocsin.push.deliveries import Delivery, DeliveryKey, Settled, retried
from tocsin.push.lanes import ANSWER_TIMEOUT, Answered, Lane
from tocsin.push.results import ResultWriter

MAX_SEPARATE_PUSHES = 3
"""Maximum held deliveries of a device that are sent separately after quiet hours; more are bundled in one push."""

RELEASE_BATCH_SIZE = 1_000
"""Held deliveries that one statement releases after the preference policy changed."""

RELEASE_INTERVAL = 0.05
"""Seconds between two such statements, so that most of the database's time is left to other work."""

SWEEP_INTERVAL = 15.0
"""Seconds between two searches of a lane for deliveries that this worker leased and does not send."""

log = structlog.get_logger(__name__)


Load = Callable[[Sequence[int]], Awaitable[Mapping[int, Preferences]]]
"""Loads preferences by user id."""


class Dispatcher:
    """Sends the due deliveries of its lanes until it is stopped.

    `worker` is the id that holds the leases, `rules` a digest of the preference policy.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - its collaborators
        self,
        database: Database,
        worker: UUID,
        lanes: Sequence[Lane],
        composer: Composer,
        pubsub: PubSub,
        load: Load,
        metrics: Metrics,
        rules: str,
    ) -> None:
        self._database = database
        self._worker = worker
        self._lanes = {lane.name: lane for lane in lanes}
        self._composer = composer
        self._pubsub = pubsub
        self._load = load
        self._metrics = metrics
        self._rules = rules
        self._results = ResultWriter(database, worker, self._lanes, pubsub, metrics)
        self._stopping = asyncio.Event()
        self._backoffs: dict[str, Backoff] = {}
        self._clears = ClearSender(database, self._lanes, pubsub, self._stopping, self._backoff("clears"))

    @property
    def backoffs(self) -> list[Backoff]:
        """The back-offs of all work here."""
        return [*self._backoffs.values(), *self._results.backoffs.values()]

    @property
    def lanes(self) -> list[str]:
        """The names of the lanes."""
        return list(self._lanes)

    async def run(self) -> None:
        """Send until `stop`, then wait for the answers of pushes under way, and record them."""
        if not self._lanes:
            await self._stopping.wait()
            return
        self._pubsub.handle_locally("push", "clear")
        await self._enter()
        settling = [asyncio.create_task(self._results.run(lane)) for lane in self._lanes.values()]
        try:
            following = self._backoff("held pushes").until_done(self._follow_rules)
            await asyncio.gather(*(self._work(lane) for lane in self._lanes.values()), self._clears.run(), following)
        finally:
            self._pubsub.handle_remotely("push", "clear")
            await asyncio.gather(*(lane.transport.close(ANSWER_TIMEOUT) for lane in self._lanes.values()))
            with lock_timeout(LAST_LOCK_TIMEOUT):
                await self._leave(settling)

    async def _leave(self, settling: Sequence[asyncio.Task[None]]) -> None:
        """Record the last answers, and release all leases. Another worker repeats pushes without a recorded result."""
        await asyncio.gather(*(self._results.finish(lane) for lane in self._lanes.values()))
        for task in settling:
            task.cancel()
        await asyncio.gather(*settling, return_exceptions=True)
        with contextlib.suppress(Exception):
            await deliveries.release(self._database, self._worker)

    async def _enter(self) -> None:
        """Register the lanes in the database. A lane whose settings changed is reset."""
        for lane in self._lanes.values():
            entering = self._backoff(f"push lane {lane.name}")
            await entering.until_done(
                lambda lane=lane: deliveries.enter_lane(self._database, lane.name, lane.configuration)  # type: ignore[misc]
            )

    async def _follow_rules(self) -> None:
        """Release all held deliveries if the preference policy changed since they were held."""
        before = await deliveries.rules(self._database)
        if before == self._rules:
            return
        if before is not None:
            log.info("preference policy changed; held pushes are evaluated again")
        last = DeliveryKey(UUID(int=0), UUID(int=0))
        while following := await deliveries.release_all_held(self._database, last, RELEASE_BATCH_SIZE):
            last = following
            self._pubsub.publish("push")
            await asyncio.sleep(RELEASE_INTERVAL)
            if self._stopping.is_set():
                return
        await deliveries.put_rules(self._database, self._rules)

    async def keys_reloaded(self) -> None:
        """Register the lanes again and send at once, after their keys were reloaded."""
        await self._enter()
        self._results.keys_reloaded()
        self._pubsub.publish("push")

    def stop(self) -> None:
        """Claim no more deliveries."""
        self._stopping.set()
        for name in ("push", "clear"):
            self._pubsub.publish(name)

    # Sending

    async def _work(self, lane: Lane) -> None:
        KIND.set(f"push lane {lane.name}")
        backoff, swept_at = self._backoff(f"push lane {lane.name}"), time.monotonic()

        async def release() -> None:
            await self._release(lane)

        while not self._stopping.is_set():
            wakeup = self._pubsub.listen_for("push")
            lane.progress.clear()
            try:
                if time.monotonic() - swept_at > SWEEP_INTERVAL:
                    swept_at = time.monotonic()
                    await release()
                if not await self._is_ready(lane) or not await self._take(lane):
                    await self._idle(lane, wakeup)
                backoff.succeeded(lane.problem)
            except Exception as error:  # noqa: BLE001 - no error may end a lane
                await backoff.recover(error, release)

    async def _release(self, lane: Lane) -> None:
        """Release the deliveries of a lane that this worker leased and does not send. Nothing is being claimed now."""
        if released := await deliveries.release_others(self._database, self._worker, lane.name, lane.under_way):
            log.warning("released pushes that were claimed and not sent", lane=lane.name, count=released)

    def _backoff(self, name: str) -> Backoff:
        return self._backoffs.setdefault(name, Backoff(name, self._stopping, self._metrics.failure))

    async def _is_ready(self, lane: Lane) -> bool:
        if lane.remaining:
            return False
        found = await lane.channel.ready()
        lane.lacks = found.reason if isinstance(found, Later) else ""
        if isinstance(found, Stopped):
            await self._results.stop_lane(lane, found.reason)
        elif isinstance(found, Later):
            lane.wait(found.lane or 5.0, found.reason)
        return found is None

    async def _take(self, lane: Lane) -> bool:
        """Claim as many deliveries as the window has room for, and send them; return whether there were any."""
        reserve = lane.window // 4
        room = lane.window - len(lane.under_way)
        if room <= 0:
            return False
        claimed = await deliveries.claim(self._database, self._worker, lane.name, room, bulk=False)
        if room - len(claimed) > reserve:
            more = room - len(claimed) - reserve
            claimed += await deliveries.claim(self._database, self._worker, lane.name, more, bulk=True)
        if claimed:
            await self._send(lane, claimed)
        return bool(claimed)

    async def _idle(self, lane: Lane, wakeup: asyncio.Event) -> None:
        """Wait for a message, or until fewer pushes are under way."""
        waiting: list[asyncio.Task[object]] = [
            asyncio.create_task(wait(wakeup)),
            asyncio.create_task(lane.progress.wait()),
        ]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()

    async def _send(self, lane: Lane, claimed: Sequence[Delivery]) -> None:
        chosen = await self._load(list({delivery.user_id for delivery in claimed}))
        now = claimed[0].now
        settled: list[Settled] = []
        going: list[Delivery] = []
        for delivery in claimed:
            result = self._decided(lane, delivery, chosen.get(delivery.user_id), now)
            if result:
                settled.append(result)
            else:
                going.append(delivery)
        if settled:
            await self._settle(lane, settled)
            await self._look_again(claimed, settled, chosen)
        together, back = _in_turn(going)
        if back:
            await deliveries.put_back(self._database, self._worker, back)
        failed: list[Settled] = []
        for each in together:
            try:
                await self._hand_over(lane, each)
            except Unavailable:
                raise
            except Exception as error:  # noqa: BLE001 - one push that cannot be made must not stop the others
                failed += [_failed(delivery, error) for delivery in each]
        if failed:
            await self._settle(lane, failed)

    async def _settle(self, lane: Lane, settled: Sequence[Settled]) -> None:
        await deliveries.settle(self._database, self._worker, settled)
        for decided in settled:
            self._metrics.push(lane.name, decided.state)

    def _decided(self, lane: Lane, delivery: Delivery, chosen: Preferences | None, now: datetime) -> Settled | None:
        try:
            return self._decide(lane, delivery, chosen, now)
        except Exception as error:  # noqa: BLE001 - one delivery must not stop the others
            return _failed(delivery, error)

    async def _look_again(
        self, claimed: Sequence[Delivery], settled: Sequence[Settled], chosen: Mapping[int, Preferences]
    ) -> None:
        """Release held deliveries if the user's preferences changed during the decision, so that no change is lost."""
        held = {decided.key for decided in settled if decided.state == "held"}
        users = list({delivery.user_id for delivery in claimed if delivery.key in held})
        if not users:
            return
        now_chosen = await self._load(users)
        changed = [user for user in users if now_chosen.get(user) != chosen.get(user)]
        await deliveries.decide_again(self._database, changed)

    def _decide(self, lane: Lane, delivery: Delivery, chosen: Preferences | None, now: datetime) -> Settled | None:
        """Return the new state of a delivery that is not sent now; None if it is sent."""
        if delivery.address is None or chosen is None or delivery.lapsed:
            return Settled(delivery.key, "skipped", None, f"not sent: {delivery.lapsed}")
        if delivery.expires_at <= now:
            return Settled(delivery.key, "dead", None, "not sent: it expired before its turn")
        match chosen.decide(delivery.kind, lane.channel.preference, now):
            case Muted(reason):
                return Settled(delivery.key, "muted", None, f"not sent: {reason}")
            case Held(until, reason):
                return Settled(delivery.key, "held", until, f"held until {until:%Y-%m-%d %H:%M} UTC: {reason}")
        return None

    async def _hand_over(self, lane: Lane, together: Sequence[Delivery]) -> None:
        first = together[0]
        push = await self._push(lane, first, len(together))
        request = lane.channel.request(push)
        keys = {delivery.key for delivery in together}
        lane.under_way |= keys
        try:
            if isinstance(request, Refused):
                nothing = Answer(0, {}, b"", datetime.now(UTC))
                lane.note(Answered(first, push, nothing, tuple(together[1:]), refused=request))
            else:
                lane.send(request, Answered(first, push, Answer(0, {}, b"", push.expires_at), tuple(together[1:])))
        except Exception:
            lane.under_way -= keys
            raise

    async def _push(self, lane: Lane, delivery: Delivery, count: int) -> Push:
        assert delivery.address is not None  # noqa: S101 - `_decide` skips deliveries without one
        shown = self._composer.shown(delivery) if count == 1 else self._composer.bundle(count, delivery.locale)
        closed: tuple[UUID, ...] = ()
        if not lane.channel.accepts_silent_push:
            closed = await deliveries.closed(self._database, delivery.user_id, delivery.told_up_to)
        return Push(delivery.key.event_id, delivery.address, delivery.unread, delivery.expires_at, shown, closed)


def _failed(delivery: Delivery, error: Exception) -> Settled:
    """Return the state of a push that could not be made because of an internal error: it is retried."""
    reason = f"the push could not be built: {type(error).__name__}"
    log.error("failed to build push", event_id=str(delivery.key.event_id), exc_info=error)
    return retried(delivery, reason)


def _in_turn(going: Sequence[Delivery]) -> tuple[list[list[Delivery]], list[DeliveryKey]]:
    """Return what to send now, in groups of one push each, and what to put back.

    A device gets held deliveries in the order of the inbox. Up to `MAX_SEPARATE_PUSHES` are sent one after the other:
    the first now, and the others are put back. More are bundled, also with a push to the device that is retried: it may
    be the first of a bundle.
    """
    holding = {delivery.key.device_id for delivery in going if delivery.state == "held"}
    held: dict[UUID, list[Delivery]] = {}
    now: list[list[Delivery]] = []
    back: list[DeliveryKey] = []
    for delivery in going:
        if delivery.state == "held" or (delivery.state == "later" and delivery.key.device_id in holding):
            held.setdefault(delivery.key.device_id, []).append(delivery)
        else:
            now.append([delivery])
    for of_device in held.values():
        of_device.sort(key=lambda delivery: delivery.place)
        if len(of_device) <= MAX_SEPARATE_PUSHES:
            back += [delivery.key for delivery in of_device[1:]]
            del of_device[1:]
        now.append(of_device)
    return now, back
