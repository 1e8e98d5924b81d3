"""Authentication: dependencies that return the caller of a request and check its authorization."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.requests import Request

from tocsin import inbox
from tocsin.api.state import app_state_of
from tocsin.auth.claims import ServiceCaller, UserCaller
from tocsin.auth.tokens import caller_of
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
        caller = _caller_of(request)
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
    """An active user."""

    async def __call__(self, request: Request) -> InboxOwner:
        """Return the user."""
        caller = await super().__call__(request)
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
        caller = _caller_of(request)
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


def _caller_of(request: Request) -> UserCaller | ServiceCaller:
    given = request.headers.getlist("authorization")
    if len(given) > 1:
        raise Unauthenticated("The request must have exactly one Authorization header.", presented=True)
    caller = caller_of(app_state_of(request).verifier, given[0].strip() if given else None)
    request.state.caller = caller
    return caller


EVENTS_WRITER = Service("events:write")
DIRECTORY_WRITER = Service("directory:write")

AnyUser = Annotated[UserCaller, Depends(UserToken())]
User = Annotated[InboxOwner, Depends(ActiveUser())]
EventsWriter = Annotated[ServiceCaller, Depends(EVENTS_WRITER)]
EventsViewer = Annotated[ServiceCaller, Depends(Service("events:write", "operations"))]
Resolver = Annotated[ServiceCaller, Depends(Service("events:write", "directory:write"))]
DirectoryWriter = Annotated[ServiceCaller, Depends(DIRECTORY_WRITER)]
Operator = Annotated[ServiceCaller, Depends(Service("operations"))]
