"""Authentication: dependencies that return the caller of a request and check its authorization."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.requests import Request

from tocsin import console_sessions, inbox
from tocsin.api.limiting import count, count_caller, count_refused_token
from tocsin.api.state import app_state_of
from tocsin.audit import Actor
from tocsin.auth.claims import OperatorCaller, ServiceCaller, UserCaller
from tocsin.auth.tokens import required_bearer
from tocsin.errors import Unauthenticated, Unauthorized


class Authentication(SecurityBase, ABC):
    """A dependency that returns the caller of a request. `says` names the required token in the API document."""

    scheme_name = "bearer"
    model = HTTPBearer(bearerFormat="JWT")
    says = "a user token"

    @abstractmethod
    async def __call__(self, request: Request) -> Any:
        """Return the caller. Raises `Unauthenticated` and `Unauthorized`."""

    async def confirm(self, request: Request, caller: Any) -> None:
        """Check the authorization of the endpoint before errors of the request are reported."""


class UserToken(Authentication):
    """A user, for hot routes whose own statement checks whether the user is active."""

    async def __call__(self, request: Request) -> UserCaller:
        """Return the user."""
        caller = await _caller_of(request)
        if not isinstance(caller, UserCaller):
            raise Unauthorized("This endpoint requires a user token.")
        return caller

    async def confirm(self, request: Request, caller: UserCaller) -> None:
        """Check that the user is active."""
        await inbox.owner(app_state_of(request).database, caller)


@dataclass(frozen=True, slots=True)
class InboxOwner(UserCaller):
    """An active user as caller."""

    company_id: int = 0
    locale: str = ""


class ActiveUser(UserToken):
    """An active user. `limit` is the name of a further rate limit of their requests."""

    def __init__(self, limit: str | None = None) -> None:
        self.limit = limit

    async def __call__(self, request: Request) -> InboxOwner:
        """Return the user."""
        caller = await super().__call__(request)
        if self.limit:
            await count(request, self.limit, caller.id)
        found = await inbox.owner(app_state_of(request).database, caller)
        return InboxOwner(caller.id, caller.expires, caller.issued, found["company_id"], found["locale"])

    async def confirm(self, request: Request, caller: UserCaller) -> None:
        """Do nothing: the user was already checked."""


class Service(Authentication):
    """A service with at least one of these scopes."""

    def __init__(self, *scopes: str) -> None:
        self.scopes = scopes
        self.says = f"a service token with the scope {' or '.join(f'`{scope}`' for scope in scopes)}"

    async def __call__(self, request: Request) -> ServiceCaller:
        """Return the service."""
        caller = await _caller_of(request)
        if not isinstance(caller, ServiceCaller):
            raise self.refusal()
        self.require(caller)
        return caller

    def require(self, caller: ServiceCaller) -> None:
        """Raise `Unauthorized` if the service has none of the scopes."""
        if caller.scopes.isdisjoint(self.scopes):
            raise self.refusal()

    def refusal(self) -> Unauthorized:
        """Return the error for other callers."""
        scopes = " or ".join(self.scopes)
        return Unauthorized(f"This endpoint requires a service token with the scope {scopes}.", scope=self.scopes[0])


async def _caller_of(request: Request) -> UserCaller | ServiceCaller:
    try:
        app_state, token = app_state_of(request), required_bearer(_authorization_of(request))
        if token.startswith(console_sessions.PREFIX):
            caller: UserCaller | ServiceCaller = await console_sessions.caller_of(app_state.database, token)
        else:
            caller = app_state.verifier.verify(token)
    except Unauthenticated:
        await count_refused_token(request)
        raise
    request.scope["state"]["caller"] = caller
    if (routing := request.scope["app"].routing) is not None:
        await routing.place_caller(request.scope, caller)
    await count_caller(request, caller)
    return caller


def _authorization_of(request: Request) -> str | None:
    given = [value for name, value in request.scope["headers"] if name == b"authorization"]
    if len(given) > 1:
        raise Unauthenticated("The request must have exactly one Authorization header.", presented=True)
    return str(given[0], "latin-1").strip() if given else None


def actor_of(request: Request) -> Actor:
    """Return the authenticated caller for the audit log."""
    caller: UserCaller | ServiceCaller = request.state.caller
    if isinstance(caller, UserCaller):
        return Actor(caller.label, request_id=request.state.request_id, user_id=caller.id)
    name = caller.full_name if isinstance(caller, OperatorCaller) else None
    return Actor(caller.label, caller.company_id, request.state.request_id, name=name)


Acting = Annotated[Actor, Depends(actor_of)]
EVENTS_WRITER = Service("events:write")
DIRECTORY_WRITER = Service("directory:write")
OPERATOR = Service("operations")

_SUPPORT = ("operations:support", "operations")
"""The scopes of those who may look up users and events."""

AnyUser = Annotated[UserCaller, Depends(UserToken())]
User = Annotated[InboxOwner, Depends(ActiveUser())]
Sender = Annotated[InboxOwner, Depends(ActiveUser("custom-calls"))]
EventsWriter = Annotated[ServiceCaller, Depends(EVENTS_WRITER)]
EventsViewer = Annotated[ServiceCaller, Depends(Service("events:write", *_SUPPORT))]
EventsCanceller = Annotated[ServiceCaller, Depends(Service("events:write", "operations"))]
Resolver = Annotated[ServiceCaller, Depends(Service("events:write", "directory:write"))]
DirectoryWriter = Annotated[ServiceCaller, Depends(DIRECTORY_WRITER)]
OperationsViewer = Annotated[ServiceCaller, Depends(Service("operations:read", *_SUPPORT))]
Support = Annotated[ServiceCaller, Depends(Service(*_SUPPORT))]
Operator = Annotated[ServiceCaller, Depends(OPERATOR)]
