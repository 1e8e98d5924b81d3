"""Ids: new UUIDs that sort by time (RFC 9562, version 7), those of requests, and those of callers."""

import re
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

MAX_ID = 2**31 - 1
"""The largest id of a user, team or company."""

_REQUEST_IDS = 256
"""Ids of requests that are made at a time."""

_UUID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_ID = re.compile(r"[0-9]{1,20}")
_lock = threading.Lock()
_last = 0


def new_id() -> UUID:
    """Return an id greater than all that this process made before."""
    global _last  # noqa: PLW0603 - what makes it greater is the one before
    with _lock:
        # 48 bits of milliseconds, 12 of their fraction
        _last = moment = max(time.time_ns() * 4096 // 1_000_000, _last + 1)
    return UUID(int=(moment >> 12) << 80 | 7 << 76 | (moment & 0xFFF) << 64 | 2 << 62 | secrets.randbits(62))


def _random_ids() -> Iterator[str]:
    while True:
        digits = secrets.token_hex(_REQUEST_IDS * 16)  # one call for each id would cost ten times as much
        yield from (digits[at : at + 32] for at in range(0, len(digits), 32))


_request_ids = _random_ids()


def new_request_id() -> str:
    """Return an id for a request. Ids do not count the requests. Only the thread of the loop calls it."""
    return next(_request_ids)


def is_id(value: Any) -> bool:
    """Return whether this is the id of a user, a team or a company."""
    return type(value) is int and 1 <= value <= MAX_ID


def parsed_id(text: str) -> int | None:
    """Return the id of a user, a team or a company in a path or a query; None for anything else."""
    return id_ if _ID.fullmatch(text) and 1 <= (id_ := int(text)) <= MAX_ID else None


def parsed_uuid(given: Any) -> UUID | None:
    """Return the UUID of a text in canonical form, in upper or lower case; None for anything else."""
    text = uuid_text(given)
    return None if text is None else UUID(text)


def uuid_text(given: Any) -> str | None:
    """Return a UUID in canonical form in lower case, without the cost of an object; None like `parsed_uuid`."""
    return given.lower() if isinstance(given, str) and _UUID.fullmatch(given) else None
