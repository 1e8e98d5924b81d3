"""What every stand-in takes and gives: a request, the reply to it, and what a provider is to the book of pushes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Fate = Literal["answered", "hang", "reset", "cut", "goaway"]
"""What becomes of a request: beside an answer, silence, RST_STREAM, a lost connection, or GOAWAY before it."""

MAX_BODY_BYTES = 1 << 20
"""Bytes of a body that are kept; what is beyond is taken and forgotten."""

JSON = ("content-type", "application/json; charset=UTF-8")


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    """A request as it came; names of headers are in small letters, of one that is `repeated` the last counts.

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
    """What a request is answered, `after` so many seconds; `streams`: how many the connection may have from now on."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    fate: Fate = "answered"
    after: float = 0.0
    streams: int = 0


Handler = Callable[[IncomingRequest], Reply]


class Rejection(Exception):  # noqa: N818 - it is an answer
    """A push is refused as the real service would: its status and reason, and what else the answer says."""

    def __init__(self, status: int, reason: str, message: str = "", **more: Any) -> None:
        super().__init__(message or reason)
        self.status = status
        self.reason = reason
        self.more = more


@dataclass(frozen=True, slots=True)
class Banner:
    """One notification on a screen: `key` is what the next one replaces it by, `id` the notification's in the app.

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
    """What a push does to a screen: a banner, banners that go (by id or key), and the badge; none: it stays."""

    banner: Banner | None = None
    clear: tuple[str, ...] | Literal["all"] = ()
    badge: int | None = None


@dataclass(slots=True)
class ReceivedPush:
    """A push that came, refused ones included; `status` is none where it was not answered, `at` UNIX seconds."""

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
    """One push service, as the book sees it."""

    name: str

    def check(self, request: IncomingRequest, push: ReceivedPush) -> None:
        """Put token, id, payload and change into `push`. Raises `Rejection` where the real service would refuse it."""

    def success(self, push: ReceivedPush) -> Reply:
        """Return what a push that was taken is answered."""

    def refusal(self, refused: Rejection, push: ReceivedPush) -> Reply:
        """Return what one is answered that was not."""
