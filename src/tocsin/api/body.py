"""The body of a request: read once, bounded, strictly parsed."""

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any

from starlette.requests import Request

from tocsin.api.arriving import ARRIVING
from tocsin.api.middleware import ABORT
from tocsin.errors import ContentType, TooLarge
from tocsin.strict_json import parse_object

JSON = ("application/json",)
MERGE_PATCH = (*JSON, "application/merge-patch+json")
"""The types of a body that says what to change."""

MAX_BODY_BYTES = 2**20
"""Bytes of the largest body, where a path does not say otherwise."""

MAX_INLINE_PARSE_BYTES = MAX_BODY_BYTES
"""Bytes of the largest body that is parsed between two steps of the event loop.

A larger one is parsed by a thread: that costs more in all, since threads take turns, and delays others less.
"""


async def body_of(request: Request, limit: int = MAX_BODY_BYTES, types: Collection[str] = JSON) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes, declared as one of `types`; an empty body is an empty object."""
    body = await bytes_of(request, limit)
    if not body:
        return {}
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in types:
        raise ContentType
    return parse_object(body) if len(body) <= MAX_INLINE_PARSE_BYTES else await asyncio.to_thread(parse_object, body)


async def bytes_of(request: Request, limit: int) -> bytes:
    """Read a body of at most `limit` bytes, once: it is kept with the request."""
    kept: bytes | None = getattr(request.state, "body", None)
    if kept is not None:
        return kept
    parts, size = [], 0
    with ARRIVING.body(request.scope.get(ABORT, _do_nothing)) as grown:
        async for part in parts_of(request, limit):
            parts.append(part)
            grown(size := size + len(part))
    request.state.body = body = b"".join(parts)
    return body


def _do_nothing() -> None:
    """Do nothing: there is no connection to close."""


async def parts_of(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield a body of at most `limit` bytes as it comes in."""
    # The parser has seen to it that these are digits of a number; zeros before them may be more than `int` takes.
    if int(request.headers.get("content-length", "").lstrip("0") or 0) > limit:
        raise TooLarge(limit)
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLarge(limit)
        yield part
