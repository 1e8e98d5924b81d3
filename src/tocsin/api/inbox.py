"""The doors of the inbox: the API document's own endpoints, with a user's token."""

from urllib.parse import parse_qsl, quote, urlencode

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tocsin import events, inbox
from tocsin.api.doors import body_of, door, house_of, id_of, user_of
from tocsin.api.once import once
from tocsin.api.proxies import HOST
from tocsin.api.requests import message_of, notify_of, number_of, refuse_unserved
from tocsin.errors import Fault, Invalid
from tocsin.events import Draft
from tocsin.notifications import to_json

PAGES = (1, 1_000_000)
PER_PAGE = (1, 100)
USUAL_PER_PAGE = 15

router = APIRouter(route_class=door(user_of), tags=["notifications"])


async def list_notifications(request: Request) -> Response:
    """Answer a page of the caller's notifications. On the hot path: the framework's models stay outside."""
    user = user_of(request)
    query = request.query_params
    faults: list[Fault] = []
    number = number_of(query, "page", PAGES, 1, faults)
    per_page = number_of(query, "per_page", PER_PAGE, USUAL_PER_PAGE, faults)
    before = number_of(query, "cursor", (1, inbox.NEWEST), 0, faults)
    unread = "show" in query
    if unread and query["show"] != "unread":
        faults.append(Fault("show", "in", "The show field can only be unread."))
    if faults:
        await inbox.owner(house_of(request).database, user.id)
        raise Invalid(faults)
    database = house_of(request).database
    if not before:
        before = await inbox.skip(database, user.id, unread=unread, count=(number - 1) * per_page)
    page = await inbox.page(database, user.id, unread=unread, before=before, limit=per_page)
    previous = _url(request, number - 1) if number > 1 else "null"
    following = _url(request, number + 1, page.last) if page.more and number < PAGES[1] else "null"
    return Response(
        f'{{"data":[{page.data}],"pagination":{{"total":{page.total},"page":{number},"per_page":{per_page},'
        f'"urls":{{"previous":{previous},"next":{following}}},"unread":{page.unread}}}}}',
        headers={"Cache-Control": "private, no-cache"},
        media_type="application/json",
    )


@once(user_of)
async def create_custom(request: Request) -> Response:
    """Accept a custom notification from its sender."""
    user = user_of(request)
    house = house_of(request)
    sender = await inbox.owner(house.database, user.id)
    body = await body_of(request)
    faults: list[Fault] = []
    message = message_of(body, faults)
    notify = notify_of(body, faults)
    if faults:
        if not notify.skips:
            company_id = sender["company_id"]
            strangers = await events.strangers_among(house.database, notify.users, notify.teams, company_id)
            faults += events.unknown_recipients(strangers, notify.users, notify.teams)
        raise Invalid(faults)
    checked = house.catalogue.check("custom", {"user": user.id}, {"body": message})
    draft = Draft(
        checked,
        notify.users,
        notify.teams,
        service=None,
        company_id=sender["company_id"],
        excepted=notify.excepted,
        skips=notify.skips,
    )
    await house.intake.accept(draft)
    return Response('{"queued":true}', status_code=202, media_type="application/json")


@router.get("/notifications/{notification_id}")
async def get_notification(request: Request, notification_id: str) -> Response:
    """One of the caller's notifications."""
    user, house = user_of(request), house_of(request)
    await inbox.owner(house.database, user.id)
    data = await inbox.one(house.database, user.id, id_of(notification_id))
    return Response(data, media_type="application/json")


@router.put("/notifications/read", status_code=204)
async def read_all(request: Request) -> Response:
    """Mark as read all that the caller's inbox held when this request began."""
    user, house = user_of(request), house_of(request)
    await inbox.owner(house.database, user.id)
    faults: list[Fault] = []
    refuse_unserved(await body_of(request), ("up_to", "ids"), faults)
    if faults:
        raise Invalid(faults)
    await inbox.read_all(house.database, user.id)
    return Response(status_code=204)


@router.put("/notifications/{notification_id}/read", status_code=204)
async def read(request: Request, notification_id: str) -> Response:
    """Mark one of the caller's notifications as read; the first time stays."""
    user, house = user_of(request), house_of(request)
    await inbox.owner(house.database, user.id)
    await inbox.read(house.database, user.id, id_of(notification_id))
    return Response(status_code=204)


def _url(request: Request, number: int, cursor: int | None = None) -> str:
    """Return, as JSON, the absolute url of another page with all other parameters of this one."""
    scope, settings = request.scope, house_of(request).settings
    base = settings.base_url or f"{_scheme_of(request)}://{_host_of(request)}{settings.root_path}"
    kept = [
        (name, value)
        for name, value in parse_qsl(str(scope["query_string"], "latin-1"), keep_blank_values=True)
        if name not in {"page", "cursor"}
    ]
    query = urlencode([*kept, ("page", number), *([("cursor", cursor)] if cursor else [])])
    return to_json(f"{base}{quote(scope['path'])}?{query}")


def _host_of(request: Request) -> str:
    """Return the host as the caller wrote it where that is a host at all, else our own address."""
    host = request.headers.get("host", "")
    if HOST.fullmatch(host):
        return host
    address, port = request.scope["server"]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _scheme_of(request: Request) -> str:
    return "https" if request.scope["scheme"] in {"https", "wss"} else "http"
