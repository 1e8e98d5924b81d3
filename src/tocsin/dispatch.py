"""The dispatcher: takes deliveries from their lanes, decides about each as things are now, and sends what is to go.

A lane is one provider with one app and environment. It claims no more than its sending window has room for, and keeps a
part of the window free for what is not in bulk, so that one push never waits behind a hundred thousand.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol
from uuid import UUID

import structlog

from tocsin import deliveries
from tocsin.channels import Answer, Channel, Delivered, Gone, Later, Outcome, Push, Refused, Request, Stopped
from tocsin.compose import Composer
from tocsin.database import Database
from tocsin.deliveries import Delivery, Key, Settled, next_try
from tocsin.doorbell import Doorbell, wait
from tocsin.errors import Unavailable
from tocsin.ids import new_id
from tocsin.metrics import Metrics
from tocsin.preferences import Held, Muted, Preferences

GATHERING = 0.01
"""Seconds that more answers are waited for before they are written back together."""

PROBE = 60.0
"""Seconds after which a stopped lane tries one push again."""

ASIDE = timedelta(minutes=10)
"""How long a delivery is set aside when it is not certain that its device is at fault."""

MOST_APART = 3
"""How many held deliveries of a device go one by one when its quiet hours end; more are one push."""

NOTED = 30.0
"""Seconds after which it is noted again that a lane delivers."""

LEAST: Mapping[str, float] = {"fcm": 10.0}
"""Seconds that a provider asks to wait before any further try."""

log = structlog.get_logger(__name__)


class Transport(Protocol):
    """What carries requests to a provider."""

    def submit(self, request: Request) -> "asyncio.Future[Answer]":
        """Send a request; the answer comes in any case."""

    async def close(self) -> None:
        """End: whatever has no answer yet gets one."""


@dataclass(slots=True)
class Lane:
    """A lane at work: what is under way, what was answered, and until when it has to wait.

    `name` is that of its devices (`apns/default/sandbox`), `configuration` a digest of its settings.
    """

    name: str
    configuration: str
    channel: Channel
    transport: Transport
    under_way: set[Key] = field(default_factory=set)
    answered: list["_Answered"] = field(default_factory=list)
    progress: asyncio.Event = field(default_factory=asyncio.Event)
    waits_until: datetime | None = None
    stopped: str = ""
    noted: float = -math.inf


@dataclass(frozen=True, slots=True)
class _Answered:
    """A push that was answered.

    `bundle` are the others that it stood for, `elsewhere` is the lane of the second try where the device may be known
    in another way, and `refused` why its channel did not even make a request of it.
    """

    delivery: Delivery
    push: Push
    answer: Answer
    bundle: tuple[Delivery, ...] = ()
    elsewhere: Lane | None = None
    refused: Refused | None = None


Load = Callable[[Sequence[int]], Awaitable[Mapping[int, Preferences]]]
"""Finds what users chose, by their ids."""


class Dispatcher:
    """Sends what is due in all its lanes until it is stopped. `worker` is whose leases it takes."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it stands on
        self,
        database: Database,
        worker: UUID,
        lanes: Sequence[Lane],
        composer: Composer,
        doorbell: Doorbell,
        load: Load,
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._worker = worker
        self._lanes = {lane.name: lane for lane in lanes}
        self._composer = composer
        self._doorbell = doorbell
        self._load = load
        self._metrics = metrics
        self._stopping = asyncio.Event()

    @property
    def lanes(self) -> list[str]:
        """The names of the lanes that lead somewhere."""
        return list(self._lanes)

    async def run(self) -> None:
        """Send until `stop`; what is under way then is waited for, a moment."""
        if not self._lanes:
            await self._stopping.wait()
            return
        self._doorbell.answer("push", "clear")
        await self._enter()
        settling = [asyncio.create_task(self._settle_for_ever(lane)) for lane in self._lanes.values()]
        try:
            await asyncio.gather(*(self._work(lane) for lane in self._lanes.values()), self._clear_for_ever())
        finally:
            for lane in self._lanes.values():
                await lane.transport.close()
            for lane in self._lanes.values():
                with contextlib.suppress(Unavailable):
                    await self._settle(lane)
            for task in settling:
                task.cancel()
            await asyncio.gather(*settling, return_exceptions=True)
            with contextlib.suppress(Unavailable):
                await deliveries.release(self._database, self._worker)

    async def _enter(self) -> None:
        """Make the lanes known: one whose settings changed begins anew."""
        for lane in self._lanes.values():
            with contextlib.suppress(Unavailable):
                await deliveries.enter_lane(self._database, lane.name, lane.configuration)

    async def begin_anew(self) -> None:
        """Take note that lanes have other keys now."""
        await self._enter()
        self._doorbell.ring("push")

    def stop(self) -> None:
        """Take nothing more."""
        self._stopping.set()
        for name in ("push", "clear"):
            self._doorbell.ring(name)

    # What goes out

    async def _work(self, lane: Lane) -> None:
        while not self._stopping.is_set():
            bell = self._doorbell.listen_for("push")
            lane.progress.clear()
            try:
                if not await self._is_ready(lane) or not await self._take(lane):
                    await self._idle(lane, bell)
            except Unavailable:
                await asyncio.sleep(0.5)

    async def _is_ready(self, lane: Lane) -> bool:
        if lane.waits_until and lane.waits_until > datetime.now(UTC):
            return False
        found = await lane.channel.ready()
        if isinstance(found, Stopped):
            await self._stop_lane(lane, found.reason)
        elif isinstance(found, Later):
            lane.waits_until = datetime.now(UTC) + timedelta(seconds=found.after or 5.0)
            log.warning("a lane waits", lane=lane.name, reason=found.reason)
        return found is None

    async def _take(self, lane: Lane) -> bool:
        """Claim as much as there is room for, and send it; tells whether there was anything."""
        window = 1 if lane.stopped else lane.channel.window
        reserve = window // 4
        room = window - len(lane.under_way)
        if room <= reserve and lane.under_way:
            return False
        claimed = await deliveries.claim(self._database, self._worker, lane.name, room, bulk=False)
        if room - len(claimed) > reserve and not lane.stopped:
            more = room - len(claimed) - reserve
            claimed += await deliveries.claim(self._database, self._worker, lane.name, more, bulk=True)
        if claimed:
            await self._send(lane, claimed)
        return bool(claimed)

    async def _idle(self, lane: Lane, bell: asyncio.Event) -> None:
        """Wait for a ring, or for room where something is under way."""
        waiting = [asyncio.create_task(wait(bell))]
        if lane.under_way:
            waiting.append(asyncio.create_task(lane.progress.wait()))  # type: ignore[arg-type]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()

    async def _send(self, lane: Lane, claimed: Sequence[Delivery]) -> None:
        chosen = await self._load(list({delivery.user_id for delivery in claimed}))
        now = datetime.now(UTC)
        settled: list[Settled] = []
        going: list[Delivery] = []
        for delivery in claimed:
            result = self._decide(delivery, chosen.get(delivery.user_id), now)
            if result:
                settled.append(result)
            else:
                going.append(delivery)
        if settled:
            await deliveries.settle(self._database, self._worker, settled)
            for decided in settled:
                self._metrics.push(lane.name, decided.state)
        for together in _bundles(going):
            await self._hand_over(lane, together)

    def _decide(self, delivery: Delivery, chosen: Preferences | None, now: datetime) -> Settled | None:
        """Return what becomes of a delivery that does not go now."""
        if delivery.address is None or chosen is None or delivery.lapsed:
            return Settled(delivery.key, "skipped", None, f"not sent: {delivery.lapsed}")
        if delivery.expires_at <= now:
            return Settled(delivery.key, "dead", None, "not sent: it expired before its turn")
        channel: Literal["push", "web_push"] = "web_push" if delivery.address.type == "Web" else "push"
        match chosen.decide(delivery.kind, channel, now):
            case Muted(reason):
                return Settled(delivery.key, "muted", None, f"not sent: {reason}")
            case Held(until, reason):
                return Settled(delivery.key, "held", until, f"held until {until:%Y-%m-%d %H:%M} UTC: {reason}")
        return None

    async def _hand_over(self, lane: Lane, together: Sequence[Delivery]) -> None:
        first = together[0]
        push = await self._push(first, len(together))
        request = lane.channel.request(push)
        lane.under_way.update(delivery.key for delivery in together)
        if isinstance(request, Refused):
            nothing = Answer(0, {}, b"", datetime.now(UTC))
            self._note(lane, _Answered(first, push, nothing, tuple(together[1:]), refused=request))
            return
        self._submit(
            lane, lane, request, _Answered(first, push, Answer(0, {}, b"", push.expires_at), tuple(together[1:]))
        )

    async def _push(self, delivery: Delivery, count: int) -> Push:
        assert delivery.address is not None  # noqa: S101 - decided before
        shown = self._composer.shown(delivery) if count == 1 else self._composer.bundle(count, delivery.locale)
        closed: tuple[UUID, ...] = ()
        if delivery.address.type == "Web":
            closed = await deliveries.closed(self._database, delivery.user_id, delivery.told_up_to)
        return Push(delivery.key.event_id, delivery.address, delivery.unread, delivery.expires_at, shown, closed)

    def _submit(self, lane: Lane, by: Lane, request: Request, sent: _Answered) -> None:
        answer = by.transport.submit(request)
        answer.add_done_callback(lambda done: self._note(lane, replace(sent, answer=done.result())))

    @staticmethod
    def _note(lane: Lane, answered: _Answered) -> None:
        lane.answered.append(answered)
        lane.progress.set()

    # What comes back

    async def _settle_for_ever(self, lane: Lane) -> None:
        while True:
            if not lane.answered:
                lane.progress.clear()
                await lane.progress.wait()
            await asyncio.sleep(GATHERING)
            try:
                await self._settle(lane)
            except Unavailable:
                await asyncio.sleep(0.5)

    async def _settle(self, lane: Lane) -> None:
        """Write back all that was answered since the last time."""
        answered, lane.answered = lane.answered, []
        settled: list[Settled] = []
        gone: dict[UUID, datetime] = {}
        back: list[Key] = []
        for each in answered:
            by = each.elsewhere or lane
            if self._goes_elsewhere(lane, each):
                continue
            outcome = each.refused or by.channel.outcome(each.push, each.answer)
            keys = [delivery.key for delivery in (each.delivery, *each.bundle)]
            result = await self._result(lane, each, outcome, gone)
            if result is None:
                back += keys
            else:
                settled += [result._replace(key=key) for key in keys]
        try:
            if settled:
                await deliveries.settle(self._database, self._worker, settled)
            if back:
                await deliveries.put_back(self._database, self._worker, back)
            if gone:
                await deliveries.drop(self._database, gone)
        except Unavailable:
            lane.answered = answered + lane.answered
            raise
        lane.under_way.difference_update(done.key for done in settled)
        lane.under_way.difference_update(back)
        lane.progress.set()
        now = datetime.now(UTC)
        made = {each.delivery.key: each.delivery.made_at for each in answered}
        for done in settled:
            took = (now - made[done.key]).total_seconds() if done.key in made else None
            self._metrics.push(lane.name, done.state, took)
        if settled:
            self._doorbell.ring("settled")

    async def _result(
        self, lane: Lane, each: _Answered, outcome: Outcome, gone: dict[UUID, datetime]
    ) -> Settled | None:
        """Return what an outcome makes of a delivery; none: it goes back, as if it had never been claimed."""
        key = each.delivery.key
        match outcome:
            case Delivered():
                await self._has_delivered(lane, each)
                return Settled(key, "delivered", None, "delivered")
            case Gone(reason, at):
                gone[key.device_id] = at or each.answer.sent_at
                return Settled(key, "gone", None, f"the device is gone: {reason}")
            case Later(reason, after, lane_too):
                if lane_too:
                    lane.waits_until = datetime.now(UTC) + timedelta(seconds=after or PROBE)
                    log.warning("a lane waits", lane=lane.name, reason=reason)
                return self._later(lane, each.delivery, reason, after)
            case Refused(reason, doubtful):
                return await self._refused(lane, each, reason, gone, doubtful=doubtful)
            case Stopped(reason):
                await self._stop_lane(lane, reason)
                return None

    async def _has_delivered(self, lane: Lane, each: _Answered) -> None:
        now = time.monotonic()
        if lane.stopped or now - lane.noted > NOTED:
            lane.noted = now
            await deliveries.lane_works(self._database, lane.name)
        lane.stopped, lane.waits_until = "", None
        if each.elsewhere:
            await deliveries.found_as(self._database, each.delivery.key.device_id, each.push.address)
        if each.push.address.type == "Web":
            await deliveries.told(self._database, each.delivery.key.device_id, each.delivery.position)

    def _later(self, lane: Lane, delivery: Delivery, reason: str, after: float | None) -> Settled:
        least = LEAST.get(lane.name.partition("/")[0], 0.0)
        due_at = next_try(delivery.attempts, after, least, delivery.expires_at)
        if due_at is None:
            return Settled(delivery.key, "dead", None, f"given up: {reason}")
        return Settled(delivery.key, "later", due_at, f"again at {due_at:%Y-%m-%d %H:%M:%S} UTC: {reason}")

    async def _refused(
        self, lane: Lane, each: _Answered, reason: str, gone: dict[UUID, datetime], *, doubtful: bool
    ) -> Settled:
        if not doubtful:
            log.error("a push was refused", lane=lane.name, reason=reason)
            return Settled(each.delivery.key, "refused", None, f"refused: {reason}")
        if await deliveries.lane_has_delivered(self._database, lane.name):
            gone[each.delivery.key.device_id] = each.answer.sent_at
            return Settled(each.delivery.key, "gone", None, f"the device is gone: {reason}")
        log.error("a device is set aside: it or our settings are wrong", lane=lane.name, reason=reason)
        due_at = datetime.now(UTC) + ASIDE
        if due_at >= each.delivery.expires_at:
            return Settled(each.delivery.key, "dead", None, f"given up: {reason}")
        return Settled(each.delivery.key, "later", due_at, f"set aside until its lane has delivered: {reason}")

    def _goes_elsewhere(self, lane: Lane, each: _Answered) -> bool:
        """Try a device that may be known in another way once in that way; an answer to the second try stands."""
        address = None if each.elsewhere or each.refused else lane.channel.elsewhere(each.push, each.answer)
        if address is None:
            return False
        same = address.environment == each.push.address.environment
        by = lane if same else self._lanes.get(_twin(lane.name))
        if by is None or by.stopped:
            return False
        push = replace(each.push, address=address)
        request = by.channel.request(push)
        if isinstance(request, Refused):
            return False
        self._submit(lane, by, request, replace(each, push=push, elsewhere=by))
        return True

    async def _stop_lane(self, lane: Lane, reason: str) -> None:
        if lane.stopped != reason:
            log.error("a lane has stopped: its settings are wrong", lane=lane.name, reason=reason)
        lane.stopped = reason
        lane.waits_until = datetime.now(UTC) + timedelta(seconds=PROBE)
        await deliveries.lane_stops(self._database, lane.name, reason)

    # What was read elsewhere

    async def _clear_for_ever(self) -> None:
        while not self._stopping.is_set():
            bell = self._doorbell.listen_for("clear")
            try:
                if not await self._clear():
                    await wait(bell, 0.5)
            except Unavailable:
                await asyncio.sleep(0.5)

    async def _clear(self) -> bool:
        """Tell phones what was read or deleted elsewhere; best effort: once."""
        found = await deliveries.clears(self._database)
        for clear in found:
            lane = self._lanes.get(clear.lane)
            if lane is None or lane.stopped:
                continue
            expires_at = datetime.now(UTC) + timedelta(hours=1)
            push = Push(new_id(), clear.address, clear.unread, expires_at, None, clear.what)
            request = lane.channel.request(push)
            if not isinstance(request, Refused):
                lane.transport.submit(request).add_done_callback(lambda _: None)
        return bool(found)


def _bundles(going: Iterable[Delivery]) -> list[list[Delivery]]:
    """Put what was held for one device together where there is more than a few of it."""
    held: dict[UUID, list[Delivery]] = {}
    apart: list[list[Delivery]] = []
    for delivery in going:
        if delivery.state == "held":
            held.setdefault(delivery.key.device_id, []).append(delivery)
        else:
            apart.append([delivery])
    for together in held.values():
        apart += [together] if len(together) > MOST_APART else [[delivery] for delivery in together]
    return apart


def _twin(name: str) -> str:
    return name.removesuffix("/sandbox") if name.endswith("/sandbox") else f"{name}/sandbox"
