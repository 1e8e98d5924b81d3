"""Lanes: one provider with one app and environment, the pushes under way and their answers."""

import asyncio
import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol

import structlog

from tocsin.http_client.messages import Answer, Request
from tocsin.push.channels import Channel, Environment, Push, Refused
from tocsin.push.deliveries import Delivery, DeliveryKey

ANSWER_TIMEOUT = 10.0
"""Seconds to wait for the answers of pushes under way before their connections are closed: no push waits for longer."""

MIN_PROBLEM_WAIT = 60.0
"""A lane that waits for more seconds than these has a problem to report."""

MIN_FAILING = 10.0
"""A lane of which every push has failed for more seconds than these has a problem to report."""

_SANDBOX = "/sandbox"
_NEVER = datetime.min.replace(tzinfo=UTC)

log = structlog.get_logger(__name__)


class PushTransport(Protocol):
    """Sends requests to a provider."""

    def submit(self, request: Request) -> "asyncio.Future[Answer]":
        """Send a request. The future always gets an answer."""

    async def close(self, grace: float = 0.0) -> None:
        """Close the connections after at most `grace` seconds. Requests without an answer get one with status 0."""


@dataclass(slots=True)
class Lane:
    """A lane: the pushes under way, their answers, and until when the lane waits.

    `name` is that in `devices.lane` (`apns/default/sandbox`), `configuration` a digest of its settings since
    `renewed_at`. `lacks` names what is missing now, such as an access token.
    """

    name: str
    configuration: str
    channel: Channel
    transport: PushTransport
    under_way: set[DeliveryKey] = field(default_factory=set)
    answered: "list[Answered]" = field(default_factory=list)
    kept: "list[Answered]" = field(default_factory=list)  # could not be recorded, and is tried again
    arrivals: asyncio.Event = field(default_factory=asyncio.Event)  # there are answers to be recorded
    progress: asyncio.Event = field(default_factory=asyncio.Event)  # fewer pushes are under way
    waits_until: float | None = None  # as all of these, of the monotonic clock: the time of day can be set back
    waits_because: str = ""
    waits_since: float | None = None  # until a push succeeds; until then it tries one at a time
    fails_since: float | None = None  # the first failed push since one succeeded
    fails_until: float = -math.inf  # by then each of them has been tried again
    fails_because: str = ""
    stopped: str = ""
    lacks: str = ""
    renewed_at: datetime = _NEVER
    closing: set[asyncio.Task[None]] = field(default_factory=set)
    noted: float = -math.inf

    @property
    def app(self) -> str:
        """The name of its app."""
        return self.name.split("/")[1]

    @property
    def environment(self) -> Environment:
        """The environment of its devices."""
        return "sandbox" if self.name.endswith(_SANDBOX) else "production"

    @property
    def sandbox_twin(self) -> str:
        """The name of the lane of the same app in the other environment."""
        if self.environment == "sandbox":
            return self.name.removesuffix(_SANDBOX)
        return self.name + _SANDBOX

    def send(self, request: Request, sent: "Answered", by: "Lane | None" = None) -> None:
        """Send a request, through the lane `by` if given; the answer is recorded in this lane."""
        answer = (by or self).transport.submit(request)
        answer.add_done_callback(lambda done: self.note(sent._replace(answer=_answer_of(done))))

    def renew(self, channel: Channel, configuration: str, transport: PushTransport) -> None:
        """Use other keys, over new connections: APNs accepts one key and one token per connection.

        Pushes under way end on the previous connections.
        """
        closing = asyncio.create_task(self.transport.close(ANSWER_TIMEOUT))
        self.closing.add(closing)
        closing.add_done_callback(self.closing.discard)
        self.channel, self.configuration, self.transport = channel, configuration, transport
        self.renewed_at = datetime.now(UTC)
        self.resume()

    def wait(self, seconds: float, reason: str) -> None:
        """Make the lane wait for `seconds`."""
        self.pause(seconds)
        self.waits_because = reason
        self.waits_since = self.waits_since or time.monotonic()
        log.warning("lane waits", lane=self.name, seconds=round(seconds, 1), reason=reason)

    def pause(self, seconds: float) -> None:
        """Send nothing for `seconds`."""
        self.waits_until = time.monotonic() + seconds

    def resume(self) -> None:
        """Send without a limit, because the provider accepts pushes, or other keys are used."""
        self.stopped, self.waits_until, self.waits_since, self.fails_since = "", None, None, None

    def fail(self, retried_in: timedelta, reason: str) -> None:
        """Record that a push failed for a reason that may end by itself."""
        now = time.monotonic()
        self.fails_since = self.fails_since or now
        self.fails_until = max(self.fails_until, now + retried_in.total_seconds() + MIN_FAILING)
        self.fails_because = reason

    @property
    def window(self) -> int:
        """How many pushes may be under way: one while it is not known whether the provider accepts them."""
        return 1 if self.stopped or self.waits_since else self.channel.window

    @property
    def remaining(self) -> float:
        """For how many seconds it still waits; 0 if it does not."""
        return 0.0 if self.waits_until is None else max(0.0, self.waits_until - time.monotonic())

    @property
    def problem(self) -> str:
        """Why the lane delivers nothing for a long time; empty if it does. `stopped` has its own reason."""
        now, clock = datetime.now(UTC), time.monotonic()
        waited = clock - self.waits_since if self.waits_since else 0.0
        failing = clock - self.fails_since if self.fails_since else 0.0
        if self.lacks:
            return self.lacks
        if self.remaining and max(self.remaining, waited) >= MIN_PROBLEM_WAIT:
            until = now + timedelta(seconds=self.remaining)
            return f"it waits until {until:%Y-%m-%d %H:%M} UTC, as the provider asked: {self.waits_because}"
        if failing > MIN_FAILING and clock < self.fails_until:
            since = now - timedelta(seconds=failing)
            return f"pushes of {self.name} fail since {since:%Y-%m-%d %H:%M} UTC: {self.fails_because}"
        return ""

    def try_now(self) -> None:
        """Make a lane that has stopped or has a problem try again at once."""
        if self.stopped or self.problem:
            self.waits_until = None
            self.channel.try_now()

    def note(self, answered: "Answered") -> None:
        """Add an answer to be recorded."""
        self.answered.append(answered)
        self.arrivals.set()

    def set_aside(self, answered: "Answered", seconds: float) -> None:
        """Keep an answer that cannot be recorded now, to be recorded within `seconds`. Its push stays under way."""
        if not self.kept:
            asyncio.get_running_loop().call_later(seconds, self.retry_set_aside)
        self.kept.append(answered)

    def retry_set_aside(self) -> None:
        """Add the answers that were set aside to those to be recorded."""
        self.answered += self.kept
        self.kept = []
        self.arrivals.set()


class Answered(NamedTuple):
    """A push and its answer.

    `bundle` are further deliveries that the push covers. `retry_lane` is the lane of a second try with an alternative
    address, and `first` the answer to the first try. `refused` is set if the channel made no request.
    """

    delivery: Delivery
    push: Push
    answer: Answer
    bundle: tuple[Delivery, ...] = ()
    retry_lane: Lane | None = None
    first: Answer | None = None
    refused: Refused | None = None


def _answer_of(done: "asyncio.Future[Answer]") -> Answer:
    """Return an answer; one with status 0 if sending raised, so that every push gets an answer."""
    failure = None if done.cancelled() else done.exception()
    if failure is None and not done.cancelled():
        return done.result()
    return Answer(0, {}, b"", datetime.now(UTC), f"the request failed: {type(failure).__name__}")


def lane_name(provider: str, app: str, environment: Environment = "production") -> str:
    """Return the name of a lane, as the column `devices.lane` has it."""
    return f"{provider}/{app}{_SANDBOX if environment == 'sandbox' else ''}"
