"""The directory: users and teams of the host application. Companies do not see each other's."""

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from tocsin import audit, devices, inbox, jobs
from tocsin.audit import Actor
from tocsin.batches import pieces
from tocsin.db.connections import STATEMENT_TIMEOUT, Connection, fetch_long
from tocsin.db.pool import Database, fetch
from tocsin.db.statements import queries
from tocsin.errors import FieldError, Invalid, NotFound
from tocsin.formats import User
from tocsin.ids import is_id, new_id
from tocsin.jobs import Job
from tocsin.pubsub import PubSub
from tocsin.push import deliveries
from tocsin.validation import among

EVENTS_BATCH_SIZE = 2_000
"""Events per transaction of an erasure."""

MEMBERS_BATCH_SIZE = 5_000
"""Members of a team per statement, so that it ends long before its timeout also while other work uses the machine."""

DELIVERIES_INTERVAL = 0.02
"""Seconds between two looks at the deliveries under way."""

_SQL = queries("directory")


@dataclass(frozen=True, slots=True)
class UnknownRecipients:
    """Ids of users and teams that do not exist or belong to another company."""

    users: frozenset[int]
    teams: frozenset[int]

    def field_errors(self, users: Sequence[Any], teams: Sequence[Any], prefix: str = "") -> list[FieldError]:
        """Return an error for each unknown id in `users` and `teams`."""
        found: list[FieldError] = []
        for name, given, unknown in (("user", users, self.users), ("team", teams, self.teams)):
            for position, id_ in enumerate(given) if unknown else ():
                if type(id_) is int and id_ in unknown:
                    found.append(among(found, f"{prefix}{name}s.{position}", "unknown", f"is not a known {name}"))
        return found


@dataclass(frozen=True, slots=True)
class Team:
    """A team and its members."""

    id: int
    company_id: int
    name: str
    users: list[int]


@dataclass(frozen=True, slots=True)
class PutUsers:
    """Users that were put: their ids, and those of whom the time zone changed.

    `have_left`: some have left their company. For `seconds_without_tokens`, no new token is valid for a new user.
    """

    ids: list[int]
    in_other_zones: list[int]
    have_left: bool
    seconds_without_tokens: float | None


async def put_user(database: Database, user: User, company_id: int | None) -> None:
    """Create or replace a user. With `company_id`, raises `NotFound` for a user of another company.

    If the id was erased within the current second, this waits for the end of it: tokens contain whole seconds, and a
    token of the erased user must not be valid for the new one.
    """
    async with database.transaction() as connection:
        put = await put_users(connection, f"[{user.model_dump_json()}]", company_id)
        if not put.ids:
            raise NotFound
    await after_put(database, put)


async def put_users(connection: Connection, users: str, company_id: int | None) -> PutUsers:
    """Create or replace users, a JSON array; with `company_id`, only those of that company.

    Users who change the company leave the teams of the old one. If a time zone changed, held pushes are decided again.
    If a user is no longer active, their phones clear all notifications. `after_put` must follow the commit.
    """
    put = await connection.fetch(_SQL["put_users"], users, company_id)
    if left := [row["id"] for row in put if row["moved"]]:
        await connection.execute(_SQL["leave_former"], left)
    ids = [row["id"] for row in put]
    heads = await inbox.put_heads(connection, ids, [row["locale"] for row in put], [row["active"] for row in put])
    if moved := [row["id"] for row in put if row["zone_changed"]]:
        await deliveries.release_held(connection, moved)
    if heads["retired"]:
        await devices.clear_phones(connection, heads["retired"])
    return PutUsers(ids, moved, bool(left), heads["wait"])


async def after_put(database: Database, put: PutUsers) -> None:
    """Let what runs since before the commit know the new users: pushes that are held, and deliveries.

    Tokens of a new user that are issued when this returns are valid: it waits for at most a second.
    """
    await deliveries.decide_again(database, put.in_other_zones)
    if put.have_left:
        await _deliveries_end(database)
    if put.seconds_without_tokens:
        await asyncio.sleep(min(put.seconds_without_tokens, 1))


async def _deliveries_end(database: Database) -> None:
    """Wait until the deliveries under way have ended, which know the former companies, and may wait for inboxes.

    A transaction that lasts longer than their statements may is none.
    """
    until = time.monotonic() + 2 * STATEMENT_TIMEOUT
    left = under_way = set(await database.value(_SQL["deliveries_under_way"]))
    while left and time.monotonic() < until:
        await asyncio.sleep(DELIVERIES_INTERVAL)
        left = under_way & set(await database.value(_SQL["deliveries_under_way"]))


async def get_user(database: Database, id_: int, company_id: int | None) -> User:
    """Return a user. Raises `NotFound`."""
    row = await database.row(_SQL["user"], id_, company_id)
    if row is None:
        raise NotFound
    return User.model_construct(**row)


async def put_team(database: Database, team: Team, company_id: int | None) -> None:
    """Create or replace a team and its members; raises `Invalid` for members of another company."""
    async with database.transaction() as connection:
        unknown = await unknown_recipients(connection, team.users, [], team.company_id)
        if unknown.users:
            raise Invalid(unknown.field_errors(team.users, []))
        if not await _put_team(connection, team, company_id):
            raise NotFound


async def put_team_with_known_members(connection: Connection, team: Team, company_id: int | None) -> None:
    """Create or replace a team with those of its members who exist; a team of another company does not change."""
    unknown = await unknown_recipients(connection, team.users, [], team.company_id)
    members = [id_ for id_ in team.users if id_ not in unknown.users]
    await _put_team(connection, replace(team, users=members), company_id)


async def get_team(database: Database, id_: int, company_id: int | None) -> Team:
    """Return a team with its members in the order of their ids. Raises `NotFound`."""
    row = await database.row(_SQL["team"], id_, company_id)
    if row is None:
        raise NotFound
    return Team(**row)


async def list_users(database: Database, after: int, company_id: int | None, limit: int) -> list[User]:
    """Return up to `limit` users with ids above `after`, in the order of their ids."""
    return [User.model_construct(**row) for row in await database.rows(_SQL["users"], after, company_id, limit)]


async def list_teams(database: Database, after: int, company_id: int | None, limit: int) -> list[dict[str, Any]]:
    """Return up to `limit` teams with greater ids than `after`: `id`, `company_id`, `name` and number of members."""
    return [dict(row) for row in await database.rows(_SQL["teams"], after, company_id, limit)]


async def delete_team(database: Database, id_: int, company_id: int | None) -> None:
    """Delete a team, not its members. Raises `NotFound`."""
    async with database.transaction() as connection:
        if await connection.fetchval(_SQL["delete_team"], id_, company_id) is None:
            raise NotFound
        await connection.execute(_SQL["next_generation"])


async def enter(database: Database, team_id: int, user_id: int, company_id: int | None) -> None:
    """Add a user to a team. Raises `NotFound` for the team, `Invalid` for a user of another company."""
    async with database.transaction() as connection:
        company = await _team_company(connection, team_id, company_id)
        if (await unknown_recipients(connection, [user_id], [], company)).users:
            raise Invalid([FieldError("user_id", "unknown", "The user_id field is not a user of the team's company.")])
        await connection.execute(_SQL["enter"], team_id, [user_id])


async def leave(database: Database, team_id: int, user_id: int, company_id: int | None) -> None:
    """Remove a user from a team. Raises `NotFound` for the team."""
    async with database.transaction() as connection:
        await _team_company(connection, team_id, company_id)
        await connection.execute(_SQL["leave_one"], team_id, user_id)


async def erase(database: Database, pubsub: PubSub, id_: int, actor: Actor) -> None:
    """Erase a user with all their data, at once; jobs remove their id from notifications of others.

    Raises `NotFound`, also for a user of another company than the actor's.
    """
    async with database.transaction() as connection:
        company_id = await connection.fetchval(_SQL["hold_user"], id_, actor.company_id)
        if company_id is None:
            raise NotFound
        await audit.record(connection, actor, "user_erased", f"user:{id_}", company_id)
        await inbox.lock(connection, [id_])  # running deliveries end first, and later ones find no head
        await fetch_long(connection, _SQL["erase_deliveries"], id_)
        await devices.clear_phones(connection, [id_])
        await devices.detach_all(connection, id_)
        parts = EVENTS_BATCH_SIZE, f"erasure:{new_id()}"
        failed = [row["id"] for row in await fetch_long(connection, _SQL["failed"], id_)]
        await fetch_long(connection, _SQL["erase"], id_, *parts, failed)
        await connection.execute(_SQL["next_generation"])  # last, since all erasures wait here for each other
    for topic in ("bulk", "clear"):
        pubsub.publish(topic)


async def finish_erasure(database: Database, worker: UUID, job: Job) -> None:
    """Remove an erased user from a part of the events that reached the user or failed, and finish the job of this part.

    Raises `Lost` if the lease of the job is lost.
    """
    async with database.transaction() as connection:
        await jobs.finish(connection, worker, [job.id])
        for user_id, ids in await connection.fetch(_SQL["end_erasure"], job.id):
            for some in pieces(ids, EVENTS_BATCH_SIZE):  # a job of an earlier release has all events
                await connection.execute(_SQL["mask"], user_id, some)
                await connection.execute(_SQL["hold_events"], some)
                await connection.execute(_SQL["forget"], user_id, some)


async def _put_team(connection: Connection, team: Team, company_id: int | None) -> bool:
    if await connection.fetchval(_SQL["put_team"], team.id, team.company_id, team.name, company_id) is None:
        return False
    members = sorted(team.users)  # users are locked in this order, and before members, as by those who change users
    for some in pieces(members, MEMBERS_BATCH_SIZE):
        await connection.execute(_SQL["enter"], team.id, some)
    await connection.execute(_SQL["leave"], team.id, team.users)
    return True


async def _team_company(connection: Connection, team_id: int, company_id: int | None) -> int:
    found: int | None = await connection.fetchval(_SQL["hold_team"], team_id, company_id)
    if found is None:
        raise NotFound
    return found


async def people(
    store: Database | Connection, wanted: Collection[tuple[int | None, int]]
) -> dict[tuple[int | None, int], dict[str, Any]]:
    """Return the user objects of notifications, by the company of the caller and the id of the user."""
    rows = await fetch(store, _SQL["people"], *map(list, zip(*wanted, strict=True)), len(wanted))
    return {
        (company_id, id_): {"id": id_, "first_name": first, "last_name": last, "profile_picture": picture}
        for company_id, id_, first, last, picture in rows
    }


async def unknown_recipients(
    store: Database | Connection, users: Sequence[Any], teams: Sequence[Any], company_id: int | None
) -> UnknownRecipients:
    """Return the unknown ids among these users and teams. Values that are not ids are ignored."""
    ids = [[id_ for id_ in given if is_id(id_)] for given in (users, teams)]
    [row] = await fetch(store, _SQL["unknown"], *ids, company_id)
    return UnknownRecipients(frozenset(row["users"]), frozenset(row["teams"]))


async def known_in(
    store: Database | Connection, keys: Iterable[tuple[str, int]], company_id: int | None = None
) -> set[tuple[str, int]]:
    """Return which of these users and teams there are, in all companies or in one."""
    ids: dict[str, list[int]] = {"users": [], "teams": []}
    for kind, id_ in keys:
        ids[kind].append(id_)
    unknown = await unknown_recipients(store, ids["users"], ids["teams"], company_id)
    gone = {*(("users", id_) for id_ in unknown.users), *(("teams", id_) for id_ in unknown.teams)}
    return {key for key in keys if key not in gone}
