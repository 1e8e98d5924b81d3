"""Routes of the directory: users and teams of the host application."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Path
from starlette.requests import Request

from tocsin import devices, directory
from tocsin.api.answers import TeamAnswer, Teams, Users
from tocsin.api.auth import Acting, DirectoryWriter
from tocsin.api.documented import declared, links, problems
from tocsin.api.parameters import (
    DEFAULT_LIST_LIMIT,
    MAX_LIST_LIMIT,
    After,
    CompanyId,
    Limit,
    NewId,
    NewTeamId,
    NewUserId,
    TeamId,
    Token,
    UserId,
)
from tocsin.api.routes import Given, router
from tocsin.api.state import AppState, State, in_other_cells, refuse_moved
from tocsin.auth.claims import ServiceCaller
from tocsin.errors import FieldError, Invalid, NotFound
from tocsin.formats import DEFAULT_COMPANY, TeamBody, TeamLine, User, UserBody, UserLine, company_of, errors_of_company
from tocsin.ids import MAX_ID, is_id
from tocsin.validation import field_error

BETWEEN = f"must be between 1 and {MAX_ID}"
LIMITS = field_error("limit", "numeric_between", f"must be between 1 and {MAX_LIST_LIMIT}")

routes = router("directory")


@routes.get(
    "/directory/users",
    responses=declared(problems(LIMITS), links(200, "user_id", "$response.body#/data/0/id", "get_user", "erase_user")),
)
async def list_users(
    service: DirectoryWriter,
    app_state: State,
    after: After = 0,
    company_id: CompanyId = None,
    limit: Limit = DEFAULT_LIST_LIMIT,
) -> Users:
    """List users.

    Returns users in ascending order of ids. For the next page, set `after` to the last id.
    """
    company_id = _listed_company(service, company_id)
    found = await directory.list_users(app_state.database, after, company_id, limit + 1)
    return Users.model_construct(data=found[:limit], next=found[limit - 1].id if len(found) > limit else None)


@routes.get("/directory/users/{user_id}", responses=problems(NotFound))
async def get_user(service: DirectoryWriter, app_state: State, user_id: UserId) -> User:
    """Get a user."""
    return await directory.get_user(app_state.database, user_id, service.company_id)


@routes.put(
    "/directory/users/{user_id}",
    status_code=204,
    responses=declared(
        problems(
            NotFound,
            field_error("id", "numeric_between", BETWEEN),
            field_error("first_name", "required", "is required"),
            field_error("active", "boolean", "must be true or false"),
        ),
        links(204, "user_id", "$request.path.user_id", "get_user"),
    ),
)
async def put_user(
    request: Request,
    service: DirectoryWriter,
    app_state: State,
    user_id: NewUserId,
    body: Given[UserBody],
) -> None:
    """Create or replace a user.

    Missing fields have their default values. An inactive user receives no notifications, and their tokens are rejected.
    """
    field_errors: list[FieldError] = []
    user = UserLine.checked({**body.given, "id": user_id}, field_errors)
    field_errors += errors_of_company(body.given, service.company_id)
    if user is None or field_errors:
        raise Invalid(field_errors)
    await _refuse_of_other_cells(request, service, app_state, ("users", user.id))
    given = user.model_dump() | {"company_id": company_of(user.company_id, service.company_id)}
    await directory.put_user(app_state.database, User.model_construct(**given), service.company_id)
    app_state.pubsub.publish_changes([user.id])


@routes.delete("/directory/users/{user_id}", status_code=204, responses=problems(NotFound))
async def erase_user(service: DirectoryWriter, actor: Acting, app_state: State, user_id: UserId) -> None:  # noqa: ARG001 - any may ask
    """Erase a user.

    Permanently removes the user with their inbox, devices and preferences. Notifications of other users stay, also
    those in which this user is the acting one, with the name.
    """
    await directory.erase(app_state.database, app_state.pubsub, user_id, actor)
    app_state.pubsub.publish_changes([user_id])


@routes.delete("/directory/users/{user_id}/devices", status_code=204, responses=problems(NotFound))
async def detach_devices_of_user(request: Request, service: DirectoryWriter, app_state: State, user_id: UserId) -> None:
    """Detach all devices of a user."""
    await devices.detach_for(app_state.database, user_id, service.company_id)
    await refuse_moved(request.scope)


@routes.delete("/directory/users/{user_id}/devices/{token}", status_code=204, responses=problems(NotFound))
async def detach_device_of_user(
    request: Request, service: DirectoryWriter, app_state: State, user_id: UserId, token: Token
) -> None:
    """Detach a device of a user.

    For example, if the user left a tablet logged in.
    """
    await devices.detach_for(app_state.database, user_id, service.company_id, token)
    await refuse_moved(request.scope)


@routes.get(
    "/directory/teams",
    responses=declared(problems(LIMITS), links(200, "team_id", "$response.body#/data/0/id", "get_team", "delete_team")),
)
async def list_teams(
    service: DirectoryWriter,
    app_state: State,
    after: After = 0,
    company_id: CompanyId = None,
    limit: Limit = DEFAULT_LIST_LIMIT,
) -> Teams:
    """List teams.

    Returns teams in ascending order of ids, with the number of members. For the next page, set `after` to the last id.
    """
    company_id = _listed_company(service, company_id)
    found = await directory.list_teams(app_state.database, after, company_id, limit + 1)
    following = found[limit - 1]["id"] if len(found) > limit else None
    return Teams.model_validate({"data": found[:limit], "next": following})


@routes.get("/directory/teams/{team_id}", responses=problems(NotFound))
async def get_team(service: DirectoryWriter, app_state: State, team_id: TeamId) -> TeamAnswer:
    """Get a team and its members."""
    return TeamAnswer.model_validate(await directory.get_team(app_state.database, team_id, service.company_id))


@routes.put(
    "/directory/teams/{team_id}",
    status_code=204,
    responses=declared(
        problems(
            NotFound,
            field_error("id", "numeric_between", BETWEEN),
            field_error("users.1", "unknown", "is not a known user"),
        ),
        links(204, "team_id", "$request.path.team_id", "get_team"),
    ),
)
async def put_team(
    request: Request,
    service: DirectoryWriter,
    app_state: State,
    team_id: NewTeamId,
    body: Given[TeamBody],
) -> None:
    """Create or replace a team.

    Also replaces the members. All of them must belong to the company of the team.
    """
    field_errors: list[FieldError] = []
    team = TeamLine.checked({**body.given, "id": team_id}, field_errors)
    field_errors += errors_of_company(body.given, service.company_id)
    if team is None or field_errors:
        raise Invalid([*field_errors, *await _unknown_members(app_state, service, body.given)])
    await _refuse_of_other_cells(request, service, app_state, ("teams", team.id))
    of_company = directory.Team(team.id, company_of(team.company_id, service.company_id), team.name, team.users)
    await directory.put_team(app_state.database, of_company, service.company_id)


@routes.delete("/directory/teams/{team_id}", status_code=204, responses=problems(NotFound))
async def delete_team(service: DirectoryWriter, app_state: State, team_id: TeamId) -> None:
    """Delete a team.

    Users who are members are not deleted. Events that are not delivered yet do not reach a new team with the same id.
    """
    await directory.delete_team(app_state.database, team_id, service.company_id)


@routes.put(
    "/directory/teams/{team_id}/users/{user_id}",
    status_code=204,
    responses=problems(NotFound, field_error("user_id", "unknown", "is not a user of the team's company")),
)
async def put_member(
    service: DirectoryWriter,
    app_state: State,
    team_id: TeamId,
    user_id: Annotated[NewId, Path(description="id of a user")],
) -> None:
    """Add a user to a team.

    The user must belong to the company of the team.
    """
    await directory.enter(app_state.database, team_id, user_id, service.company_id)


@routes.delete(
    "/directory/teams/{team_id}/users/{user_id}",
    status_code=204,
    responses=problems(NotFound, field_error("user_id", "numeric_between", BETWEEN)),
)
async def delete_member(
    service: DirectoryWriter,
    app_state: State,
    team_id: TeamId,
    user_id: Annotated[NewId, Path(description="id of a user")],
) -> None:
    """Remove a user from a team.

    Also succeeds if the user is not a member.
    """
    await directory.leave(app_state.database, team_id, user_id, service.company_id)


async def _refuse_of_other_cells(
    request: Request, service: ServiceCaller, app_state: AppState, key: tuple[str, int]
) -> None:
    """Raise `NotFound` if a service of a company puts a user or a team that another cell has.

    What a service of all companies puts was looked up when its cell was found.
    """
    if service.company_id is not None and await in_other_cells(request.scope, app_state, [key]):
        raise NotFound


async def _unknown_members(app_state: AppState, service: ServiceCaller, given: Mapping[str, Any]) -> list[FieldError]:
    """Return the errors of unknown members in a body that has other errors."""
    users, company_id = given.get("users"), service.company_id or given.get("company_id")
    company_id = DEFAULT_COMPANY if company_id is None else company_id
    if not isinstance(users, list) or not is_id(company_id):
        return []
    return (await directory.unknown_recipients(app_state.database, users, [], company_id)).field_errors(users, [])


def _listed_company(service: ServiceCaller, given: int | None) -> int | None:
    """Return the company that is listed, or None for all. A service of a company cannot list another one."""
    if field_errors := errors_of_company({"company_id": given}, service.company_id):
        raise Invalid(field_errors)
    return given or service.company_id
