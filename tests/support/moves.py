"""Moves of a company between two cells: what it has, points at which a test can act, and checks of the result."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from tests.support.events import custom, in_future, message_event, note, state
from tests.support.service import Api
from tocsin import invariants, moving
from tocsin.db.connections import Connection, connect
from tocsin.db.pool import Database
from tocsin.db.statements import queries

COMPANY, OTHER = 1, 2
USERS, OTHERS = range(1, 13), range(101, 105)

in_schemas = pytest.mark.parametrize("urls", ["schemas"], indirect=True)
"""Marks tests of what does not depend on whether there are two servers."""


@contextlib.asynccontextmanager
async def opened(urls: tuple[str, str]) -> AsyncIterator[tuple[Database, Database]]:
    """The databases as a command opens them."""
    first, second = (Database(url, moving.CONNECTIONS, 60) for url in urls)
    async with contextlib.AsyncExitStack() as stack:
        for each in (first, second):
            await each.open()
            stack.push_async_callback(each.close)
        yield first, second


async def empty(url: str) -> None:
    """Delete all rows, in a schema of any name."""
    connection = await connect(url)
    names = await connection.fetch(
        "select relname from pg_class where relnamespace = current_schema()::regnamespace and relkind in ('r', 'p')"
        " and not relispartition and relname not in ('last_move', 'migrations')"
    )
    await connection.execute("set session_replication_role = replica")  # the audit log keeps its entries
    await connection.execute(f"truncate {', '.join(row['relname'] for row in names)}")
    await connection.close()


async def fill(api: Api) -> None:
    """Make two companies, with notifications of all states, a team, phones and events that wait."""
    await api.people(*USERS, company_id=COMPANY)
    await api.people(*OTHERS, company_id=OTHER)
    await api.team(7, *USERS, company_id=COMPANY)
    await api.team(8, *OTHERS, company_id=OTHER)
    for user in (*USERS[:4], *OTHERS):
        await api.app_state.database.rows(
            "insert into devices (token, user_id, type, provider, environment, app)"
            " values ($1, $2, 'iOS', 'apns', 'production', 'default')",
            f"{user:064x}",
            user,
        )
    await api.app_state.database.rows("insert into preferences (user_id, chosen) values (1, '{\"mute\": []}')")
    for number in range(8):
        await api.post(note(*USERS[number % 6 : number % 6 + 4]), company_id=COMPANY)
    await api.post(custom(1, 2, *OTHERS))
    await api.post(custom(teams=(7, 8)))
    await api.post(custom(*OTHERS), company_id=OTHER)
    first, second, third, *_ = await api.ids(1)
    await api.as_user(1, "PUT", f"/notifications/{first}/read")
    await api.as_user(1, "DELETE", f"/notifications/{second}")
    await api.as_user(2, "PUT", "/notifications/read")
    await api.as_user(1, "PUT", f"/notifications/{third}/read", headers={"Idempotency-Key": "once"})


async def of_company(database: Database, company_id: int) -> dict[str, Any]:
    """Return all that clients of a company can see, by users."""
    rows = await database.rows(
        "select i.user_id, i.position, i.event_id, i.read_at, i.deleted_at, i.created_at, c.body"
        " from inbox i join contents c on c.event_id = i.event_id and c.language = i.language"
        " join users u on u.id = i.user_id where u.company_id = $1 order by 1, 2",
        company_id,
    )
    heads = await database.rows(
        "select h.* from heads h join users u on u.id = h.user_id where u.company_id = $1 order by user_id", company_id
    )
    changes = await database.rows(
        "select c.* from changes c join users u on u.id = c.user_id where u.company_id = $1 order by 1, 2", company_id
    )
    devices = await database.rows(
        "select d.* from devices d join users u on u.id = d.user_id where u.company_id = $1 order by token", company_id
    )
    members = await database.rows(
        "select m.* from members m join teams t on t.id = m.team_id where t.company_id = $1 order by 1, 2", company_id
    )
    preferences = await database.rows(
        "select p.* from preferences p join users u on u.id = p.user_id where u.company_id = $1 order by 1", company_id
    )
    found = {"inbox": rows, "heads": heads, "changes": changes, "devices": devices, "members": members}
    return {name: [tuple(row) for row in each] for name, each in {**found, "preferences": preferences}.items()}


async def nothing_of(database: Database, company_id: int) -> None:
    for statement in (
        "select count(*) from users where company_id = $1",
        "select count(*) from teams where company_id = $1",
        "select count(*) from events where company_id = $1",
        "select count(*) from moved_ids where company_id = $1",
        "select count(*) from moved_rows where company_id = $1",
    ):
        assert await database.value(statement, company_id) == 0, statement
    ids = list(USERS)
    for table in ("heads", "inbox", "changes", "devices", "deliveries", "members", "preferences", "clears"):
        assert await database.value(f"select count(*) from {table} where user_id = any($1)", ids) == 0, table
    assert await database.value("select count(*) from recipients where user_ids && $1::int[]", ids) == 0


async def assert_sound(*urls: str) -> None:
    for url in urls:
        connection = await connect(url)
        try:
            assert [str(found) async for found in invariants.check_rows(connection) if found] == []
        finally:
            await connection.close()


async def interrupt(pools: Sequence[Database], names: str, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Move the company up to a step, at which the command ends."""

    async def end(_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(moving._Move, step, end)  # noqa: SLF001
        with pytest.raises(KeyboardInterrupt):
            await moving.move(pools[0], pools[1], COMPANY, *names)


def before_switch(
    monkeypatch: pytest.MonkeyPatch, do: Callable[[], Awaitable[Any]], statement: str = "release"
) -> None:
    """Do something once, after the rows of the company are compared, and before it leaves, or another statement."""
    execute, done = Connection.execute, list[Any]()

    async def doing(self: Connection, query: str, *args: Any, **more: Any) -> Any:
        if query == queries("moving")[statement] and not done:
            done.append(None)
            await do()
        return await execute(self, query, *args, **more)

    monkeypatch.setattr(Connection, "execute", doing)


def after_copy(monkeypatch: pytest.MonkeyPatch, do: Callable[[], Awaitable[Any]]) -> None:
    """Do something once, when all is copied, and before the changes since are."""
    follow, done = moving._Move._follow, list[Any]()  # noqa: SLF001

    async def following(self: Any, source: Connection | None = None) -> int:
        if not done:
            done.append(None)
            await do()
        return await follow(self, source)

    monkeypatch.setattr(moving._Move, "_follow", following)  # noqa: SLF001


async def die(database: Database, *ids: str) -> None:
    """Make dead letters of the jobs of these events."""
    await database.rows(
        "with dead as (delete from jobs where id = any($1) returning id, task, lane)"
        " insert into dead_letters (id, task, lane, attempts, progress, reason)"
        " select id, task, lane, 8, 0, 'it failed' from dead",
        list(ids),
    )


async def state_of(api: Api, id_: str) -> str:
    return str((await state(api, id_))["state"])


async def post_held(api: Api) -> str:
    """Post an event that waits for its time, and return its id."""
    held = message_event("held", 3, deliver_at=in_future())
    id_: str = (await api.as_service("POST", "/events", json=held, company_id=COMPANY)).json()["id"]
    return id_
