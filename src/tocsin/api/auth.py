"""Authentication of a request: which user or service calls, and whether it may."""

from starlette.requests import Request

from tocsin.api.state import app_state_of
from tocsin.auth.claims import ServiceCaller, UserCaller
from tocsin.auth.tokens import caller_of
from tocsin.errors import Unauthenticated, Unauthorized


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
        raise Unauthorized(
            f"This endpoint requires a service token with the scope {' or '.join(scopes)}.", scope=scopes[0]
        )
    return caller


def _caller_of(request: Request) -> UserCaller | ServiceCaller:
    given = request.headers.getlist("authorization")
    if len(given) > 1:
        raise Unauthenticated("The request must have exactly one Authorization header.", presented=True)
    caller = caller_of(app_state_of(request).verifier, given[0].strip() if given else None)
    request.state.caller = caller
    return caller
