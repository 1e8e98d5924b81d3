"""The types of all stand-ins: requests, replies, pushes, and the interface of a provider."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Fate = Literal["answered", "hang", "reset", "cut", "goaway"]
"""The outcomes of a request other than an answer: silence, RST_STREAM, a lost connection, or GOAWAY before it."""

MAX_BODY_BYTES = 1 << 20
"""Maximum bytes of a body that are kept; the rest is read and discarded."""

JSON = ("content-type", "application/json; charset=UTF-8")


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    """A request. Names of headers are in lower case; the last of `repeated` ones counts.

    `memory` is the connection's: what it has seen before.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    memory: dict[str, float]
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to a request, sent `after` seconds; `streams` is the new maximum of the connection."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    fate: Fate = "answered"
    after: float = 0.0
    streams: int = 0


Handler = Callable[[IncomingRequest], Reply]


class Rejection(Exception):  # noqa: N818 - it is an answer
    """A push is refused as the real service would: status, reason, and other parts of the answer."""

    def __init__(self, status: int, reason: str, message: str = "", **more: Any) -> None:
        super().__init__(message or reason)
        self.status = status
        self.reason = reason
        self.more = more


@dataclass(frozen=True, slots=True)
class Banner:
    """One notification on a screen: a later one with the same `key` replaces it; `id` is the notification's in the app.

    `push` is the number of the push that it came with, `at` that push's UNIX seconds.
    """

    key: str
    id: str
    title: str
    body: str
    thread: str = ""
    push: int = 0
    at: float = 0


@dataclass(frozen=True, slots=True)
class Change:
    """The change that a push makes to a screen: a banner, cleared banners (ids or keys), and a changed badge."""

    banner: Banner | None = None
    clear: tuple[str, ...] | Literal["all"] = ()
    badge: int | None = None


@dataclass(slots=True)
class ReceivedPush:
    """A received push, refused ones included; `status` is None without an answer, `at` is in UNIX seconds."""

    number: int
    provider: str
    at: float
    headers: dict[str, str]
    token: str = ""
    id: str = ""
    payload: Any = None
    status: int | None = None
    reason: str = ""
    change: Change = field(default_factory=Change)


class Provider(Protocol):
    """One push service."""

    name: str

    def check(self, request: IncomingRequest, push: ReceivedPush) -> None:
        """Put token, id, payload and change into `push`. Raises `Rejection` if the real service would refuse it."""

    def success(self, push: ReceivedPush) -> Reply:
        """Return the reply to an accepted push."""

    def refusal(self, refused: Rejection, push: ReceivedPush) -> Reply:
        """Return the reply to a refused push."""
