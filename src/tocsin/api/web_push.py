"""Routes of web push (RFC 8030): our key, and the browsers' subscriptions."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tocsin import devices, inbox
from tocsin.api.auth import user_of
from tocsin.api.body import body_of
from tocsin.api.routes import guarded_by
from tocsin.api.state import app_state_of
from tocsin.devices import Device
from tocsin.errors import FieldError, Invalid, NotFound
from tocsin.notifications import to_json
from tocsin.push import probe
from tocsin.push.apps import web_push_key
from tocsin.push.channels.web_push import check_subscription, endpoint_of
from tocsin.push.content import Composer
from tocsin.validation import field_error

SAYS = {
    "url": "must be the https url of an allowed push service",
    "regex": "must be a key of the subscription, in base64url",
}

router = APIRouter(route_class=guarded_by(user_of), tags=["devices"])


@router.get("/notifications/web-push/key")
async def get_key(request: Request) -> Response:
    """The key that a browser's subscription needs, in base64url; 404 where browsers are not pushed to."""
    app_state = app_state_of(request)
    await inbox.owner(app_state.database, user_of(request))
    key = web_push_key(app_state.lanes)
    if key is None:
        raise NotFound("Web push is not configured.")
    return Response(to_json({"key": key}), media_type="application/json")


@router.post("/notifications/web-push", status_code=204)
async def subscribe(request: Request) -> Response:
    """Register a browser's subscription for the caller, as the browser serialises it."""
    user, app_state = user_of(request), app_state_of(request)
    await inbox.owner(app_state.database, user)
    device = _device_of(await body_of(request), app_state.settings.web_push_origins)
    await devices.register(app_state.database, user.id, device)
    return Response(status_code=204)


@router.delete("/notifications/web-push", status_code=204)
async def unsubscribe(request: Request) -> Response:
    """Take a browser's subscription from the caller, if it is theirs."""
    user, database = user_of(request), app_state_of(request).database
    await inbox.owner(database, user)
    await devices.detach(database, user.id, await _endpoint_of(request))
    return Response(status_code=204)


@router.post("/notifications/web-push/test")
async def test(request: Request) -> Response:
    """Push a test to a browser of the caller's, and say what its push service answered."""
    user, app_state = user_of(request), app_state_of(request)
    await inbox.owner(app_state.database, user)
    endpoint = await _endpoint_of(request)
    said = await probe.send(app_state.database, Composer(app_state.catalogue), app_state.lanes, user.id, endpoint)
    return Response(to_json(asdict(said)), media_type="application/json")


async def _endpoint_of(request: Request) -> str:
    field_errors: list[FieldError] = []
    endpoint = _text(await body_of(request), "endpoint", "endpoint", field_errors)
    if field_errors:
        raise Invalid(field_errors)
    return endpoint_of(endpoint)


def _device_of(body: Mapping[str, Any], origins: tuple[str, ...]) -> Device:
    field_errors: list[FieldError] = []
    endpoint = _text(body, "endpoint", "endpoint", field_errors)
    p256dh, auth = _keys_of(body.get("keys"), field_errors)
    if isinstance(ends := body.get("expirationTime"), bool) or not isinstance(ends, int | float | None):
        field_errors.append(
            field_error("expirationTime", "numeric_between", "must be a number of milliseconds since 1970, or null")
        )
    for field, code in check_subscription(endpoint, p256dh, auth, origins):
        if not any(found.field in {field, field.partition(".")[0]} for found in field_errors):
            field_errors.append(field_error(field, code, SAYS[code]))
    if field_errors:
        raise Invalid(field_errors)
    return Device(endpoint_of(endpoint), "Web", "web", "production", "default", p256dh, auth)


def _keys_of(given: Any, field_errors: list[FieldError]) -> tuple[str, str]:
    if isinstance(given, dict):
        return _text(given, "p256dh", "keys.p256dh", field_errors), _text(given, "auth", "keys.auth", field_errors)
    field_errors.append(
        field_error("keys", *(("required", "is required") if given is None else ("object", "must be an object")))
    )
    return "", ""


def _text(body: Mapping[str, Any], name: str, field: str, field_errors: list[FieldError]) -> str:
    given = body.get(name)
    if given is None:
        field_errors.append(field_error(field, "required", "is required"))
    elif not isinstance(given, str):
        field_errors.append(field_error(field, "string", "must be a string"))
    else:
        return given
    return ""
