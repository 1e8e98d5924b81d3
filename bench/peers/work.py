"""The work that all do: the same inboxes, the same team, and the same requests."""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from bench import fill

SIZE = 1_000
"""Notifications of an inbox, all of them unread."""

PAGE = 15
TEAM = 1
OWNERS = range(fill.FIRST, fill.FIRST + 100)
MEMBERS = range(OWNERS.stop, OWNERS.stop + 10_000)
"""The users of the team. They have no notification at first."""

TITLE, BODY = "New note", "Ann wrote a note about the case 4711."


def entries() -> Iterator[tuple[int, int]]:
    """Yield the number of each entry and its owner, again and again: the oldest of each inbox first."""
    return itertools.cycle(itertools.product(range(1, SIZE + 1), OWNERS))


def request(method: str, path: str, user: int, given: Mapping[str, Any] | None = None) -> bytes:
    """Return the bytes of a request to a site that a header names the caller to."""
    body = b"" if given is None else json.dumps(given).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-User: {user}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
