"""Routes of devices: users register their phones and browsers."""

from dataclasses import asdict

from starlette.requests import Request

from tocsin import devices
from tocsin.api.answers import Devices, PushOutcome, WebPushKey
from tocsin.api.auth import InboxOwner, User
from tocsin.api.documented import problems
from tocsin.api.limiting import count, counted
from tocsin.api.parameters import Token
from tocsin.api.requests import Endpoint, SubscriptionBody
from tocsin.api.routes import OPTIONAL, Given, router
from tocsin.api.state import AppState, State, refuse_moved
from tocsin.devices import Device
from tocsin.errors import FieldError, Invalid, NotFound
from tocsin.push import probe
from tocsin.push.apps import web_push_key
from tocsin.push.channels.web_push import endpoint_of
from tocsin.push.content import Composer
from tocsin.push.device_formats import DeviceBody, DeviceWithToken
from tocsin.validation import field_error

NO_DEVICE = problems(
    field_error("type", "in", "must be iOS or Android"),
    field_error("app", "regex", "must have 1 to 100 letters, digits, dots, dashes and underscores"),
    field_error("token", "regex", "is not a valid apns token"),
)
NO_ENDPOINT = field_error("endpoint", "required", "is required")

routes = router("devices")


@routes.get("/notifications/web-push/key", responses=problems(NotFound))
async def get_web_push_key(user: User, app_state: State) -> WebPushKey:  # noqa: ARG001 - any active user may ask
    """Get the key for browser subscriptions.

    Returns 404 if web push is not configured.
    """
    key = web_push_key(app_state.lanes)
    if key is None:
        raise NotFound("Web push is not configured.")
    return WebPushKey(key=key)


@routes.post(
    "/notifications/web-push",
    status_code=204,
    responses=problems(
        field_error("endpoint", "url", "must be the https url of an allowed push service"),
        field_error("keys.auth", "regex", "must be a key of the subscription, in base64url"),
    ),
)
async def subscribe_browser(request: Request, user: User, app_state: State, body: SubscriptionBody) -> None:
    """Register a browser.

    Accepts a `PushSubscription` as serialized by the browser.
    """
    endpoint, keys = endpoint_of(body.endpoint), body.keys
    device = Device(endpoint, "Web", "web", "production", "default", keys.p256dh, keys.auth)
    async with counted(request, "devices", user.id):
        await devices.register(app_state.database, user.id, device)


@routes.delete("/notifications/web-push", status_code=204, responses=problems(NO_ENDPOINT))
async def unsubscribe_browser(request: Request, user: User, app_state: State, body: Endpoint) -> None:
    """Detach a browser.

    Also succeeds if the caller has no such subscription.
    """
    await _detach(request, app_state, user, endpoint_of(body.endpoint))


@routes.post("/notifications/web-push/test", responses=problems(NotFound, NO_ENDPOINT))
async def test_subscription(request: Request, user: User, app_state: State, body: Endpoint) -> PushOutcome:
    """Send a test push to a browser.

    Sends one push and returns the response of the push service. At most 5 per minute.
    """
    return await _push_test(request, app_state, user, endpoint_of(body.endpoint))


@routes.get("/notifications/devices")
async def list_devices(user: User, app_state: State) -> Devices:
    """List devices.

    Returns the caller's phones and browsers, the last registered first.
    """
    return Devices.model_validate({"data": await devices.devices_of(app_state.database, user.id)})


@routes.post("/notifications/devices", status_code=204, responses=NO_DEVICE)
async def register_device_by_body(request: Request, user: User, app_state: State, body: DeviceWithToken) -> None:
    """Register a phone, with the token in the body.

    Like `POST /notifications/devices/{token}`, for networks with proxies that log paths.
    """
    await _register(request, app_state, user, body)


@routes.post("/notifications/devices/{token}", status_code=204, responses=NO_DEVICE)
async def register_device(
    request: Request, user: User, app_state: State, token: Token, body: Given[DeviceBody] = OPTIONAL
) -> None:
    """Register a phone.

    A token belongs to one user at a time. If another user registers it, it is moved to that user. A user has at most 50
    devices: one more removes the device that was unused for longest.
    """
    field_errors: list[FieldError] = []
    found = DeviceWithToken.checked({**body.given, "token": token}, field_errors)
    if found is None:
        raise Invalid(field_errors)
    await _register(request, app_state, user, found)


@routes.delete("/notifications/devices/{token}", status_code=204)
async def detach_device(request: Request, user: User, app_state: State, token: Token) -> None:
    """Detach a phone.

    Also succeeds if the caller has no such device.
    """
    await _detach(request, app_state, user, token)


@routes.post("/notifications/devices/{token}/test", responses=problems(NotFound))
async def test_device(request: Request, user: User, app_state: State, token: Token) -> PushOutcome:
    """Send a test push to a phone.

    Sends one push and returns the response of the provider. At most 5 per minute.
    """
    return await _push_test(request, app_state, user, token)


async def _register(request: Request, app_state: AppState, user: InboxOwner, body: DeviceWithToken) -> None:
    async with counted(request, "devices", user.id):
        await devices.register(app_state.database, user.id, body.device(), body.replaced())


async def _detach(request: Request, app_state: AppState, user: InboxOwner, token: str) -> None:
    await devices.detach(app_state.database, user.id, token)
    await refuse_moved(request.scope)


async def _push_test(request: Request, app_state: AppState, user: InboxOwner, token: str) -> PushOutcome:
    device = await probe.device_of(app_state.database, user.id, token)
    await count(request, "test-pushes", user.id)
    said = await probe.send(app_state.database, Composer(app_state.catalogue), app_state.lanes, device)
    return PushOutcome.model_validate(asdict(said))
