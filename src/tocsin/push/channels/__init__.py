"""Channels: one module per push provider. No channel uses the database.

    push ──> Channel.request ──> transport.py ──> Answer ──> Channel.outcome ──> Outcome

A channel turns a push into a request, and the provider's answer into an outcome. The caller updates the delivery and
the device.
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
    """A device: the `token` of a phone, or the endpoint and keys of a browser's subscription.

    `server_key` names the VAPID key of the subscription, if it is not the current one.
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
    """What a push shows. `data` is JSON. If `mutable`, the app fetches the text itself."""

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

    `id` is that of the notification, the same in every retry. Without `shown` the push is silent: it sets the badge and
    removes banners. `clear` are the ids of the notifications to remove.
    """

    id: UUID
    address: Address
    badge: int
    expires_at: datetime
    shown: Shown | None
    clear: tuple[UUID, ...] | Literal["all"] = ()


@dataclass(frozen=True, slots=True)
class Delivered:
    """The provider accepted the push."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The device no longer exists, since `at` if the provider reports a time."""

    reason: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """The push can be retried.

    `after` is the number of seconds in `Retry-After`; None: use the delay of the schedule. `lane` is the number of
    seconds for which the whole lane must wait; None: it continues.
    """

    reason: str
    after: float | None = None
    lane: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The push must not be retried. If `doubtful`, the device may be wrong, or its environment."""

    reason: str
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Unauthorised:
    """A push service refused the authentication, in general or for one subscription, which the answer does not show.

    The device is kept, and the lane continues for other services. `after` as in `Later`.
    """

    reason: str
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """No push of this lane can be sent: the settings are wrong."""

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
    """Whether silent pushes are possible. If not, the next visible push also lists the notifications to close."""
    probe_type: DeviceType | None = None
    """The type of the device in a test of the credentials; None: they cannot be tested without a real device."""

    phones: tuple[DeviceType, ...] = ()
    """The types of phones that users register with a token of the provider."""

    async def ready(self) -> Stopped | Later | None:
        """Make sure that the credentials of requests are fresh; return why they are not."""
        return None

    def try_now(self) -> None:  # noqa: B027 - most channels remember no failure
        """Forget a failure to get credentials, so that the next push tries again at once."""

    @classmethod
    def stored_token(cls, text: str) -> str | None:  # noqa: ARG003 - for channels of phones
        """Return the token of a phone in stored form, or None if it is not a token of the provider."""
        return None

    @abstractmethod
    def request(self, push: Push) -> Request | Refused:
        """Return the request of a push, or `Refused` if it is too long even when it is shortened."""

    @abstractmethod
    def outcome(self, push: Push, answer: Answer) -> Outcome:
        """Return what an answer means."""

    def service(self, address: Address) -> str:  # noqa: ARG002 - for channels that reach several services
        """Return the origin of the push service of a device; empty if the lane has only one."""
        return ""

    def alternative(self, push: Push, answer: Answer) -> Address | None:  # noqa: ARG002 - for channels that have one
        """Return another address of the device to try once, if the answer suggests one."""
        return None
