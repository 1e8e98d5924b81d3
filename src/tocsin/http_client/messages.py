"""What is sent and what comes back."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP/2 POST; one to an address that a stranger named is `guarded`, and goes to no private network."""

    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    guarded: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: status 0 where nothing did, and then why in `error`. Names of headers are in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent_at: datetime
    error: str = ""
