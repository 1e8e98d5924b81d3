"""Request bodies: read once, limited in size, and parsed strictly."""

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any, cast

from starlette.requests import ClientDisconnect, Request

from tocsin.api.arriving import ARRIVING, COMPLETE
from tocsin.api.middleware import ABORT, CYCLE
from tocsin.api.slots import complete
from tocsin.errors import ContentType, Malformed, Timeout, TooLarge
from tocsin.strict_json import parse_object

JSON = ("application/json",)
MERGE_PATCH = (*JSON, "application/merge-patch+json")
"""The media types of a merge patch."""

MAX_BODY_BYTES = 2**20
"""Maximum bytes of a body, unless the route has another limit."""

BODY_TIMEOUT = 300.0
"""Seconds within which a body must arrive as a whole, besides those between two parts. Imports may take longer."""

MAX_INLINE_PARSE_BYTES = MAX_BODY_BYTES
"""Maximum bytes of a body that is parsed in the event loop.

Larger bodies are parsed in a thread, which costs more in total but delays other requests less.
"""


async def body_of(request: Request, limit: int = MAX_BODY_BYTES, types: Collection[str] = JSON) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes with one of these types. An empty body is an empty object."""
    body = await bytes_of(request, limit)
    if not body:
        return {}
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in types:
        raise ContentType
    try:
        if len(body) <= MAX_INLINE_PARSE_BYTES:
            return parse_object(body)
        return await asyncio.to_thread(parse_object, body)
    except Malformed:
        refuse_encoded(request)  # only here, because almost no request has the header
        raise


def refuse_encoded(request: Request) -> None:
    """Raise `ContentType` if the body is compressed (RFC 9110, section 15.5.16)."""
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ContentType("The body must be sent without Content-Encoding: compressed bodies are not supported.")


async def bytes_of(request: Request, limit: int) -> bytes:
    """Read a body of at most `limit` bytes, and store it in the state of the request.

    Raises `Unavailable` if too many large bodies are being processed.
    """
    state: dict[str, Any] = request.scope["state"]
    if "body" in state:
        return cast("bytes", state["body"])
    cycle = request.scope.get(CYCLE)
    is_complete = cycle and not cycle[0].more_body
    state["body"] = body = await (_complete_body_of if is_complete else _arriving_body_of)(request, limit)
    COMPLETE.take(state, len(body))
    await complete(state)
    return body


async def _complete_body_of(request: Request, limit: int) -> bytes:
    """Return a body that has already arrived, as most have: without the cost of reading parts."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    body: bytes = message["body"]
    if len(body) > limit:
        raise TooLarge(limit)
    return body


async def _arriving_body_of(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    with ARRIVING.body(request.scope.get(ABORT, _do_nothing)) as grown:
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                async for part in parts_of(request, limit):
                    parts.append(part)
                    grown(size := size + len(part))
        except TimeoutError:
            raise Timeout from None
    return b"".join(parts)


def _do_nothing() -> None:
    """Do nothing: there is no connection to close."""


async def parts_of(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the parts of a body of at most `limit` bytes as they arrive."""
    # The parser ensures that the value has only digits. Leading zeros can exceed the limit of `int`.
    if int(request.headers.get("content-length", "").lstrip("0") or 0) > limit:
        raise TooLarge(limit)
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLarge(limit)
        yield part
