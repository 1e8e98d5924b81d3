"""Routes of the console for people who sign in at an OpenID provider.

A cookie holds the session. It opens only the routes here: the page exchanges it for a short-lived token, which it keeps
in memory and sends to all other routes. So a page of another site cannot make a browser act with the cookie.
"""

from typing import Any, Literal

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from tocsin import console_sessions
from tocsin.api.limiting import address_of, count
from tocsin.api.state import AppState, app_state_of
from tocsin.api.urls import base_url_of, origin_of
from tocsin.auth.claims import ROLES
from tocsin.auth.oidc import Attempt, Identity, SignInError, SignInProvider
from tocsin.console_sessions import SESSION_LIFETIME, SessionToken
from tocsin.errors import NotFound, Overrun, Unauthorized, Unavailable
from tocsin.setting_types import is_safe_url

ATTEMPT_LIFETIME = 600
"""Seconds that a person has to sign in at the provider."""

ATTEMPT, SESSION = "tocsin-sign-in", "tocsin-console"
"""The names of the cookies, after the prefix."""

HOST_PREFIX = "__Host-"
"""The prefix of cookies that browsers accept over https only, and only from this host."""

log = structlog.get_logger(__name__)


async def sign_in(request: Request) -> Response:
    """Send the browser to the provider, with a new attempt that is bound to it by a cookie."""
    _, provider = _provided(request)
    attempt = Attempt.new()
    try:
        console = _console_url(request)
        url = await provider.authorization_url(attempt, f"{console}/signed-in")
    except SignInError as error:
        return _failed(request, error)
    response = RedirectResponse(url, 303)
    # Lax: the provider sends the browser back from its own site.
    _set_cookie(request, response, ATTEMPT, attempt.secret, ATTEMPT_LIFETIME, "lax")
    return response


async def signed_in(request: Request) -> Response:
    """Begin a session for the person whom the provider has authenticated, and show the console.

    The session always gets a new cookie, and one that the browser had before ends.
    """
    _, provider = _provided(request)
    await count(request, "failed-auth", address_of(request.scope))
    try:
        console = _console_url(request)
        attempt = Attempt.of_cookie(_cookie(request, ATTEMPT))
        person = await provider.person(attempt, request.query_params, f"{console}/signed-in")
        cookie = await _begun(request, person)
    except SignInError as error:
        failed = _failed(request, error)
        if error.reason != "state":  # which another tab may still complete
            _set_cookie(request, failed, ATTEMPT, "", 0, "lax")
        return failed
    response = RedirectResponse(console, 303)
    _set_cookie(request, response, SESSION, cookie, SESSION_LIFETIME, "strict")
    _set_cookie(request, response, ATTEMPT, "", 0, "lax")
    return response


async def session(request: Request) -> Response:
    """Return the current token of the session, or that there is none, and the names of several cells.

    By itself, a browser sends no PUT to another site.
    """
    app_state = app_state_of(request)
    routing = request.scope["app"].routing
    cells = {"cells": list(routing.names)} if routing and routing.names else {}
    if app_state.provider is None:
        return JSONResponse({"available": False, "session": None, **cells})
    _require_own_page(request)
    found = await console_sessions.renew(app_state.database, _cookie(request, SESSION))
    return JSONResponse({"available": True, "session": found and _shown(found), **cells})


async def sign_out(request: Request) -> Response:
    """End the session."""
    app_state, _ = _provided(request)
    _require_own_page(request)
    await console_sessions.finish(app_state.database, _cookie(request, SESSION), request.state.request_id)
    response = Response(status_code=204)
    _set_cookie(request, response, SESSION, "", 0, "strict")
    return response


async def _begun(request: Request, person: Identity) -> str:
    """End the session that the browser had, begin one, and return its cookie. Raises `SignInError`."""
    database, request_id = app_state_of(request).database, request.state.request_id
    try:
        await console_sessions.finish(database, _cookie(request, SESSION), request_id)
        return await console_sessions.begin(database, person, request_id)
    except (Unavailable, Overrun) as error:
        raise SignInError("unavailable", f"the session could not be stored: {error}") from None


def _provided(request: Request) -> tuple[AppState, SignInProvider]:
    app_state = app_state_of(request)
    if app_state.provider is None:
        raise NotFound
    return app_state, app_state.provider


def _shown(found: SessionToken) -> dict[str, Any]:
    caller = found.caller
    [role] = [role for role, scope in ROLES.items() if scope in caller.scopes]
    return {
        "token": found.token,
        "seconds": found.seconds,
        "name": caller.full_name or caller.name,
        "role": role,
        "company_id": caller.company_id,
        "ends_at": caller.expires,
    }


def _console_url(request: Request) -> str:
    """Return the url of the console. It does not depend on parameters of the request. Raises `SignInError`."""
    url = _own_url(request)
    if not is_safe_url(url):
        raise SignInError("insecure", f"the console must be opened over https, not at {url}")
    return url


def _own_url(request: Request) -> str:
    settings = app_state_of(request).settings
    if settings.console_url:
        return settings.console_url
    base = base_url_of(request, settings) if settings.operations_port is None else origin_of(request)
    return f"{base}/console"


def _require_own_page(request: Request) -> None:
    """Refuse requests of other pages: a cookie alone does not show that the console made the request."""
    scheme, _, rest = _own_url(request).partition("://")
    own = f"{scheme}://{rest.partition('/')[0]}"
    site = request.headers.get("sec-fetch-site", "same-origin")
    if request.headers.get("origin") != own or site != "same-origin":
        raise Unauthorized(f"Only the console at {own} may send this request; see TOCSIN_CONSOLE_URL.")


def _failed(request: Request, error: SignInError) -> Response:
    """Show the console with the reason, which is one of a few words."""
    log.warning("console sign-in failed", reason=str(error))
    return RedirectResponse(f"{_own_url(request)}#sign-in-failed/{error.reason}", 303)


def _cookie(request: Request, name: str) -> str:
    return request.cookies.get(_name(request, name), "")


def _name(request: Request, name: str) -> str:
    return f"{HOST_PREFIX}{name}" if _is_secure(request) else name


def _is_secure(request: Request) -> bool:
    return _own_url(request).startswith("https://")


def _set_cookie(  # noqa: PLR0913, PLR0917 - what a cookie has
    request: Request, response: Response, name: str, value: str, seconds: int, same_site: Literal["lax", "strict"]
) -> None:
    response.set_cookie(
        _name(request, name),
        value,
        max_age=seconds,
        secure=_is_secure(request),
        httponly=True,
        samesite=same_site,
    )
