"""Requests to push services and their answers."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP/2 POST. If `guarded`, the url comes from a user, and only public addresses are allowed."""

    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    guarded: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer. Status 0: there is none, and `error` is the reason. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent_at: datetime
    error: str = ""
