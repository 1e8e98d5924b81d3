"""Routes of the inbox: the API document's own endpoints, with a user's token."""

import hashlib
from json.encoder import encode_basestring
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tocsin import __version__, inbox
from tocsin.api.auth import user_of
from tocsin.api.body import body_of
from tocsin.api.proxies import HOST
from tocsin.api.requests import id_of, message_of, notify_of, number_of, uuid_of, uuids_of
from tocsin.api.routes import guarded_by
from tocsin.api.state import app_state_of
from tocsin.auth.claims import UserCaller
from tocsin.directory import unknown_recipients
from tocsin.errors import FieldError, Invalid
from tocsin.events import Draft
from tocsin.notifications import to_json
from tocsin.settings import Settings
from tocsin.validation import field_error

PAGES = (1, 1_000_000)
PER_PAGE = (1, 100)
DEFAULT_PER_PAGE = 15

MAX_IDS = 1_000
"""How many notifications one request marks by their ids."""

MAX_LINKS = 100
"""How many notifications' links are asked for at once."""

KEPT = "private, no-cache"
"""How clients may keep a page: themselves alone, and asking each time."""

router = APIRouter(route_class=guarded_by(user_of), tags=["notifications"])


async def list_notifications(request: Request) -> Response:
    """Answer a page of the caller's notifications. On the hot path: the framework's models stay outside."""
    user = user_of(request)
    query = request.query_params
    field_errors: list[FieldError] = []
    number = number_of(query, "page", PAGES, 1, field_errors)
    per_page = number_of(query, "per_page", PER_PAGE, DEFAULT_PER_PAGE, field_errors)
    before = number_of(query, "cursor", (inbox.OLDEST, inbox.NEWEST), inbox.NEWEST, field_errors)
    unread = "show" in query
    if unread and query["show"] != "unread":
        field_errors.append(FieldError("show", "in", "The show field must be unread."))
    if field_errors:
        await inbox.owner(app_state_of(request).database, user)
        raise Invalid(field_errors)
    app_state = app_state_of(request)
    database, base = app_state.database, _base_of(request, app_state.settings)
    if (given := request.headers.get("if-none-match")) and (tag := await _unchanged(request, user, base, given)):
        return Response(status_code=304, headers={"Cache-Control": KEPT, "ETag": tag})
    if "cursor" not in query:
        before = await inbox.skip(database, user.id, unread=unread, count=(number - 1) * per_page)
    page = await inbox.page(database, user, unread=unread, before=before, limit=per_page)
    previous = _url(request, base, number - 1) if number > 1 else "null"
    following = _url(request, base, number + 1, page.last) if page.more and number < PAGES[1] else "null"
    return Response(
        f'{{"data":[{page.data}],"pagination":{{"total":{page.total},"page":{number},"per_page":{per_page},'
        f'"urls":{{"previous":{previous},"next":{following}}},"unread":{page.unread}}}}}',
        headers={"Cache-Control": KEPT, "ETag": _tag(request, user.id, base, page.cursor)},
        media_type="application/json",
    )


async def create_custom(request: Request) -> Response:
    """Accept a custom notification from its sender."""
    user = user_of(request)
    app_state = app_state_of(request)
    sender = await inbox.owner(app_state.database, user)
    body = await body_of(request)
    field_errors: list[FieldError] = []
    message = message_of(body, field_errors)
    notify = notify_of(body, field_errors, may_except=False)
    if field_errors:
        if not notify.skips:
            company_id = sender["company_id"]
            unknown = await unknown_recipients(app_state.database, notify.users, notify.teams, company_id)
            field_errors += unknown.field_errors(notify.users, notify.teams, "notify.")
        raise Invalid(field_errors)
    checked = app_state.catalogue.check("custom", {"user": user.id}, {"body": message})
    draft = Draft(
        checked,
        notify.users,
        notify.teams,
        service=None,
        company_id=sender["company_id"],
        excepted=notify.excepted,
        skips=notify.skips,
    )
    await app_state.intake.accept(draft)
    return Response('{"queued":true}', status_code=202, media_type="application/json")


@router.get("/notifications/changes")
async def get_changes(request: Request) -> Response:
    """What came, was read, unread and deleted since a cursor; without one, only the cursor to begin with."""
    user, database = user_of(request), app_state_of(request).database
    since = request.query_params.get("since")
    if since is None:
        cursor = await app_state_of(request).cursors.of(user)
        return Response(to_json({"cursor": cursor}), media_type="application/json")
    found = await inbox.changes(database, user, since)
    if found.resync:
        return Response(to_json({"resync": True, "cursor": found.cursor}), media_type="application/json")
    return Response(
        f'{{"data":[{found.data}],"unread":{found.unread},"cursor":"{found.cursor}","more":{to_json(found.more)}}}',
        media_type="application/json",
    )


@router.get("/notifications/links")
async def get_links(request: Request) -> Response:
    """Where some of the caller's notifications lead; null where a kind leads nowhere."""
    user, app_state = user_of(request), app_state_of(request)
    await inbox.owner(app_state.database, user)
    field_errors: list[FieldError] = []
    given = request.query_params.get("ids")
    ids = uuids_of({"ids": given.split(",") if given else None}, "ids", MAX_LINKS, field_errors)
    if not given:
        field_errors.append(field_error("ids", "required", "is required"))
    if field_errors:
        raise Invalid(field_errors)
    found = await inbox.links(app_state.database, app_state.catalogue, user.id, ids or [])
    return Response(to_json({"data": found}), media_type="application/json")


@router.get("/notifications/{notification_id}")
async def get_notification(request: Request, notification_id: str) -> Response:
    """One of the caller's notifications."""
    user, app_state = user_of(request), app_state_of(request)
    await inbox.owner(app_state.database, user)
    data = await inbox.one(app_state.database, user.id, id_of(notification_id))
    return Response(data, media_type="application/json")


@router.put("/notifications/read", status_code=204)
async def read_all(request: Request) -> Response:
    """Mark as read all that the caller's inbox held when this request began."""
    user, app_state = user_of(request), app_state_of(request)
    await inbox.owner(app_state.database, user)
    body = await body_of(request)
    field_errors: list[FieldError] = []
    up_to, ids = uuid_of(body, "up_to", field_errors), uuids_of(body, "ids", MAX_IDS, field_errors)
    if up_to and ids:
        field_errors.append(field_error("ids", "prohibited", "cannot be combined with up_to"))
    if field_errors:
        raise Invalid(field_errors)
    if ids is None:
        await inbox.read_all(app_state.database, user.id, up_to)
    else:
        await inbox.read_some(app_state.database, user.id, ids)
    app_state.pubsub.publish_changes([user.id])
    return Response(status_code=204)


@router.put("/notifications/{notification_id}/read", status_code=204)
async def read(request: Request, notification_id: str) -> Response:
    """Mark one of the caller's notifications as read; the first time stays."""
    user, app_state = user_of(request), app_state_of(request)
    await inbox.owner(app_state.database, user)
    await inbox.read(app_state.database, user.id, id_of(notification_id))
    app_state.pubsub.publish_changes([user.id])
    return Response(status_code=204)


@router.put("/notifications/{notification_id}/unread", status_code=204)
async def unread(request: Request, notification_id: str) -> Response:
    """Mark one of the caller's notifications as unread."""
    user, app_state = user_of(request), app_state_of(request)
    await inbox.owner(app_state.database, user)
    await inbox.unread(app_state.database, user.id, id_of(notification_id))
    app_state.pubsub.publish_changes([user.id])
    return Response(status_code=204)


@router.delete("/notifications/{notification_id}", status_code=204)
async def delete(request: Request, notification_id: str) -> Response:
    """Delete one of the caller's notifications; any other call on it is 410 from then on."""
    user, app_state = user_of(request), app_state_of(request)
    await inbox.owner(app_state.database, user)
    await inbox.delete(app_state.database, user.id, id_of(notification_id))
    app_state.pubsub.publish_changes([user.id])
    return Response(status_code=204)


async def _unchanged(request: Request, user: UserCaller, base: str, given: str) -> str | None:
    """Return the tag of the caller's inbox as it is, where the caller has just that."""
    tag = _tag(request, user.id, base, await app_state_of(request).cursors.of(user))
    known = {each.strip().removeprefix("W/") for each in given.split(",")}
    return tag if tag in known or "*" in known else None


def _tag(request: Request, user_id: int, base: str, cursor: str) -> str:
    """Return the ETag of a page: whose it is, all that happened to the inbox, what was asked, how urls are written."""
    asked = f"{__version__} {base} ".encode() + request.scope["query_string"]
    return f'"{user_id}-{cursor}-{hashlib.sha256(asked).hexdigest()[:8]}"'


def _url(request: Request, base: str, number: int, cursor: int | None = None) -> str:
    """Return, as JSON, the absolute url of another page with all other parameters of this one."""
    scope = request.scope
    kept = _other_parameters(scope["query_string"]) if scope["query_string"] else ""
    end = "" if cursor is None else f"&cursor={cursor}"
    return encode_basestring(f"{base}{quote(scope['path'])}?{kept}page={number}{end}")


def _other_parameters(query: bytes) -> str:
    """Return all parameters of a query but those of the page, each with an ampersand behind it."""
    given = parse_qsl(str(query, "latin-1"), keep_blank_values=True)
    kept = urlencode([(name, value) for name, value in given if name not in {"page", "cursor"}])
    return f"{kept}&" if kept else ""


def _base_of(request: Request, settings: Settings) -> str:
    """Return where the caller reaches what is under our prefix."""
    return settings.base_url or f"{_scheme_of(request)}://{_host_of(request)}{settings.root_path}"


def _host_of(request: Request) -> str:
    """Return the host as the caller wrote it where that is a host at all, else our own address."""
    host = request.headers.get("host", "")
    if HOST.fullmatch(host):
        return host
    address, port = request.scope["server"]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _scheme_of(request: Request) -> str:
    return "https" if request.scope["scheme"] in {"https", "wss"} else "http"
