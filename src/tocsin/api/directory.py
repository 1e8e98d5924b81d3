"""Routes of the directory: users and teams of the host application."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tocsin import directory
from tocsin.api.auth import service_of
from tocsin.api.requests import known_id, number_of
from tocsin.api.routes import guarded_by
from tocsin.api.state import app_state_of
from tocsin.auth.claims import ServiceCaller
from tocsin.errors import FieldError, Invalid
from tocsin.formats import TeamBody, UserBody
from tocsin.ids import MAX_ID
from tocsin.notifications import to_json

MAX_LIST_LIMIT = 1_000
DEFAULT_LIST_LIMIT = 100


def _writer_of(request: Request) -> ServiceCaller:
    return service_of(request, "directory:write")


router = APIRouter(route_class=guarded_by(_writer_of), tags=["directory"])


@router.put("/directory/users/{user_id}", status_code=204)
async def put_user(request: Request, user_id: str, body: UserBody) -> Response:
    """Make or replace a user."""
    service = _writer_of(request)
    company_id = _company_of(service, body.company_id)
    user = directory.User(id=_new_id(user_id), **{**body.model_dump(), "company_id": company_id})
    app_state = app_state_of(request)
    await directory.put_user(app_state.database, user, service.company_id)
    app_state.pubsub.publish_changes([user.id])
    return Response(status_code=204)


@router.get("/directory/users")
async def list_users(request: Request) -> Response:
    """Users in the order of their ids, a page at a time."""
    after, company_id, limit = _range_of(request)
    users = await directory.list_users(app_state_of(request).database, after, company_id, limit + 1)
    return _listed([asdict(user) for user in users], limit)


@router.delete("/directory/users/{user_id}", status_code=204)
async def erase_user(request: Request, user_id: str) -> Response:
    """Erase a user with inbox, devices and preferences; what others were told stays."""
    service, app_state = _writer_of(request), app_state_of(request)
    id_ = known_id(user_id)
    await directory.erase(app_state.database, app_state.pubsub, id_, service.company_id)
    app_state.pubsub.publish_changes([id_])
    return Response(status_code=204)


@router.get("/directory/users/{user_id}")
async def get_user(request: Request, user_id: str) -> Response:
    """Who a user is."""
    service = _writer_of(request)
    user = await directory.get_user(app_state_of(request).database, known_id(user_id), service.company_id)
    return Response(to_json(asdict(user)), media_type="application/json")


@router.put("/directory/teams/{team_id}", status_code=204)
async def put_team(request: Request, team_id: str, body: TeamBody) -> Response:
    """Make or replace a team and its members, all of whom are of its company."""
    service = _writer_of(request)
    team = directory.Team(_new_id(team_id), _company_of(service, body.company_id), body.name, body.users)
    await directory.put_team(app_state_of(request).database, team, service.company_id)
    return Response(status_code=204)


@router.get("/directory/teams")
async def list_teams(request: Request) -> Response:
    """Teams in the order of their ids, a page at a time, each with how many are in it."""
    after, company_id, limit = _range_of(request)
    return _listed(await directory.list_teams(app_state_of(request).database, after, company_id, limit + 1), limit)


@router.delete("/directory/teams/{team_id}", status_code=204)
async def delete_team(request: Request, team_id: str) -> Response:
    """Remove a team; its members stay."""
    service = _writer_of(request)
    await directory.delete_team(app_state_of(request).database, known_id(team_id), service.company_id)
    return Response(status_code=204)


@router.put("/directory/teams/{team_id}/users/{user_id}", status_code=204)
async def put_member(request: Request, team_id: str, user_id: str) -> Response:
    """Put a user into a team of the same company."""
    service, member = _writer_of(request), _new_id(user_id, "user_id")
    await directory.enter(app_state_of(request).database, known_id(team_id), member, service.company_id)
    return Response(status_code=204)


@router.delete("/directory/teams/{team_id}/users/{user_id}", status_code=204)
async def delete_member(request: Request, team_id: str, user_id: str) -> Response:
    """Take a user out of a team, if they are in it."""
    service, member = _writer_of(request), _new_id(user_id, "user_id")
    await directory.leave(app_state_of(request).database, known_id(team_id), member, service.company_id)
    return Response(status_code=204)


@router.get("/directory/teams/{team_id}")
async def get_team(request: Request, team_id: str) -> Response:
    """What a team is, and who is in it now."""
    service = _writer_of(request)
    team = await directory.get_team(app_state_of(request).database, known_id(team_id), service.company_id)
    return Response(to_json(asdict(team)), media_type="application/json")


def _range_of(request: Request) -> tuple[int, int | None, int]:
    """Return what a list is asked for: after which id, of which company, and how many."""
    service, query = _writer_of(request), request.query_params
    field_errors: list[FieldError] = []
    after = number_of(query, "after", (0, MAX_ID), 0, field_errors)
    company_id = number_of(query, "company_id", (1, MAX_ID), 0, field_errors) or None
    limit = number_of(query, "limit", (1, MAX_LIST_LIMIT), DEFAULT_LIST_LIMIT, field_errors)
    if field_errors:
        raise Invalid(field_errors)
    return after, _company_of(service, company_id) if company_id else service.company_id, limit


def _listed(found: Sequence[Mapping[str, Any]], limit: int) -> Response:
    """Answer up to `limit` of these, and after which id the next begin."""
    following = found[limit - 1]["id"] if len(found) > limit else None
    return Response(to_json({"data": list(found[:limit]), "next": following}), media_type="application/json")


def _new_id(text: str, name: str = "id") -> int:
    field_errors: list[FieldError] = []
    id_ = number_of({name: text}, name, (1, MAX_ID), 0, field_errors)
    if field_errors:
        raise Invalid(field_errors)
    return id_


def _company_of(service: ServiceCaller, given: int | None) -> int:
    """Return the company that a body names; a service bound to one can name no other."""
    if service.company_id is None:
        return given or 1
    if given not in {None, service.company_id}:
        raise Invalid([FieldError("company_id", "unknown", "The company_id field must be the company of the token.")])
    return service.company_id
