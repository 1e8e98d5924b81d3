"""The header `Idempotency-Key`: a door that it is sent to does its work once, in the transaction that keeps the key."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import wraps

from starlette.requests import Request
from starlette.responses import Response

from tocsin import idempotency, inbox
from tocsin.api.doors import LARGEST_BODY, bytes_of, house_of
from tocsin.database import Borrowed
from tocsin.errors import Invalid
from tocsin.events import Intake
from tocsin.faults import fault
from tocsin.idempotency import LONGEST_KEY, Answer, Key
from tocsin.logs import cut_path
from tocsin.tokens import Service, User

HEADER = "idempotency-key"

Handler = Callable[[Request], Awaitable[Response]]


def once(enter: Callable[[Request], User | Service], limit: int = LARGEST_BODY) -> Callable[[Handler], Handler]:
    """Make an endpoint keep what it answers under the caller's key, where one is sent.

    `enter` lets in whom the endpoint does; `limit` is its largest body in bytes.
    """

    def made(handle: Handler) -> Handler:
        @wraps(handle)
        async def handle_once(request: Request) -> Response:
            if HEADER not in request.headers:
                return await handle(request)
            return await do_once(request, enter(request), handle, limit)

        return handle_once

    return made


async def do_once(request: Request, caller: User | Service, handle: Handler, limit: int = LARGEST_BODY) -> Response:
    """Handle a request that carries a key, unless it was handled before; a problem that is raised leaves no trace."""
    house = house_of(request)
    if isinstance(caller, User):
        await inbox.owner(house.database, caller)
    body = await bytes_of(request, limit)
    key = _key_of(request, caller)
    path = request.scope["path"].encode()
    digest = hashlib.sha256(len(path).to_bytes(4, "big") + path + body).digest()
    try:
        async with house.database.transaction() as connection:
            if answer := await idempotency.begin(connection, key, digest):
                return _again(answer)
            borrowed = Borrowed(connection)
            request.state.house = replace(house, database=borrowed, intake=Intake(borrowed, house.doorbell))
            response = await handle(request)
            await idempotency.keep(connection, key, Answer(response.status_code, bytes(response.body).decode()))
    finally:
        request.state.house = house
    for lane in ("direct", "bulk"):
        house.doorbell.ring(lane)
    return response


def _key_of(request: Request, caller: User | Service) -> Key:
    given, *others = request.headers.getlist(HEADER)
    if others:
        raise Invalid([fault("Idempotency-Key", "string", "must be sent once")])
    if not 1 <= len(given) <= LONGEST_KEY:
        raise Invalid([fault("Idempotency-Key", "string_between", f"must have 1 to {LONGEST_KEY} characters")])
    company = f" of company {caller.company_id}" if isinstance(caller, Service) and caller.company_id else ""
    return Key(caller.label + company, request.method, cut_path(request.scope["path"]), given)


def _again(answer: Answer) -> Response:
    return Response(answer.body or None, answer.status, media_type="application/json" if answer.body else None)
