"""Requests to push services and their answers. Each push makes one of each: tuples are made in half the time."""

from datetime import datetime
from typing import NamedTuple


class Request(NamedTuple):
    """An HTTP/2 POST. If `guarded`, the url comes from a user, and only public addresses are allowed."""

    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    guarded: bool = False


class Answer(NamedTuple):
    """An answer. Status 0: there is none, and `error` is the reason. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent_at: datetime
    error: str = ""
