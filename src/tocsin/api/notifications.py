"""Routes of the inbox, for users."""

import hashlib
from dataclasses import replace
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Annotated, Literal
from urllib.parse import quote, unquote

from fastapi import Header, Query
from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import Response

from tocsin import __version__, inbox, marks, pages
from tocsin.acceptance import Draft
from tocsin.api.answers import ChangesAnswer, Links, Notification, PageAnswer, Queued
from tocsin.api.auth import Acting, AnyUser, Sender, User
from tocsin.api.documented import declared, headers, links, problems
from tocsin.api.limiting import counted
from tocsin.api.parameters import ListedIds, NotificationId, integer
from tocsin.api.repeats import offer
from tocsin.api.requests import Marks, NewCustom, named_in
from tocsin.api.routes import OPTIONAL, Given, router
from tocsin.api.state import AppState, State
from tocsin.api.urls import base_url_of
from tocsin.auth.claims import UserCaller
from tocsin.directory import unknown_recipients
from tocsin.errors import FieldError, Invalid, Missing, NotFound
from tocsin.events import MAX_COUNTED_MEMBERS, count_of_recipients
from tocsin.notifications import to_json
from tocsin.validation import Between, field_error

MAX_PAGE = 1_000_000
MAX_PER_PAGE = 100
DEFAULT_PER_PAGE = 15

KEPT = "private, no-cache"
"""Clients may cache a page, but must revalidate it."""

_OF_QUERIES = "!$%'()*+,-./:;=?@_~"
"""The characters besides letters and digits that stay in a query (RFC 3986)."""

routes = router("notifications")


@routes.get(
    "/notifications",
    response_model=PageAnswer,
    responses=declared(
        problems(
            field_error("per_page", "numeric_between", f"must be between 1 and {MAX_PER_PAGE}"),
            field_error("show", "in", "must be unread"),
        ),
        links(
            200,
            "notification_id",
            "$response.body#/data/0/id",
            "get_notification",
            "mark_read",
            "mark_unread",
            "delete_notification",
        ),
        {status: {"headers": headers("ETag")} for status in (200, 304)},
    ),
)
async def list_notifications(  # noqa: PLR0913, PLR0917 - the parameters of the operation
    request: Request,
    user: AnyUser,
    app_state: State,
    page: Annotated[int, Between(1, MAX_PAGE), BeforeValidator(integer), Query(description="number of the page")] = 1,
    per_page: Annotated[
        int, Between(1, MAX_PER_PAGE), BeforeValidator(integer), Query(description="notifications on a page")
    ] = DEFAULT_PER_PAGE,
    cursor: Annotated[
        Annotated[int, Between(pages.OLDEST, pages.NEWEST), BeforeValidator(integer)] | None,
        Query(description="the cursor in `urls.next`"),
    ] = None,
    show: Annotated[Literal["unread"] | None, Query(description="only unread notifications")] = None,
    if_none_match: Annotated[
        str | None, Header(alias="If-None-Match", description="the `ETag` of a cached page")
    ] = None,
) -> Response:
    """List notifications.

    Returns the caller's notifications, the newest first. Use `urls.next` for the next page: it contains a cursor, so
    that no notification is repeated or skipped while others arrive or are read. `pagination.total` is the number of
    notifications that match the query, `unread` that of all unread notifications in the inbox.
    """
    base = base_url_of(request, app_state.settings)
    head = await app_state.cursors.of(user) if if_none_match else None
    if if_none_match and head and (tag := _unchanged(request, user, base, if_none_match, head)):
        offer(request, user, head)
        return Response(status_code=304, headers={"Cache-Control": KEPT, "ETag": tag})
    is_unread = show is not None
    if cursor is None:
        cursor = await pages.skip(app_state.database, user.id, unread=is_unread, count=(page - 1) * per_page)
    found = await app_state.reads.page(user, unread=is_unread, before=cursor, limit=per_page, head=head)
    previous = _url(request, base, page - 1) if page > 1 else "null"
    following = _url(request, base, page + 1, found.last) if found.more and page < MAX_PAGE else "null"
    return Response(
        f'{{"data":[{found.data}],"pagination":{{"total":{found.total},"page":{page},"per_page":{per_page},'
        f'"urls":{{"previous":{previous},"next":{following}}},"unread":{found.unread}}}}}',
        headers={"Cache-Control": KEPT, "ETag": _tag(request, user.id, base, found.head)},
        media_type="application/json",
    )


@routes.post(
    "/notifications",
    status_code=202,
    responses=problems(
        field_error("message", "string_between", "must have 1 to 512 characters"),
        field_error("notify.users", "required_without", "is required if notify.teams is absent or empty"),
        field_error("notify.teams", "required_without", "is required if notify.users is absent or empty"),
    ),
)
async def create_custom(
    request: Request, body: Given[NewCustom], user: Sender, actor: Acting, app_state: State
) -> Queued:
    """Create a custom notification.

    Sends a message to users and teams of the caller's company. Each recipient is notified once.
    """
    field_errors: list[FieldError] = []
    custom = NewCustom.checked(body.given, field_errors)
    if custom is None:
        users, teams = named_in(body.given)
        unknown = await unknown_recipients(app_state.database, users, teams, user.company_id)
        raise Invalid([*field_errors, *unknown.field_errors(users, teams, "notify.")])
    checked = app_state.catalogue.check("custom", {"user": user.id}, {"body": custom.message})
    to = custom.notify
    draft = Draft(checked, to.users, to.teams, service=None, company_id=user.company_id, actor=actor)
    recipients = await _count_of_recipients(app_state, draft)
    async with counted(request, "custom-recipients", user.id, recipients):
        await app_state.intake.accept(replace(draft, recipients=recipients))
    return Queued(queued=True)


@routes.get("/notifications/changes", response_model=ChangesAnswer)
async def list_changes(
    user: AnyUser,
    app_state: State,
    since: Annotated[str | None, Query(description="a cursor; left out: only the current cursor is returned")] = None,
) -> Response:
    """List changes of the inbox.

    For apps that were offline. With `since`, returns new notifications and those that were read, unread or deleted
    since that cursor, at most 500 changes or 256 KiB of content per response (`more`). Without it, returns only the
    current cursor. If `resync` is true, the changes are no longer stored: load the list.
    """
    if since is None:
        return _json({"cursor": await app_state.cursors.of(user)})
    found = await app_state.reads.changes(user, since)
    if found.resync:
        return _json({"resync": True, "cursor": found.cursor})
    return Response(
        f'{{"data":[{found.data}],"unread":{found.unread},"cursor":"{found.cursor}","more":{to_json(found.more)}}}',
        media_type="application/json",
    )


@routes.get("/notifications/links", responses=problems(field_error("ids.0", "uuid", "must be a UUID")))
async def list_links(user: User, app_state: State, ids: ListedIds) -> Links:
    """List links of notifications.

    Returns null if the kind of a notification has no link. Ids that are not in the caller's inbox are left out.
    """
    return Links(data=await inbox.links(app_state.database, app_state.catalogue, user.id, ids))


@routes.get("/notifications/{notification_id}", response_model=Notification, responses=problems(NotFound, Missing))
async def get_notification(user: AnyUser, app_state: State, notification_id: NotificationId) -> Response:
    """Get a notification."""
    found = await inbox.one(app_state.database, user, notification_id)
    return Response(found, media_type="application/json")


@routes.put(
    "/notifications/read",
    status_code=204,
    responses=problems(
        field_error("up_to", "uuid", "must be a UUID"),
        field_error("ids", "array_between", "must have 1 to 1000 entries"),
    ),
)
async def mark_all_read(user: User, app_state: State, body: Marks = OPTIONAL) -> None:
    """Mark notifications as read.

    Without a body, marks all notifications that the inbox contained when the request began. `up_to` is the newest
    notification to mark, `ids` are single notifications; ids that are not in the inbox are ignored.
    """
    if body.ids is None:
        await marks.read_all(app_state.database, user, body.up_to)
    else:
        await marks.read_some(app_state.database, user, body.ids)
    app_state.pubsub.publish_changes([user.id])


@routes.put("/notifications/{notification_id}/read", status_code=204, responses=problems(NotFound, Missing))
async def mark_read(user: AnyUser, app_state: State, notification_id: NotificationId) -> None:
    """Mark a notification as read.

    If it is already read, `read_at` does not change.
    """
    await app_state.marks.read(user, notification_id)
    app_state.pubsub.publish_changes([user.id])


@routes.put("/notifications/{notification_id}/unread", status_code=204, responses=problems(NotFound, Missing))
async def mark_unread(user: AnyUser, app_state: State, notification_id: NotificationId) -> None:
    """Mark a notification as unread."""
    await app_state.marks.unread(user, notification_id)
    app_state.pubsub.publish_changes([user.id])


@routes.delete("/notifications/{notification_id}", status_code=204, responses=problems(NotFound))
async def delete_notification(user: AnyUser, app_state: State, notification_id: NotificationId) -> None:
    """Delete a notification.

    All other requests for it then return 410.
    """
    await app_state.marks.delete(user, notification_id)
    app_state.pubsub.publish_changes([user.id])


async def _count_of_recipients(app_state: AppState, draft: Draft) -> int:
    """Return the number of recipients, counted up to one more than their limit."""
    limit = app_state.limits.of("custom-recipients")
    most = limit.rate.quota + 1 if limit else MAX_COUNTED_MEMBERS
    return await count_of_recipients(app_state.database, draft, most)


def _unchanged(request: Request, user: UserCaller, base: str, given: str, head: str) -> str | None:
    """Return the current ETag of the page if the client has it, otherwise None."""
    tag = _tag(request, user.id, base, head)
    known = {each.strip().removeprefix("W/") for each in given.split(",")}
    return tag if tag in known or "*" in known else None


def _tag(request: Request, user_id: int, base: str, cursor: str) -> str:
    """Return the ETag of a page. It depends on the user, the state of the inbox, the query and the base url."""
    return f'"{user_id}-{cursor}-{_digest(base, request.scope["query_string"])}"'


@lru_cache(maxsize=100)
def _digest(base: str, query: bytes) -> str:
    """Return a short digest of what a page depends on besides the inbox: most clients ask for the same pages."""
    return hashlib.sha256(f"{__version__} {base} ".encode() + query).hexdigest()[:8]


def _url(request: Request, base: str, number: int, cursor: int | None = None) -> str:
    """Return the absolute url of another page with the other parameters of this one, as JSON."""
    scope = request.scope
    kept = _other_parameters(scope["query_string"]) if scope["query_string"] else ""
    end = "" if cursor is None else f"&cursor={cursor}"
    return encode_basestring(f"{base}{quote(scope['path'])}?{kept}page={number}{end}")


def _other_parameters(query: bytes) -> str:
    """Return the parameters of a query as they are, without those of the page, each followed by an ampersand."""
    kept = [part for part in query.split(b"&") if part and unquote(part.partition(b"=")[0]) not in {"page", "cursor"}]
    return "".join(f"{quote(part, safe=_OF_QUERIES)}&" for part in kept)


def _json(found: object) -> Response:
    return Response(to_json(found), media_type="application/json")
