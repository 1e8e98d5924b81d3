"""The header `Idempotency-Key`: a request is processed once, in the transaction that stores its key.

`routes` applies this to all POST routes.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from tocsin import idempotency
from tocsin.api.body import bytes_of
from tocsin.api.state import AppState, app_state_of
from tocsin.auth.claims import ServiceCaller, UserCaller
from tocsin.db.pool import Borrowed
from tocsin.errors import Invalid
from tocsin.events import Intake
from tocsin.idempotency import MAX_KEY_LENGTH, IdempotencyKey, StoredAnswer
from tocsin.logs import cut_path
from tocsin.pubsub import DeferredPubSub
from tocsin.validation import field_error

HEADER = "idempotency-key"

Handle = Callable[[AppState], Awaitable[Response]]
"""Handles a request with this state of the application."""


async def do_once(request: Request, caller: UserCaller | ServiceCaller, limit: int, handle: Handle) -> Response:
    """Handle a request with a key, unless it was handled before. If a problem is raised, nothing is stored.

    The body has at most `limit` bytes. `handle` gets a state whose database is the transaction of the key.
    """
    app_state = app_state_of(request)
    digest = digest_for(request)
    digest.update(await bytes_of(request, limit))
    key = key_of(request, caller)
    pubsub = DeferredPubSub(app_state.pubsub)
    async with app_state.database.transaction() as connection:
        if answer := await idempotency.begin(connection, key, digest.digest()):
            return again(answer)
        database = Borrowed(connection)
        intake = Intake(database, pubsub, app_state.disk, app_state.intake.at_once)
        state = replace(app_state, database=database, pubsub=pubsub, intake=intake)
        response = await handle(state)
        await idempotency.keep(connection, key, StoredAnswer(response.status_code, bytes(response.body).decode()))
    pubsub.flush()
    return response


def key_of(request: Request, caller: UserCaller | ServiceCaller) -> IdempotencyKey:
    """Return the key of a request that has the header. Raises `Invalid`."""
    given, *others = request.headers.getlist(HEADER)
    if others:
        raise Invalid([field_error("Idempotency-Key", "string", "must be sent once")])
    if not 1 <= len(given) <= MAX_KEY_LENGTH:
        raise Invalid([field_error("Idempotency-Key", "string_between", f"must have 1 to {MAX_KEY_LENGTH} characters")])
    company = f" of company {caller.company_id}" if isinstance(caller, ServiceCaller) and caller.company_id else ""
    return IdempotencyKey(caller.label + company, request.method, cut_path(request.scope["path"]), given)


def digest_for(request: Request) -> "hashlib._Hash":
    """Return a hash to update with the body. Its digest identifies a repeated request."""
    path = request.scope["path"].encode()
    return hashlib.sha256(len(path).to_bytes(4, "big") + path)


def again(answer: StoredAnswer) -> Response:
    """Return the stored response."""
    return Response(answer.body or None, answer.status, media_type="application/json" if answer.body else None)
