"""The doors of browsers that want to be pushed to (RFC 8030): our key, and their subscriptions."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tocsin import devices, inbox
from tocsin.api.context import body_of, house_of, user_of
from tocsin.api.routes import door
from tocsin.devices import Device
from tocsin.errors import Fault, Invalid, NotFound
from tocsin.notifications import to_json
from tocsin.push import probe
from tocsin.push.apps import web_push_key
from tocsin.push.channels.web_push import check_subscription, endpoint_of
from tocsin.push.content import Composer
from tocsin.validation import fault

SAYS = {
    "url": "must be the https url of a push service that is known here",
    "regex": "must be a key of the subscription, in base64url",
}

router = APIRouter(route_class=door(user_of), tags=["devices"])


@router.get("/notifications/web-push/key")
async def get_key(request: Request) -> Response:
    """The key that a browser's subscription needs, in base64url; 404 where browsers are not pushed to."""
    house = house_of(request)
    await inbox.owner(house.database, user_of(request))
    key = web_push_key(house.lanes)
    if key is None:
        raise NotFound("Web push is not configured.")
    return Response(to_json({"key": key}), media_type="application/json")


@router.post("/notifications/web-push", status_code=204)
async def subscribe(request: Request) -> Response:
    """Register a browser's subscription for the caller, as the browser serialises it."""
    user, house = user_of(request), house_of(request)
    await inbox.owner(house.database, user)
    device = _device_of(await body_of(request), house.settings.web_push_origins)
    await devices.register(house.database, user.id, device)
    return Response(status_code=204)


@router.delete("/notifications/web-push", status_code=204)
async def unsubscribe(request: Request) -> Response:
    """Take a browser's subscription from the caller, if it is theirs."""
    user, database = user_of(request), house_of(request).database
    await inbox.owner(database, user)
    await devices.detach(database, user.id, await _endpoint_of(request))
    return Response(status_code=204)


@router.post("/notifications/web-push/test")
async def test(request: Request) -> Response:
    """Push a test to a browser of the caller's, and say what its push service answered."""
    user, house = user_of(request), house_of(request)
    await inbox.owner(house.database, user)
    endpoint = await _endpoint_of(request)
    said = await probe.send(house.database, Composer(house.catalogue), house.lanes, user.id, endpoint)
    return Response(to_json(asdict(said)), media_type="application/json")


async def _endpoint_of(request: Request) -> str:
    faults: list[Fault] = []
    endpoint = _text(await body_of(request), "endpoint", "endpoint", faults)
    if faults:
        raise Invalid(faults)
    return endpoint_of(endpoint)


def _device_of(body: Mapping[str, Any], origins: tuple[str, ...]) -> Device:
    faults: list[Fault] = []
    endpoint = _text(body, "endpoint", "endpoint", faults)
    p256dh, auth = _keys_of(body.get("keys"), faults)
    if isinstance(ends := body.get("expirationTime"), bool) or not isinstance(ends, int | float | None):
        faults.append(
            fault("expirationTime", "numeric_between", "must be a number of milliseconds since 1970, or null")
        )
    for field, code in check_subscription(endpoint, p256dh, auth, origins):
        if not any(found.field in {field, field.partition(".")[0]} for found in faults):
            faults.append(fault(field, code, SAYS[code]))
    if faults:
        raise Invalid(faults)
    return Device(endpoint_of(endpoint), "Web", "web", "production", "default", p256dh, auth)


def _keys_of(given: Any, faults: list[Fault]) -> tuple[str, str]:
    if isinstance(given, dict):
        return _text(given, "p256dh", "keys.p256dh", faults), _text(given, "auth", "keys.auth", faults)
    faults.append(fault("keys", *(("required", "is required") if given is None else ("object", "must be an object"))))
    return "", ""


def _text(body: Mapping[str, Any], name: str, field: str, faults: list[Fault]) -> str:
    given = body.get(name)
    if given is None:
        faults.append(fault(field, "required", "is required"))
    elif not isinstance(given, str):
        faults.append(fault(field, "string", "must be a string"))
    else:
        return given
    return ""
