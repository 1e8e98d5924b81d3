"""Channels: how a push reaches a phone or a browser, one file for each provider, and no database in any of them.

    push ──> Channel.request ──> transport.py ──> Answer ──> Channel.outcome ──> Outcome

A channel makes a request of a push and tells what the provider's answer means. What becomes of the delivery then, and
of the device, is not its business.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from tocsin.http_client.messages import Answer, Request

Preset = Literal["quiet", "normal", "urgent"]
DeviceType = Literal["iOS", "Android", "Web"]
Environment = Literal["production", "sandbox"]


@dataclass(frozen=True, slots=True)
class Address:
    """A device as its provider knows it: a phone's `token`, or the endpoint and keys of a browser's subscription.

    `server_key` names the key of ours that a subscription was found to be made with; nothing: the one we have now.
    """

    token: str
    type: DeviceType
    environment: Environment
    app: str
    registered_at: datetime
    p256dh: str = ""
    auth: str = ""
    server_key: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a push shows; `data` is JSON. Where it is `mutable`, the app fetches the words by itself."""

    type: str
    title: str
    body: str
    data: str
    link: str
    thread: str
    category: str
    android_channel: str
    preset: Preset
    mutable: bool = False


@dataclass(frozen=True, slots=True)
class Push:
    """One push to one device.

    `id` is the notification's, the same on every try. Without `shown` it is silent: it sets the badge and clears
    banners. `clear` are the notifications that the device is to forget.
    """

    id: UUID
    address: Address
    badge: int
    expires_at: datetime
    shown: Shown | None
    clear: tuple[UUID, ...] | Literal["all"] = ()


@dataclass(frozen=True, slots=True)
class Delivered:
    """The provider has it."""


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no such device any more, since `at` where the provider says so."""

    reason: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """Not now.

    `after` are the seconds that the provider asked for (`Retry-After`), None where it asked for nothing: then the
    schedule's step counts. `lane` are the seconds for which the whole lane has to wait, None where it goes on.
    """

    reason: str
    after: float | None = None
    lane: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Never, as it is; `doubtful`: it may be the device that is wrong, or what we know of it."""

    reason: str
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Unauthorised:
    """A push service refuses who we are, or does so for one subscription: its answer does not tell which.

    No device is to blame, so none is dropped, and the lane goes on for the other services. `after` as in `Later`.
    """

    reason: str
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """Nothing of this lane can go: our own settings are wrong."""

    reason: str


Outcome = Delivered | Gone | Later | Refused | Unauthorised | Stopped


class Channel(ABC):
    """One provider, for one app and environment: a lane.

    The class attributes are what the rest of the service needs to know about the provider.
    """

    window: int
    """Pushes that may be under way at once."""
    min_retry_delay: float = 0.0
    """Seconds that the provider asks to wait before any retry of a push."""
    lone_first: bool = False
    """Whether a new connection carries one request alone until that succeeded."""
    preference: Literal["push", "web_push"] = "push"
    """The user's preference that decides whether a kind is pushed."""
    accepts_silent_push: bool = True
    """Whether a push may show nothing. If not, the next push that shows something also says what to close."""
    probe_type: DeviceType | None = None
    """The type of the device in a test of the credentials; None: they cannot be tested without a real device."""

    async def ready(self) -> Stopped | Later | None:
        """Make sure that the credentials of requests are fresh; return why they are not."""
        return None

    def try_now(self) -> None:  # noqa: B027 - most channels remember no failure
        """Forget a failure to get credentials, so that the next push tries again at once."""

    @abstractmethod
    def request(self, push: Push) -> Request | Refused:
        """Return the request of a push, or `Refused` if it is too long even without its body and data."""

    @abstractmethod
    def outcome(self, push: Push, answer: Answer) -> Outcome:
        """Return what an answer means."""

    def service(self, address: Address) -> str:  # noqa: ARG002 - for channels that reach several services
        """Return the origin of the push service of a device; empty if the lane has only one."""
        return ""

    def alternative(self, push: Push, answer: Answer) -> Address | None:  # noqa: ARG002 - for channels that have one
        """Return another address of the device to try once, if the answer suggests one."""
        return None
