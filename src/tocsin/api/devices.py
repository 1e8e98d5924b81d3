"""Routes of devices: phones register themselves, and the host application detaches lost ones."""

from dataclasses import asdict

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tocsin import devices, inbox
from tocsin.api.auth import service_of, user_of
from tocsin.api.body import body_of
from tocsin.api.requests import known_id
from tocsin.api.routes import guarded_by
from tocsin.api.state import app_state_of
from tocsin.auth.claims import ServiceCaller
from tocsin.devices import device_of, token_of
from tocsin.errors import FieldError, Invalid
from tocsin.notifications import to_json, with_times
from tocsin.push import probe
from tocsin.push.content import Composer
from tocsin.validation import field_error


def _writer_of(request: Request) -> ServiceCaller:
    return service_of(request, "directory:write")


router = APIRouter(route_class=guarded_by(user_of), tags=["devices"])
directory = APIRouter(route_class=guarded_by(_writer_of), tags=["directory"])


@router.post("/notifications/devices/{token}", status_code=204)  # noqa: FAST003 - read by both handlers
async def register(request: Request) -> Response:
    """Register a phone for the caller; it leaves whoever had it before."""
    return await _register(request)


@router.post("/notifications/devices", status_code=204)
async def register_by_body(request: Request) -> Response:
    """Register a phone, with the `token` in the body: for those whose proxies log paths."""
    return await _register(request)


@router.delete("/notifications/devices/{token}", status_code=204)
async def detach(request: Request, token: str) -> Response:
    """Detach a phone of the caller's; another's is left alone."""
    user, database = user_of(request), app_state_of(request).database
    await inbox.owner(database, user)
    await devices.detach(database, user.id, token)
    return Response(status_code=204)


@router.get("/notifications/devices")
async def list_devices(request: Request) -> Response:
    """The caller's phones, the last registered first."""
    user, database = user_of(request), app_state_of(request).database
    await inbox.owner(database, user)
    found = [
        with_times(device, "registered_at", "last_delivered_at")
        for device in await devices.devices_of(database, user.id)
    ]
    return Response(to_json({"data": found}), media_type="application/json")


@router.post("/notifications/devices/{token}/test")  # noqa: FAST003 - read from the request
async def test(request: Request) -> Response:
    """Push a test to a phone of the caller's, and say what its push service answered."""
    user, token = user_of(request), request.path_params["token"]
    app_state = app_state_of(request)
    await inbox.owner(app_state.database, user)
    said = await probe.send(app_state.database, Composer(app_state.catalogue), app_state.lanes, user.id, token)
    return Response(to_json(asdict(said)), media_type="application/json")


@directory.delete("/directory/users/{user_id}/devices", status_code=204)
async def detach_all(request: Request, user_id: str) -> Response:
    """Detach all phones of a user."""
    service = _writer_of(request)
    await devices.detach_for(app_state_of(request).database, known_id(user_id), service.company_id)
    return Response(status_code=204)


@directory.delete("/directory/users/{user_id}/devices/{token}", status_code=204)
async def detach_one(request: Request, user_id: str, token: str) -> Response:
    """Detach one phone of a user: a tablet that was left logged in."""
    service = _writer_of(request)
    await devices.detach_for(app_state_of(request).database, known_id(user_id), service.company_id, token)
    return Response(status_code=204)


async def _register(request: Request) -> Response:
    user, database = user_of(request), app_state_of(request).database
    await inbox.owner(database, user)
    body = {**await body_of(request), **request.path_params}
    field_errors: list[FieldError] = []
    device = device_of(body, field_errors)
    replaces = body.get("replaces")
    if replaces is not None and not isinstance(replaces, str):
        field_errors.append(field_error("replaces", "string", "must be a string"))
    if field_errors or device is None:
        raise Invalid(field_errors)
    replaced = token_of(replaces, device.provider) if replaces else None
    await devices.register(database, user.id, device, replaced)
    return Response(status_code=204)
