"""What every door does before it opens: who is it, may they, and what did they bring."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from starlette.requests import Request

from tocsin.api.arriving import ARRIVING
from tocsin.api.middleware import HANG_UP
from tocsin.auth.tokens import ServiceCaller, UserCaller, Verifier, caller_of
from tocsin.catalogue import Catalogue
from tocsin.db.pool import Database
from tocsin.errors import ContentType, NotFound, TooLarge, Unauthenticated, Unauthorized
from tocsin.events import Intake
from tocsin.inbox import Cursors
from tocsin.metrics import Metrics
from tocsin.preferences import Operator
from tocsin.pubsub import PubSub
from tocsin.push.lanes import Lane
from tocsin.readiness import Readiness
from tocsin.settings import Settings
from tocsin.streams import Streams
from tocsin.strict_json import parse_object

JSON = ("application/json",)
MERGE_PATCH = (*JSON, "application/merge-patch+json")
"""The types of a body that says what to change."""

MAX_INLINE_PARSE_BYTES = 2**18
"""Bytes of the largest body that is parsed between two steps of the event loop; a larger one is parsed beside it."""

MAX_BODY_BYTES = 2**20
"""Bytes of the largest body, where a path does not say otherwise."""


@dataclass(frozen=True, slots=True)
class AppState:
    """What the doors lead to: the collaborators of the whole service."""

    settings: Settings
    database: Database
    catalogue: Catalogue
    operator: Operator
    pubsub: PubSub
    intake: Intake
    verifier: Verifier
    cursors: Cursors
    live: Streams
    metrics: Metrics
    readiness: Readiness
    lanes: Sequence[Lane] = ()


@dataclass(frozen=True, slots=True)
class Watched:
    """What can be looked at in every process, one that only works too."""

    database: Database
    metrics: Metrics
    readiness: Readiness


def watched_of(request: Request) -> AppState | Watched:
    """Return what can be looked at in the process that a request came to."""
    return cast("AppState | Watched", request.app.state.app_state)


def app_state_of(request: Request) -> AppState:
    """Return the collaborators of the service that a request came to."""
    return cast("AppState", request.scope["state"].get("app_state") or request.app.state.app_state)


def user_of(request: Request) -> UserCaller:
    """Return the user who calls; a service opens no inbox."""
    caller = _caller_of(request)
    if not isinstance(caller, UserCaller):
        raise Unauthorized("This endpoint requires a user token.")
    return caller


def service_of(request: Request, *scopes: str) -> ServiceCaller:
    """Return the service that calls, which needs one of these scopes."""
    caller = _caller_of(request)
    if not isinstance(caller, ServiceCaller) or caller.scopes.isdisjoint(scopes):
        raise Unauthorized(f"This needs a service's token with the scope {' or '.join(scopes)}.", scope=scopes[0])
    return caller


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
    with ARRIVING.body(request.scope.get(HANG_UP, _do_nothing)) as grown:
        async for part in parts_of(request, limit):
            parts.append(part)
            grown(size := size + len(part))
    request.state.body = body = b"".join(parts)
    return body


def _do_nothing() -> None:
    """Hang up on nobody: there is no connection."""


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


def id_of(text: str) -> UUID:
    """Return the UUID in a path; anything else names nothing."""
    try:
        id_ = UUID(text)
    except ValueError:
        raise NotFound from None
    if str(id_) != text.lower():
        raise NotFound
    return id_


def _caller_of(request: Request) -> UserCaller | ServiceCaller:
    given = request.headers.getlist("authorization")
    if len(given) > 1:
        raise Unauthenticated("There must be one Authorization header.", presented=True)
    caller = caller_of(app_state_of(request).verifier, given[0].strip() if given else None)
    request.state.caller = caller
    return caller
