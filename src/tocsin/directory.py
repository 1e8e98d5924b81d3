"""The directory: users and teams, as the host application says. Companies are kept apart here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tocsin.database import Connection, Database, fetch, queries
from tocsin.errors import Fault, Invalid, NotFound

LARGEST_ID = 2**31 - 1
"""The largest id of a user or team."""

_SQL = queries("directory")


@dataclass(frozen=True, slots=True)
class User:
    """A user of the host application. Ids are 1..2^31-1; `locale` is a BCP 47 tag, `time_zone` an IANA name."""

    id: int
    company_id: int
    first_name: str
    last_name: str
    profile_picture: str | None
    email: str | None
    locale: str
    time_zone: str
    active: bool


@dataclass(frozen=True, slots=True)
class Team:
    """A team and who is in it now."""

    id: int
    company_id: int
    name: str
    users: list[int]


async def put_user(database: Database, user: User, company_id: int | None) -> None:
    """Make or replace a user; a caller bound to `company_id` gets `NotFound` for one of another company."""
    async with database.transaction() as connection:
        if await connection.fetchval(_SQL["put_user"], *asdict(user).values(), company_id) is None:
            raise NotFound


async def get_user(database: Database, id_: int, company_id: int | None) -> User:
    """Return a user, or raise `NotFound`."""
    row = await database.row(_SQL["user"], id_, company_id)
    if row is None:
        raise NotFound
    return User(**row)


async def put_team(database: Database, team: Team, company_id: int | None) -> None:
    """Make or replace a team and its members; raises `Invalid` for members who are not of its company."""
    async with database.transaction() as connection:
        strangers = {row["id"] for row in await connection.fetch(_SQL["strangers"], team.users, team.company_id)}
        if strangers:
            raise Invalid(unknown("users", team.users, strangers))
        if await connection.fetchval(_SQL["put_team"], team.id, team.company_id, team.name, company_id) is None:
            raise NotFound
        await connection.execute(_SQL["leave"], team.id, team.users)
        await connection.execute(_SQL["enter"], team.id, team.users)


async def get_team(database: Database, id_: int, company_id: int | None) -> Team:
    """Return a team with its members in the order of their ids, or raise `NotFound`."""
    row = await database.row(_SQL["team"], id_, company_id)
    if row is None:
        raise NotFound
    return Team(**row)


async def people(
    store: Database | Connection, ids: Iterable[int], company_id: int | None
) -> dict[int, Mapping[str, Any]]:
    """Return the user objects of notifications, by id, of those there are."""
    rows = await fetch(store, _SQL["people"], list(ids), company_id)
    return {row["id"]: dict(row) for row in rows}


def unknown(field: str, given: Sequence[Any], strangers: set[int]) -> list[Fault]:
    """Return a fault for each position of `field` whose id names nothing that the caller may address."""
    return [
        Fault(f"{field}.{position}", "unknown", f"The {field}.{position} field names nothing that is known.")
        for position, id_ in enumerate(given)
        if type(id_) is int and id_ in strangers
    ]
