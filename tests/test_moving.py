"""A company moves from one database to another: all of it, once, with its streams and phones, and nothing else."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from asyncpg import PostgresError
from httpx_sse import aconnect_sse

from tests.support.built_in import CATALOGUE
from tests.support.commands import refusal, run
from tests.support.database import make_database, value
from tests.support.events import CASE as CONTACT
from tests.support.events import custom, in_future, message_event, note, state
from tests.support.imports import import_lines, notification
from tests.support.resolutions import resolve, settled
from tests.support.service import SECRET, Api, serving, standing_token
from tests.support.waiting import reaches, until
from tocsin import copying, dead_letters, invariants, jobs, moving, registrations, retention
from tocsin.audit import actor_of_command
from tocsin.db.connections import Connection, connect
from tocsin.db.migrate import migrate
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.db.url import in_schema
from tocsin.errors import Locked, Refusal
from tocsin.postgres.supervisor import Embedded
from tocsin.push import deliveries

COMPANY, OTHER = 1, 2
USERS, OTHERS = range(1, 13), range(101, 105)
ROOT = Path(__file__).parents[1]
POINTS = 12
"""Points at which a move is killed in each run."""


@pytest.fixture(scope="module")
async def places(server: Embedded, folder: Path) -> AsyncIterator[dict[str, tuple[str, str]]]:
    """The urls of two cells: on two servers, and in two schemas of one database."""
    first = await make_database(server, "cell_a")
    second = in_schema(first, "tocsin_b")
    await migrate(second)
    async with Embedded(folder / "second") as other:
        await migrate(other.url)
        yield {"servers": (first, other.url), "schemas": (first, second)}


@pytest.fixture(params=["servers", "schemas"])
def urls(request: pytest.FixtureRequest, places: dict[str, tuple[str, str]]) -> tuple[str, str]:
    return places[request.param]


@pytest.fixture
async def cells(urls: tuple[str, str]) -> AsyncIterator[tuple[Api, Api]]:
    """Two services with a database each."""
    for url in urls:
        await empty(url)
    async with serving(urls[0], CATALOGUE) as a, serving(urls[1], CATALOGUE) as b:
        yield a, b


@contextlib.asynccontextmanager
async def opened(urls: tuple[str, str]) -> AsyncIterator[tuple[Database, Database]]:
    """The databases as a command opens them."""
    first, second = (Database(url, moving.CONNECTIONS, 60) for url in urls)
    async with contextlib.AsyncExitStack() as stack:
        for each in (first, second):
            await each.open()
            stack.push_async_callback(each.close)
        yield first, second


@pytest.fixture
async def pools(urls: tuple[str, str]) -> AsyncIterator[tuple[Database, Database]]:
    async with opened(urls) as pair:
        yield pair


@pytest.fixture(autouse=True)
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "CLOSE_DELAY", 0.0)  # no process looks which companies are closed
    monkeypatch.setattr(moving, "PAUSE", 0.1)
    monkeypatch.setattr(copying, "MANY_RECIPIENTS", 2)


async def empty(url: str) -> None:
    """Delete all rows, in a schema of any name."""
    connection = await connect(url)
    names = await connection.fetch(
        "select relname from pg_class where relnamespace = current_schema()::regnamespace and relkind in ('r', 'p')"
        " and not relispartition and relname <> 'migrations'"
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


def sample(points: Sequence[str]) -> list[str]:
    """Return points to be killed at: some, or all with `ALL_POINTS`."""
    seed = int(os.environ.get("SEED", random.randrange(2**32)))  # noqa: S311
    sys.stdout.write(f"SEED={seed}\n")
    return random.Random(seed).sample(points, len(points) if "ALL_POINTS" in os.environ else POINTS)  # noqa: S311


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


async def assert_sound(url: str) -> None:
    connection = await connect(url)
    try:
        assert [str(found) async for found in invariants.check_rows(connection) if found] == []
    finally:
        await connection.close()


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


async def test_all_of_a_company_moves_and_nothing_of_another(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    held = await cells[0].as_service("POST", "/events", json=message_event("later", 3, 101, deliver_at=in_future()))
    own = await cells[0].as_service(
        "POST", "/events", json=message_event("own", 4, key="k", deliver_at=in_future()), company_id=COMPANY
    )
    assert (held.status_code, own.status_code) == (202, 202)
    before, others = await of_company(pools[0], COMPANY), await of_company(pools[0], OTHER)
    done = await moving.move(*pools, COMPANY, "a", "b")

    assert await of_company(pools[1], COMPANY) == before
    assert await of_company(pools[0], OTHER) == others
    assert done.compared["inbox"] == len(before["inbox"])
    await nothing_of(pools[0], COMPANY)
    assert await of_company(pools[1], OTHER) == {name: [] for name in others}
    waiting = [{str(row[0]) for row in await each.rows("select id from jobs")} for each in pools]
    assert waiting == [{held.json()["id"]}, {held.json()["id"], own.json()["id"]}]
    users = [await each.value("select users from events where id = $1", held.json()["id"]) for each in pools]
    assert users == [[3, 101], [3]]
    for url in urls:
        await assert_sound(url)


async def test_no_statement_of_a_move_writes_all_rows_of_a_large_range(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    before = await of_company(pools[0], COMPANY)
    sizes: list[tuple[int, int]] = []

    def as_json(rows: Sequence[str]) -> str:
        sizes.append((len(rows), sum(map(len, rows))))
        return f"[{','.join(rows)}]"

    monkeypatch.setattr(copying, "PUT_CHARACTERS", 1_000)
    monkeypatch.setattr(copying, "as_json", as_json)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await of_company(pools[1], COMPANY) == before
    assert [each for each in sizes if each[0] > 1]
    assert [each for each in sizes if each[0] > 1 and each[1] > 1_000] == []


async def test_moved_company_goes_on_in_its_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    inbox = await cells[0].ids(3)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await cells[1].ids(3) == inbox
    new = await cells[1].post(note(3, 4), company_id=COMPANY)
    await cells[1].as_user(3, "PUT", "/notifications/read")
    assert await cells[1].ids(3) == [new, *inbox]
    assert (await cells[0].as_user(3, "GET", "/notifications")).status_code == 401
    assert (await cells[0].as_service("POST", "/events", json=note(3), company_id=COMPANY)).status_code == 422
    await moving.move(pools[1], pools[0], COMPANY, "b", "a")
    assert await cells[0].ids(3) == [new, *inbox]
    said = [await moving.whereabouts(each) for each in pools]
    assert moving.cell_of(COMPANY, said) == "a"
    for url in urls:
        await assert_sound(url)


async def test_move_that_is_killed_anywhere_continues_with_nothing_lost_or_doubled(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], tmp_path: Path
) -> None:
    """The company moves to and fro. Each time a process is killed at another statement, and the next one continues."""
    await fill(cells[0])
    held = message_event("held", 3, 4, 101, deliver_at=in_future())
    assert (await cells[0].as_service("POST", "/events", json=held)).status_code == 202
    before, others = await of_company(pools[0], COMPANY), await of_company(pools[0], OTHER)
    work = "select count(*) from jobs j join events e on e.id = j.id where e.users && array[3, 4]"
    place = itertools.cycle((("a", "b"), ("b", "a")))
    by_name, url_of = dict(zip("ab", pools, strict=True)), dict(zip("ab", urls, strict=True))

    async def killed(origin: str, destination: str, **environment: str) -> int:
        command = "-m", "tests.support.moving_program", url_of[origin], url_of[destination], "1", origin, destination
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, env={**os.environ, **environment}, cwd=ROOT
        )
        return await process.wait()

    trace = tmp_path / "points"
    for _ in range(3):  # what the first move does once is not written
        trace.unlink(missing_ok=True)
        assert await killed(*next(place), CRASH_TRACE=str(trace)) == 0
    assert next(place) == ("b", "a")
    await moving.move(pools[1], pools[0], COMPANY, "b", "a")
    points = sorted(set(trace.read_text("utf-8").splitlines()))
    assert len(points) >= 40, points
    for point in sample(points):
        origin, destination = next(place)
        assert await killed(origin, destination, CRASH_AT=point) == -signal.SIGKILL, point
        await moving.move(by_name[origin], by_name[destination], COMPANY, origin, destination)
        assert await of_company(by_name[destination], COMPANY) == before, point
        assert await of_company(pools[0], OTHER) == others, point
        await nothing_of(by_name[origin], COMPANY)
        assert await by_name[destination].value(work) == 1, point
    for url in urls:
        await assert_sound(url)


class Clients:
    """Clients of two cells, and the ledger of what they were answered with 2xx."""

    def __init__(self, cells: tuple[Api, Api], entries: dict[int, set[str]]) -> None:
        self.cells, self.entries = cells, entries
        self.read: set[tuple[int, str]] = set()
        self.deleted: set[tuple[int, str]] = set()
        self.refused: list[int] = []
        self.is_over = False
        self.dice = random.Random(5)  # noqa: S311

    async def cell_of(self, company_id: int) -> Api:
        said = [await moving.whereabouts(each.app_state.database) for each in self.cells]
        return self.cells[moving.cell_of(company_id, said) == "b"]

    async def post(self, users: range, company_id: int) -> None:
        while not self.is_over:
            named, id_ = self.dice.sample(users, 3), str(uuid4())
            while not await self.is_accepted(note(*named, id=id_), company_id):
                self.refused.append(company_id)
                await asyncio.sleep(0.02)
            for user in named:
                self.entries[user].add(id_)

    async def is_accepted(self, event: dict[str, Any], company_id: int) -> bool:
        api = await self.cell_of(company_id)
        answer = await api.as_service("POST", "/events", json=event, company_id=company_id)
        assert answer.status_code in {202, 422, 503}, answer.text
        return answer.status_code == 202

    async def mark(self, user: int) -> None:
        while not self.is_over:
            await asyncio.sleep(0.01)
            api = await self.cell_of(COMPANY)
            answer = await api.call("GET", "/notifications?per_page=100", standing_token(user))
            if answer.status_code == 200 and (left := answer.json()["data"]):
                id_ = self.dice.choice(left)["id"]
                is_read = self.dice.random() < 0.7
                method, path = ("PUT", "/read") if is_read else ("DELETE", "")
                answer = await api.call(method, f"/notifications/{id_}{path}", standing_token(user))
                assert answer.status_code in {204, 401, 404, 503}, answer.text
                if answer.status_code == 204:
                    (self.read if is_read else self.deleted).add((user, id_))

    async def compare(self, database: Database, users: range) -> None:
        rows = await database.rows(
            "select user_id, event_id::text, read_at, deleted_at from inbox where user_id = any($1)", list(users)
        )
        found = [(row["user_id"], row["event_id"]) for row in rows]
        assert sorted(found) == sorted((user, id_) for user in users for id_ in self.entries[user])
        read = {pair for pair, row in zip(found, rows, strict=True) if row["read_at"]}
        deleted = {pair for pair, row in zip(found, rows, strict=True) if row["deleted_at"]}
        assert {pair for pair in self.read if pair[0] in users} <= read
        assert {pair for pair in self.deleted if pair[0] in users} <= deleted


async def test_company_moves_under_load_with_nothing_lost_or_doubled(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    stored = "select array(select event_id::text from inbox where user_id = $1)"
    clients = Clients(cells, {user: set(await pools[0].value(stored, user)) for user in (*USERS, *OTHERS)})
    load = [
        *(asyncio.create_task(clients.post(USERS, COMPANY)) for _ in range(3)),
        asyncio.create_task(clients.post(OTHERS, OTHER)),
        *(asyncio.create_task(clients.mark(user)) for user in USERS[:3]),
    ]
    await asyncio.sleep(0.5)
    await moving.move(*pools, COMPANY, "a", "b")
    await asyncio.sleep(0.5)
    clients.is_over = True
    await asyncio.gather(*load)
    assert OTHER not in clients.refused
    for pool in pools:
        await reaches(partial(pool.value, "select count(*) from jobs"), 0)
    await clients.compare(pools[1], USERS)
    await clients.compare(pools[0], OTHERS)
    await nothing_of(pools[0], COMPANY)
    for url in urls:
        await assert_sound(url)


async def test_stream_continues_in_the_new_cell_after_the_last_event_it_saw(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])

    async def events_of(api: Api, mark: str, until_id: str) -> list[str]:
        headers = {"Authorization": f"Bearer {standing_token(3)}", **({"Last-Event-ID": mark} if mark else {})}
        seen = []
        async with aconnect_sse(api.http, "GET", "/notifications/stream", headers=headers) as source:
            async for event in source.aiter_sse():
                marks.append(event.id or marks[-1])
                assert event.event != "resync"
                if event.event == "notification":
                    seen.append(json.loads(event.data)["id"])
                    if seen[-1] == until_id:
                        return seen
        return seen

    marks = [""]
    following = asyncio.create_task(events_of(cells[0], "", "nothing"))
    await until(lambda: asyncio.sleep(0, len(marks) > 1))
    first = await cells[0].post(note(3), company_id=COMPANY)
    await until(lambda: asyncio.sleep(0, len(marks) > 2))
    await moving.move(*pools, COMPANY, "a", "b")
    assert await following == [first]  # the stream of the old cell ends
    second = await cells[1].post(note(3), company_id=COMPANY)
    third = await cells[1].post(note(3), company_id=COMPANY)
    assert await events_of(cells[1], marks[-1], third) == [second, third]


async def test_event_that_a_locked_company_gets_is_delivered_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is accepted while the rows of the company are locked, and moves with its job."""
    await fill(cells[0])
    accepted: list[str] = []
    bring = moving._Move._stash  # noqa: SLF001

    async def stash(self: Any, source: Connection, pending: Any) -> None:
        if not accepted:
            answer = await cells[0].as_service("POST", "/events", json=note(5, 6), company_id=COMPANY)
            accepted.append(answer.json()["id"])
        await bring(self, source, pending)

    monkeypatch.setattr(moving._Move, "_stash", stash)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    await reaches(lambda: pools[1].value("select count(*) from jobs"), 0)
    assert (await cells[1].ids(5))[0] == accepted[0]
    assert await pools[0].value("select count(*) from jobs") == 0


async def test_closed_company_gets_no_user_and_team_and_others_do(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await pools[0].rows("insert into moves (company_id, turn, state, other) values (1, 1, 'copying', 'b')")
    await cells[0].people(1, company_id=COMPANY)
    await pools[0].rows("update moves set closed_until = now() + interval '1 minute'")
    with pytest.raises(Locked):
        await cells[0].people(2, company_id=COMPANY)
    with pytest.raises(Locked):
        await cells[0].team(1, 1, company_id=COMPANY)
    await cells[0].people(3, company_id=OTHER)
    assert (await moving.whereabouts(pools[0]))[COMPANY].is_closed
    await pools[0].rows("update moves set closed_until = now() - interval '1 second'")
    await cells[0].people(2, company_id=COMPANY)
    assert not (await moving.whereabouts(pools[0]))[COMPANY].is_closed


async def test_company_whose_ids_are_taken_stays_in_its_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    await cells[1].people(5, company_id=9)
    before = await of_company(pools[0], COMPANY)
    with pytest.raises(Refusal, match="has other users with the ids 5"):
        await moving.move(*pools, COMPANY, "a", "b")
    assert await of_company(pools[0], COMPANY) == before
    assert not (await moving.whereabouts(pools[0]))[COMPANY].is_closed


async def test_target_that_is_away_leaves_the_company_open_in_its_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    copy = moving._Move._copy  # noqa: SLF001

    async def copy_and_lose(self: Any) -> None:
        await copy(self)
        await pools[1].close()

    monkeypatch.setattr(moving._Move, "_copy", copy_and_lose)  # noqa: SLF001
    with pytest.raises(Refusal, match="It stays in its cell"):
        await moving.move(*pools, COMPANY, "a", "b")
    assert not (await moving.whereabouts(pools[0]))[COMPANY].is_closed
    assert (await cells[0].as_user(3, "PUT", "/notifications/read")).status_code == 204
    await cells[0].post(note(3), company_id=COMPANY)


async def test_move_continues_when_a_database_comes_back_within_the_pauses(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    monkeypatch.setattr(moving, "PAUSE", 1.0)
    copy, said, coming = moving._Move._copy, list[str](), list[asyncio.Task[None]]()  # noqa: SLF001

    async def copy_and_lose(self: Any) -> None:
        await copy(self)
        await pools[1].close()

    async def come_back() -> None:
        await asyncio.sleep(1.5)
        await pools[1].open()

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("attempt 1"):
            coming.append(asyncio.create_task(come_back()))

    monkeypatch.setattr(moving._Move, "_copy", copy_and_lose)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b", say)
    attempts = [line.rpartition("; ")[2] for line in said if line.startswith("attempt")]
    assert attempts == ["the next one begins in 1 s", "the next one begins in 2 s"]
    assert (await moving.whereabouts(pools[0]))[COMPANY].state == "moved"


async def test_companies_that_share_an_event_can_move_one_after_the_other(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    held = message_event("held", 3, 101, deliver_at=in_future())
    id_ = (await cells[0].as_service("POST", "/events", json=held)).json()["id"]
    before = [await of_company(pools[0], each) for each in (COMPANY, OTHER)]
    for company in (COMPANY, OTHER):
        await moving.move(*pools, company, "a", "b")
    assert [await of_company(pools[1], each) for each in (COMPANY, OTHER)] == before
    assert sorted(await pools[1].value("select users from events where id = $1", id_)) == [3, 101]
    assert await pools[1].value("select count(*) from jobs") == 1
    for url in urls:
        await assert_sound(url)


@pytest.mark.usefixtures("cells")
async def test_two_moves_out_of_a_cell_do_not_run_at_once(
    pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "TURN_TIMEOUT", 0.2)
    async with pools[0].connection() as other:
        assert await other.fetchval(queries("moving")["turn"], moving._TURN)  # noqa: SLF001
        with pytest.raises(Refusal, match="Another"):
            await moving.move(*pools, COMPANY, "a", "b")
        await other.execute("select pg_advisory_unlock_all()")
    await moving.move(*pools, COMPANY, "a", "b")


@pytest.mark.processes
async def test_command_moves_a_company_and_says_how_long_it_was_closed(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], tmp_path: Path
) -> None:
    await fill(cells[0])
    before = await of_company(pools[0], COMPANY)
    file = tmp_path / "cells.toml"
    tables = (f'[{name}]\nurl = "{url.partition("&tocsin.schema")[0]}"\n' for name, url in zip("ab", urls, strict=True))
    schema = 'schema = "tocsin_b"\n' if "tocsin_b" in urls[1] else ""
    file.write_text(f"{next(tables)}default = true\n{next(tables)}{schema}", "utf-8")
    command = partial(run, cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET, TOCSIN_CELLS_FILE=str(file))
    done = await asyncio.to_thread(command, "cell", "move", "1", "--to", "b")
    assert f"Compared {len(before['inbox'])} notifications; closed for " in done.stdout
    assert await of_company(pools[1], COMPANY) == before
    again = await asyncio.to_thread(command, "cell", "move", "1", "--to", "b")
    assert again.stdout == "Company 1 is in cell b.\n"
    refused = partial(refusal, cwd=tmp_path, TOCSIN_JWT_SECRET=SECRET, TOCSIN_CELLS_FILE=str(file))
    assert "is in cell a already" in await asyncio.to_thread(refused, "cell", "move", "2", "--to", "a")
    await pools[0].rows("insert into moves (company_id, turn, state, other) values (2, 1, 'copying', 'b')")
    given_up = await asyncio.to_thread(command, "cell", "move", "2", "--to", "a")
    assert given_up.stdout == "The move to cell b is given up. Company 2 stays in cell a.\n"
    gone = "cell c, or is being copied there, and TOCSIN_CELLS_FILE does not name that cell. Add it again"
    await pools[0].rows("insert into moves (company_id, turn, state, other) values (3, 1, 'copying', 'c')")
    assert gone in await asyncio.to_thread(refused, "cell", "move", "3", "--to", "a")
    await pools[0].rows("update moves set state = 'moved' where company_id = 3")
    assert gone in await asyncio.to_thread(refused, "cell", "move", "3", "--to", "b")


async def test_user_who_is_erased_after_the_copy_leaves_nothing_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    alone = await cells[0].post(message_event("secret words", 5), company_id=COMPANY)
    copy = moving._Move._copy  # noqa: SLF001

    async def copy_and_erase(self: Any) -> None:
        await copy(self)
        assert (await cells[0].as_service("DELETE", "/directory/users/5")).status_code == 204
        await reaches(partial(pools[0].value, "select count(*) from erasures"), 0)

    monkeypatch.setattr(moving._Move, "_copy", copy_and_erase)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    assert (await cells[1].as_user(5, "GET", "/notifications")).status_code == 401
    for statement in (
        "select count(*) from inbox where user_id = 5",
        "select count(*) from recipients where 5 = any(user_ids)",
        "select count(*) from events where 5 = any(users)",
        "select count(*) from contents where body like '%secret words%'",
        "select count(*) from events where params like '%secret words%'",
    ):
        assert [await each.value(statement) for each in pools] == [0, 0], statement
    assert await pools[1].value("select count(*) from events where id = $1", alone) == 1
    for url in urls:
        await assert_sound(url)


in_schemas = pytest.mark.parametrize("urls", ["schemas"], indirect=True)
"""Marks tests of what does not depend on whether there are two servers."""


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


@in_schemas
async def test_user_who_changed_the_company_keeps_earlier_notifications(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    await cells[0].post(message_event("before", 12, 1), company_id=COMPANY)
    await cells[0].people(12, company_id=OTHER)
    before = await cells[0].inbox(12)
    assert before["data"]
    await moving.move(*pools, COMPANY, "a", "b")
    assert await cells[0].inbox(12) == before
    await assert_sound(urls[0])
    await moving.move(*pools, OTHER, "a", "b")
    assert await cells[1].inbox(12) == before
    assert await pools[0].value("select count(*) from events") == 0
    await moving.move(pools[1], pools[0], COMPANY, "b", "a")
    assert await cells[1].inbox(12) == before
    for url in urls:
        await assert_sound(url)


@in_schemas
async def test_move_does_not_change_an_event_of_another_company_with_the_same_id(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    await cells[1].people(201, company_id=9)
    id_, late = str(uuid4()), str(uuid4())
    await cells[0].post(message_event("secret words", 1, id=id_), company_id=COMPANY)
    await cells[1].post(message_event("other words", 201, id=id_), company_id=9)
    before = await cells[1].inbox(201)
    with pytest.raises(Refusal, match=f"has other events with the ids {id_}"):
        await moving.move(*pools, COMPANY, "a", "b")
    assert await cells[1].inbox(201) == before
    assert await pools[1].value("select count(*) from contents where body like '%secret words%'") == 0
    await pools[0].rows("delete from inbox where event_id = $1", id_)
    await pools[0].rows("update heads set total = total - 1, unread = unread - 1 where user_id = 1")
    await pools[0].rows("delete from events where id = $1", id_)
    await cells[0].post(message_event("secret words", 1, id=late), company_id=COMPANY)
    held = message_event("other words", 201, id=late, deliver_at=in_future())
    assert (await cells[1].as_service("POST", "/events", json=held, company_id=9)).status_code == 202
    with pytest.raises(Refusal, match=f"has other events with the ids {late}"):
        await moving.move(*pools, COMPANY, "a", "b")
    assert await pools[1].value("select company_id from events where id = $1", late) == 9


@in_schemas
async def test_company_comes_back_only_after_all_of_it_has_left(
    cells: tuple[Api, Api],
    pools: tuple[Database, Database],
    urls: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await fill(cells[0])
    before = await of_company(pools[0], COMPANY)
    for step in ("_carry", "_clean"):
        await interrupt(pools, "ab", monkeypatch, step)
        with pytest.raises(Refusal, match="has not ended"):
            await moving.move(pools[1], pools[0], COMPANY, "b", "a")
        said = {name: await moving.whereabouts(each) for name, each in zip("ab", pools, strict=True)}
        with pytest.raises(Refusal, match="--to b"):
            moving.origin_of(COMPANY, "c", said, "a")
        assert moving.origin_of(COMPANY, "b", said, "a") == "a"
        await moving.move(*pools, COMPANY, "a", "b")
        await moving.move(pools[1], pools[0], COMPANY, "b", "a")
        assert await of_company(pools[0], COMPANY) == before
    for url in urls:
        await assert_sound(url)


@in_schemas
async def test_company_moves_through_three_cells_in_any_order(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    third = in_schema(urls[0], "tocsin_c")
    await migrate(third)
    await empty(third)
    await fill(cells[0])
    before = await of_company(pools[0], COMPANY)
    async with opened((third, third)) as (last, _):
        databases = {"a": pools[0], "b": pools[1], "c": last}
        for origin, destination in itertools.pairwise("abcabacba"):
            await moving.move(databases[origin], databases[destination], COMPANY, origin, destination)
            said = {name: await moving.whereabouts(each) for name, each in databases.items()}
            assert moving.cell_of(COMPANY, said.values()) == destination
            for other in databases.keys() - {destination}:
                assert moving.origin_of(COMPANY, other, said, "a") == destination
        assert await of_company(databases["a"], COMPANY) == before
    for url in (*urls, third):
        await assert_sound(url)


@in_schemas
async def test_command_that_hangs_at_the_switch_holds_up_no_event_for_long(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    monkeypatch.setattr(moving, "EVENTS_HELD_FOR", 0.5)
    hanging, going_on = asyncio.Event(), asyncio.Event()

    async def hang(_: Any, source: Connection) -> None:
        if await source.fetchval(
            "select exists (select from pg_locks where pid = pg_backend_pid() and relation = 'imports'::regclass"
            " and mode = 'ShareLock')"
        ):
            hanging.set()
            await going_on.wait()

    monkeypatch.setattr(moving._Move, "_check_idle", hang)  # noqa: SLF001
    said: list[str] = []
    move = asyncio.create_task(moving.move(*pools, COMPANY, "a", "b", said.append))
    await hanging.wait()
    await cells[0].post(custom(*OTHERS), company_id=OTHER)
    going_on.set()
    await move
    assert [each for each in said if each.startswith("attempt 1")]
    assert (await moving.whereabouts(pools[0]))[COMPANY].state == "moved"


async def test_command_that_hangs_holds_up_the_retention_of_no_cell_for_long(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    monkeypatch.setattr(moving, "COMPANY_HELD_FOR", 0.5)
    lock, held = moving._Move._lock, list[int]()  # noqa: SLF001

    async def hang(self: Any, source: Connection) -> None:
        if not held:
            time.sleep(2)  # noqa: ASYNC251 - as if it were suspended
            locks = (
                "select count(*) from pg_locks where locktype = 'advisory' and mode = 'ShareLock'"
                " and database = (select oid from pg_database where datname = current_database())"
            )
            held.extend([await value(url, locks) for url in urls])
        await lock(self, source)

    monkeypatch.setattr(moving._Move, "_lock", hang)  # noqa: SLF001
    said: list[str] = []
    await moving.move(*pools, COMPANY, "a", "b", said.append)
    assert held == [0, 0]
    assert [each for each in said if each.startswith("attempt 1")]
    assert (await moving.whereabouts(pools[0]))[COMPANY].state == "moved"


async def test_switch_that_takes_long_keeps_the_transaction_of_the_target(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    monkeypatch.setattr(moving, "COMPANY_HELD_FOR", 0.5)
    lock = moving._Move._lock  # noqa: SLF001

    async def slow(self: Any, source: Connection) -> None:
        await source.execute("select pg_sleep(2)")
        await lock(self, source)

    monkeypatch.setattr(moving._Move, "_lock", slow)  # noqa: SLF001
    said: list[str] = []
    await moving.move(*pools, COMPANY, "a", "b", said.append)
    assert not [each for each in said if each.startswith("attempt")]


async def test_switch_prepares_no_statement_while_all_events_wait(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    seen: dict[str, bool] = {}

    async def look(_: Any, source: Connection) -> None:
        began = await source.fetchval("select current_setting('test.began', true)")
        statement = "select statement, prepare_time < $1::text::timestamptz as is_earlier from pg_prepared_statements"
        found = await source.fetch(f"{statement} where statement not like '%test.began%'", began)
        seen.update((row["statement"], row["is_earlier"]) for row in found)

    async def begin(source: Connection, seconds: float) -> None:
        if seconds == moving.EVENTS_HELD_FOR:
            await source.fetchval("select set_config('test.began', clock_timestamp()::text, true)")

    monkeypatch.setattr(moving._Move, "_check_idle", look)  # noqa: SLF001
    monkeypatch.setattr(moving, "limit_idleness", begin)
    await moving.move(*pools, COMPANY, "a", "b")
    assert {queries("moving")[name] for name in ("stash_posts", "stash_keys", "switch")} <= seen.keys()
    assert [statement for statement, is_earlier in seen.items() if not is_earlier] == []


async def die(database: Database, *ids: str) -> None:
    """Make dead letters of the jobs of these events."""
    await database.rows(
        "with dead as (delete from jobs where id = any($1) returning id, task, lane)"
        " insert into dead_letters (id, task, lane, attempts, progress, reason)"
        " select id, task, lane, 8, 0, 'it failed' from dead",
        list(ids),
    )


@in_schemas
async def test_dead_letters_move_and_replayed_ones_are_delivered(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    ids = []
    for company in (COMPANY, None, COMPANY, None):
        held = message_event("held", 3, deliver_at=in_future())
        ids.append((await cells[0].as_service("POST", "/events", json=held, company_id=company)).json()["id"])
    await die(pools[0], *ids)
    copy = moving._Move._copy  # noqa: SLF001

    async def copy_and_replay(self: Any) -> None:
        await copy(self)
        await pools[0].rows(queries("jobs")["requeue"], ids[:2], *[None] * 4)
        await pools[0].rows("update jobs set due_at = now() + interval '1 hour' where id = any($1)", ids[:2])

    monkeypatch.setattr(moving._Move, "_copy", copy_and_replay)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    assert [str(row["id"]) for row in await pools[1].rows("select id from dead_letters order by id")] == sorted(ids[2:])
    assert await pools[0].value("select count(*) from dead_letters") == 0
    await pools[1].rows("update jobs set due_at = now()")
    for id_ in ids[:2]:
        await reaches(partial(state_of, cells[1], id_), "delivered")
    for url in urls:
        await assert_sound(url)


async def state_of(api: Api, id_: str) -> str:
    return str((await state(api, id_))["state"])


@in_schemas
async def test_waiting_event_of_a_service_of_all_companies_leaves_with_its_users(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    """Then it can be cancelled in the cell that delivers it."""
    await fill(cells[0])
    held = message_event("held", 3, deliver_at=in_future())
    id_ = (await cells[0].as_service("POST", "/events", json=held)).json()["id"]
    await moving.move(*pools, COMPANY, "a", "b")
    assert await pools[0].value("select count(*) from events where id = $1", id_) == 0
    assert await pools[0].value("select count(*) from jobs") == 0
    assert (await state(cells[1], id_))["state"] == "held"


async def assert_together_after_return(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], id_: str
) -> None:
    """Move the company back: user 3 of it and user 101 of the other have got the event last, in the same cell."""
    await moving.move(pools[1], pools[0], COMPANY, "b", "a")
    for user in (3, 101):
        assert (await cells[0].ids(user))[0] == id_
    for url in urls:
        await assert_sound(url)


@in_schemas
async def test_parts_of_a_shared_event_come_together_when_delivered(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    held = message_event("held", 3, 101, deliver_at=in_future())
    id_ = (await cells[0].as_service("POST", "/events", json=held)).json()["id"]
    await moving.move(*pools, COMPANY, "a", "b")
    await pools[0].rows("update jobs set due_at = now()")
    await reaches(partial(state_of, cells[0], id_), "delivered")
    with pytest.raises(Refusal, match=id_):
        await moving.move(*pools, OTHER, "a", "b")
    with pytest.raises(Refusal, match=id_):
        await moving.move(pools[1], pools[0], COMPANY, "b", "a")
    await pools[1].rows("update jobs set due_at = now()")
    await reaches(partial(state_of, cells[1], id_), "delivered")
    await moving.move(*pools, OTHER, "a", "b")
    for user in (3, 101):
        assert (await cells[1].ids(user))[0] == id_
    for url in urls:
        await assert_sound(url)


@in_schemas
async def test_parts_of_a_shared_event_in_different_languages_come_together(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    await cells[0].people(101, company_id=OTHER, locale="da")
    held = message_event("held", 3, 101, deliver_at=in_future())
    id_ = (await cells[0].as_service("POST", "/events", json=held)).json()["id"]
    await moving.move(*pools, COMPANY, "a", "b")
    for cell, pool in zip(cells, pools, strict=True):
        await pool.rows("update jobs set due_at = now()")
        await reaches(partial(state_of, cell, id_), "delivered")
    await assert_together_after_return(cells, pools, urls, id_)


@in_schemas
async def test_dropped_recipients_of_an_event_are_counted_once_after_moves(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    await cells[0].people(13, company_id=COMPANY, active=False)
    ids = [UUID(await cells[0].post(custom(*users, 13))) for users in ((3,), (3, 101))]

    async def counted() -> list[list[int]]:
        count = "select coalesce(sum(dropped), 0)::int from recipients where event_id = $1"
        return [[await pool.value(count, id_) for pool in pools] for id_ in ids]

    assert await counted() == [[1, 0], [1, 0]]
    await moving.move(*pools, COMPANY, "a", "b")
    assert await counted() == [[0, 1], [1, 0]]
    await moving.move(pools[1], pools[0], COMPANY, "b", "a")
    assert await counted() == [[1, 0], [1, 0]]


@in_schemas
async def test_event_reaches_users_in_the_new_cell_at_once_after_the_switch(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users who are made after an erasure are younger than the events before it. The new cell counts erasures, too."""
    await cells[0].people(90)
    await cells[0].as_service("DELETE", "/directory/users/90")
    await fill(cells[0])
    await reaches(partial(pools[0].value, "select count(*) from erasures"), 0)
    await interrupt(pools, "ab", monkeypatch, "_carry")
    new = await cells[1].post(note(3), company_id=COMPANY)
    assert (await cells[1].ids(3))[0] == new


@in_schemas
async def test_posted_events_that_wait_reach_the_users_of_both_cells(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    post = partial(post_in_transaction, urls[0])
    skipping = {"notify": {"users": [4], "unknown": "skip"}}
    shared, own, skips = await post(custom(3, 101)), await post(custom(3)), await post(custom(4) | skipping, COMPANY)
    other = await post(custom(101))
    await moving.move(*pools, COMPANY, "a", "b")
    for event in (custom(4) | skipping, custom(4)):
        with pytest.raises(PostgresError, match=r"has moved|unknown"):
            await post(event, COMPANY)
    for pool in pools:
        await pool.rows("update jobs set due_at = now() where task = 'post'")
        await reaches(partial(pool.value, "select count(*) from posted"), 0)
    assert await pools[0].value("select count(*) from dead_letters") == 0
    for cell, user, ids in ((cells[1], 3, [own, shared]), (cells[1], 4, [skips]), (cells[0], 101, [other, shared])):
        await reaches(partial(latest, cell, user, len(ids)), sorted(ids))


@in_schemas
async def test_posted_event_that_each_cell_accepted_comes_together(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    id_ = await post_in_transaction(urls[0], custom(3, 101))
    await moving.move(*pools, COMPANY, "a", "b")
    for cell, pool in zip(cells, pools, strict=True):
        await pool.rows("update jobs set due_at = now() where task = 'post'")
        await reaches(partial(pool.value, "select count(*) from posted"), 0)
        await reaches(partial(state_of, cell, id_), "delivered")
    await assert_together_after_return(cells, pools, urls, id_)


@in_schemas
@pytest.mark.parametrize("end", [moving.move, moving.give_up])
async def test_no_event_is_posted_in_the_new_cell_while_its_company_is_copied(
    cells: tuple[Api, Api],
    pools: tuple[Database, Database],
    urls: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[..., Awaitable[object]],
) -> None:
    """The copy would replace what its users have got. Others get theirs."""
    await fill(cells[0])
    await cells[1].people(201, company_id=9)
    post = partial(post_in_transaction, urls[1])
    await interrupt(pools, "ab", monkeypatch, "_switch")
    for event, company in ((custom(3, 201), None), (custom(teams=(7,)), None), (custom(4), COMPANY)):
        with pytest.raises(PostgresError, match="is moving to this database"):
            await post(event, company)
    ids = [await post(custom(201))]
    await end(*pools, COMPANY, "a", "b")
    if end is moving.move:
        ids.append(await post(custom(3), COMPANY))
    await pools[1].rows("update jobs set due_at = now() where task = 'post'")
    for user, id_ in zip((201, 3), ids, strict=False):
        await reaches(partial(latest, cells[1], user, 1), [id_])
    assert await pools[1].value("select bool_or(is_awaited) from moves") is False


@in_schemas
async def test_posted_event_with_an_id_that_is_refused_holds_up_no_move(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str]
) -> None:
    await fill(cells[0])
    await post_in_transaction(urls[0], custom(101) | {"notify": {"users": [101.0], "unknown": "skip"}}, OTHER)
    await moving.move(*pools, COMPANY, "a", "b")


async def post_in_transaction(url: str, event: dict[str, Any], company_id: int | None = None) -> str:
    """Post an event as an application does in its own transaction. A worker accepts it when its job is due."""
    session = await connect(url)
    try:
        await session.execute("delete from posters")
        await session.execute("insert into posters values (session_user::text, 'crm', $1)", company_id)
        async with session.transaction():
            id_ = await session.fetchval("select post($1)", json.dumps(event))
            await session.execute("update jobs set due_at = now() + interval '1 hour' where task = 'post'")
    finally:
        await session.close()
    return str(id_)


async def latest(api: Api, user: int, count: int) -> list[str]:
    return sorted((await api.ids(user))[:count])


@in_schemas
async def test_user_who_comes_while_the_closing_lapses_is_not_lost(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])

    async def lapse() -> None:
        await pools[0].rows("update moves set closed_until = now() - interval '1 s'")
        await cells[0].people(40, company_id=COMPANY)
        await asyncio.sleep(0.3)

    monkeypatch.setattr(moving, "RENEW_INTERVAL", 0.05)
    before_switch(monkeypatch, lapse)
    await moving.move(*pools, COMPANY, "a", "b")
    assert (await cells[1].as_service("GET", "/directory/users/40")).status_code == 200


@in_schemas
async def test_resolution_accepted_while_the_company_is_closed_is_applied(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    await cells[0].post(note(3), company_id=COMPANY)
    unread = await cells[0].unread(3)
    about = await pools[0].value("select subject from subjects limit 1")

    async def accept() -> None:
        await resolve(cells[0], about, company_id=COMPANY)

    before_switch(monkeypatch, accept)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await cells[1].unread(3) < unread


def after_copy(monkeypatch: pytest.MonkeyPatch, do: Callable[[], Awaitable[Any]]) -> None:
    """Do something once, when all is copied, and before the changes since are."""
    follow, done = moving._Move._follow, list[Any]()  # noqa: SLF001

    async def following(self: Any, source: Connection | None = None) -> int:
        if not done:
            done.append(None)
            await do()
        return await follow(self, source)

    monkeypatch.setattr(moving._Move, "_follow", following)  # noqa: SLF001


@in_schemas
async def test_push_that_settles_after_the_copy_is_settled_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No head of an inbox shows it."""
    await fill(cells[0])
    await pools[0].rows(
        "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending, state)"
        " select i.event_id, d.id, d.user_id, d.lane, false, 'iOS', '', 'held'"
        " from devices d join inbox i on i.user_id = d.user_id where d.user_id = 1 limit 1"
    )

    async def settle() -> None:
        await pools[0].rows("update deliveries set state = 'dead', settled_at = clock_timestamp() where user_id = 1")

    after_copy(monkeypatch, settle)
    await moving.move(*pools, COMPANY, "a", "b")
    assert [row["state"] for row in await pools[1].rows("select state from deliveries")] == ["dead"]


@contextlib.asynccontextmanager
async def switched(pools: tuple[Database, Database]) -> AsyncIterator[None]:
    """Move the company, as a command that is killed after the switch, and after the block by one that continues."""

    class Killed(moving._Move):  # noqa: SLF001
        async def _carry(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await Killed(*pools, COMPANY, "a", "b", moving.nothing).run()
    yield
    await moving.move(*pools, COMPANY, "a", "b")


async def push(database: Database, state: str, *, due_in: float = 3600) -> None:
    """Store a push of the oldest notification of user 1."""
    await database.rows(
        "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending, state, due_at)"
        " select i.event_id, d.id, d.user_id, d.lane, false, 'iOS', '', $1, now() + make_interval(secs => $2)"
        " from devices d join inbox i on i.user_id = d.user_id where d.user_id = 1 order by i.position limit 1",
        state,
        due_in,
    )


@in_schemas
async def test_push_that_comes_after_a_phone_registered_goes_through_its_lane(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    await push(pools[0], "later")
    async with switched(pools):
        answer = await cells[1].as_user(1, "POST", f"/notifications/devices/{1:064x}", json={"environment": "sandbox"})
        assert answer.status_code == 204
    assert await pools[1].value("select lane from deliveries") == "apns/default/sandbox"


@in_schemas
async def test_held_push_that_comes_after_preferences_changed_is_decided_again(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    await push(pools[0], "held")
    async with switched(pools):
        answer = await cells[1].as_user(1, "PATCH", "/notifications/preferences", json={"paused_until": None})
        assert answer.status_code == 200
    assert await pools[1].value("select state = 'held' and due_at <= now() from deliveries")


@in_schemas
async def test_clear_that_comes_after_another_one_is_part_of_it(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    since = "select since from clears where user_id = 1"
    before = await pools[0].value(since)
    async with switched(pools):
        await cells[1].as_user(1, "PUT", "/notifications/read")
        assert await pools[1].value(since) > before
    assert await pools[1].value(since) == before


@in_schemas
async def test_push_that_is_replayed_after_the_copy_expires_a_day_later(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    await push(pools[0], "dead")
    await pools[0].rows("update deliveries set made_at = made_at - interval '2 days', settled_at = now()")

    async def replay() -> None:
        async with pools[0].transaction() as connection:
            ids = [row["event_id"] for row in await connection.fetch("select event_id from deliveries")]
            assert await deliveries.replay(connection, ids) == 1

    after_copy(monkeypatch, replay)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await pools[1].value("select state = 'queued' and made_at > now() - interval '1 hour' from deliveries")


@in_schemas
async def test_phone_that_another_user_had_during_the_copy_does_not_come(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    await cells[1].people(201, company_id=OTHER)
    phone, release = f"/notifications/devices/{1:064x}", registrations.release_phones

    async def use(own: Database, others: Mapping[str, Database]) -> int:
        released = await release(own, others)
        if not statuses and own is pools[0]:
            statuses.extend([(await cells[1].as_user(201, method, phone)).status_code for method in ("POST", "DELETE")])
        return released

    statuses: list[int] = []
    monkeypatch.setattr(registrations, "release_phones", use)
    await moving.move(*pools, COMPANY, "a", "b")
    assert statuses == [204, 204]
    assert await pools[1].value("select count(*) from devices where token = $1", f"{1:064x}") == 0


@in_schemas
async def test_phone_that_leaves_before_the_locks_does_not_end_the_move(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    await cells[1].people(201, company_id=OTHER)
    leave = moving._Move._leave  # noqa: SLF001

    async def leaving(self: Any) -> None:
        answer = await cells[1].as_user(201, "POST", f"/notifications/devices/{1:064x}")
        assert answer.status_code == 204
        await leave(self)

    monkeypatch.setattr(moving._Move, "_leave", leaving)  # noqa: SLF001
    monkeypatch.setattr(moving, "ATTEMPTS", 1)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await pools[1].value("select user_id from devices where token = $1", f"{1:064x}") == 201


@in_schemas
async def test_event_after_the_copy_is_brought_without_others_of_its_user(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what is brought while the company is closed is as little as what has changed."""
    await fill(cells[0])
    before, new, brought = {*await cells[0].ids(3)}, set[str](), set[str]()
    put = moving._Move._put  # noqa: SLF001

    async def putting(self: Any, target: Connection, tables: Mapping[str, Sequence[str]]) -> None:
        brought.update(json.loads(row)["id"] for row in tables.get("events", []))
        await put(self, target, tables)

    async def post() -> None:
        brought.clear()
        new.add(await cells[0].post(note(3), company_id=COMPANY))

    monkeypatch.setattr(moving._Move, "_put", putting)  # noqa: SLF001
    after_copy(monkeypatch, post)
    await moving.move(*pools, COMPANY, "a", "b")
    assert brought & (before | new) == new
    assert {*await cells[1].ids(3)} == before | new


@in_schemas
async def test_event_for_many_is_compared_once_in_a_move(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records name all recipients: a large company has many ranges of users."""
    await fill(cells[0])
    id_ = await cells[0].post(note(*USERS), company_id=COMPANY)
    compared = list[str]()
    digests = moving._Move._digests  # noqa: SLF001

    async def comparing(self: Any, store: Any, part: Any, *among: Any, **but: Any) -> list[copying.Digest]:
        found = await digests(self, store, part, *among, **but)
        if but and store is not self._target:
            compared.extend(str(event_id) for table, *_, event_id in found if table == "events")
        return found

    monkeypatch.setattr(copying, "ENTRIES", 1)
    monkeypatch.setattr(moving._Move, "_digests", comparing)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    assert compared.count(id_) == 1
    assert id_ in await cells[1].ids(12)


@in_schemas
async def test_event_that_gets_recipients_during_the_copy_is_compared_again(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    id_ = await cells[0].post(note(1, 2, 3), company_id=COMPANY)
    bring, imported = moving._Move._bring, list[str]()  # noqa: SLF001

    async def bringing(self: Any, part: Any, *source: Any) -> Any:
        found = await bring(self, part, *source)
        if not imported and not source and part.of == "users":
            imported.append(id_)
            assert part.ids == [1]
            await import_lines(cells[0], notification(12, id=id_), company_id=COMPANY)
        return found

    monkeypatch.setattr(copying, "ENTRIES", 1)
    monkeypatch.setattr(moving._Move, "_bring", bringing)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    users = await pools[1].value(
        "select array_agg(id order by id) from recipients r cross join unnest(r.user_ids) id where event_id = $1", id_
    )
    assert (imported, users) == ([id_], [1, 2, 3, 12])
    assert id_ in await cells[1].ids(12)


@in_schemas
async def test_event_that_the_target_deleted_during_the_move_is_brought_again(
    cells: tuple[Api, Api],
    pools: tuple[Database, Database],
    urls: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Retention of the two cells deletes what is old at different times."""
    await fill(cells[0])
    id_ = await cells[0].post(note(1, 2, 3), company_id=COMPANY)
    before = await of_company(pools[0], COMPANY)

    async def expire() -> None:
        assert await retention.run_once(pools[1], 0)
        assert await pools[1].value("select count(*) from events where id = $1", id_) == 0

    after_copy(monkeypatch, expire)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await of_company(pools[1], COMPANY) == before
    await assert_sound(urls[1])


@in_schemas
async def test_retention_of_the_target_deletes_nothing_while_rows_are_written(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes changes of inboxes, at the positions of those that come."""
    await fill(cells[0])
    put, turns = moving._Move._put, set[bool]()  # noqa: SLF001

    async def putting(self: Any, target: Connection, tables: Mapping[str, Sequence[str]]) -> None:
        turns.add(await pools[1].value(queries("retention")["turn"], retention._LOCK))  # noqa: SLF001
        await put(self, target, tables)

    monkeypatch.setattr(moving._Move, "_put", putting)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    assert turns == {False}


@in_schemas
async def test_record_of_recipients_that_replaces_another_is_brought(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention deletes one, and an import adds one for as many users."""
    await fill(cells[0])
    id_ = str(uuid4())
    await import_lines(cells[0], *(notification(user, id=id_) for user in (1, 2, 3)), company_id=COMPANY)

    async def replace() -> None:
        await pools[0].value(
            "update recipients set delivered_at = '2001-01-01' where event_id = $1 and after_user = 0", id_
        )
        days = (datetime.now(UTC) - datetime(2010, 1, 1, tzinfo=UTC)).days
        assert await retention.run_once(pools[0], days) == {"notifications": 1}
        await import_lines(cells[0], notification(12, id=id_), company_id=COMPANY)

    after_copy(monkeypatch, replace)
    await moving.move(*pools, COMPANY, "a", "b")
    users = await pools[1].value(
        "select array_agg(id order by id) from recipients r cross join unnest(r.user_ids) id where event_id = $1", id_
    )
    assert users == [2, 3, 12]


async def post_held(api: Api) -> str:
    """Post an event that waits for its time, and return its id."""
    held = message_event("held", 3, deliver_at=in_future())
    id_: str = (await api.as_service("POST", "/events", json=held, company_id=COMPANY)).json()["id"]
    return id_


@in_schemas
async def test_event_that_is_cancelled_after_the_copy_is_cancelled_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited during the copy, and was accepted long before."""
    await fill(cells[0])
    id_ = await post_held(cells[0])
    await pools[0].rows("update events set accepted_at = accepted_at - interval '1 day' where id = $1", id_)

    async def cancel() -> None:
        assert (await cells[0].as_service("DELETE", f"/events/{id_}", company_id=COMPANY)).status_code == 204

    after_copy(monkeypatch, cancel)
    await moving.move(*pools, COMPANY, "a", "b")
    assert (await state(cells[1], id_))["state"] == "cancelled"


@in_schemas
async def test_event_that_fails_while_the_company_is_locked_is_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    id_ = await post_held(cells[0])
    other = uuid4()
    await jobs.enrol(pools[0], other, "host:0")  # a worker has its job, so that the move does not lock it
    await pools[0].rows("update jobs set worker_id = $2 where id = $1", id_, other)
    before_switch(monkeypatch, partial(die, pools[0], id_), "stash_rest")
    await moving.move(*pools, COMPANY, "a", "b")
    assert (await state(cells[1], id_))["state"] == "failed"
    await jobs.leave(pools[0], other)


@in_schemas
async def test_erasure_that_begins_before_the_locks_is_waited_for(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could change events that are compared, and be over before the switch."""
    await fill(cells[0])
    erasure = uuid4()

    async def begin() -> None:
        await pools[0].rows("insert into erasures (id, user_id, event_ids) values ($1, 999, '{}')", erasure)

    async def finish() -> None:
        await pools[0].rows("delete from erasures where id = $1", erasure)

    said, finishing = list[str](), list[asyncio.Task[None]]()

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("attempt"):
            finishing.append(asyncio.create_task(finish()))

    before_switch(monkeypatch, begin, "lock_users")
    before_switch(monkeypatch, finish, "stash_rest")
    await moving.move(*pools, COMPANY, "a", "b", say)
    assert "attempt 1: an import, erasure or resolution began" in said
    await asyncio.gather(*finishing)


@in_schemas
async def test_command_that_lost_its_turn_changes_nothing(
    cells: tuple[Api, Api],
    pools: tuple[Database, Database],
    urls: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await fill(cells[0])
    began, moved = asyncio.Event(), asyncio.Event()
    receive = moving._Move._receive  # noqa: SLF001

    async def waiting(self: Any, target: Connection) -> None:
        if not began.is_set():
            began.set()
            await moved.wait()
        await receive(self, target)

    monkeypatch.setattr(moving._Move, "_receive", waiting)  # noqa: SLF001
    first = asyncio.create_task(moving.move(*pools, COMPANY, "a", "b"))
    await began.wait()
    await pools[0].rows(
        "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and mode = 'ExclusiveLock'"
        " and database = (select oid from pg_database where datname = current_database())"
    )
    async with opened(urls) as others:
        await moving.move(*others, COMPANY, "a", "b")
    new = await cells[1].post(note(3), company_id=COMPANY)
    moved.set()
    with pytest.raises(Refusal, match="Another"):
        await first
    assert (await cells[1].ids(3))[0] == new


@in_schemas
async def test_erasure_during_the_closing_does_not_end_the_move(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    answers: list[asyncio.Task[Any]] = []
    execute = Connection.execute

    async def doing(self: Connection, query: str, *args: Any, **more: Any) -> Any:
        if query == queries("moving")["lock_users"] and not answers:
            answers.append(asyncio.create_task(cells[0].as_service("DELETE", "/directory/users/1")))
            await asyncio.sleep(0.3)
        return await execute(self, query, *args, **more)

    monkeypatch.setattr(Connection, "execute", doing)
    await moving.move(*pools, COMPANY, "a", "b")
    assert (await answers[0]).status_code in {204, 404, 503}


@in_schemas
async def test_work_that_began_while_the_company_closed_ends_first(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The company is closed once, not again and again until nothing happens to be under way."""
    await fill(cells[0])
    follow, ending = moving._Move._follow, list[asyncio.Task[Any]]()  # noqa: SLF001

    async def end() -> None:
        await asyncio.sleep(1)
        await pools[0].rows("delete from resolutions")

    async def follow_as_one_begins(self: Any, source: Connection | None = None) -> int:
        closing = await pools[0].value("select closed_until is not null from moves where company_id = $1", COMPANY)
        if closing and not ending:
            await pools[0].rows(
                "insert into resolutions (id, how, company_id, event_ids, rewritten)"
                " values ($1, 'read', $2, '{}', false)",
                uuid4(),
                COMPANY,
            )
            ending.append(asyncio.create_task(end()))
        return await follow(self, source)

    monkeypatch.setattr(moving, "ATTEMPTS", 1)
    monkeypatch.setattr(moving._Move, "_follow", follow_as_one_begins)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    assert [task.done() for task in ending] == [True]


@in_schemas
async def test_failed_erasure_is_named_and_can_be_repeated(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    """A failed import of the company does not hold it up, and stays in its cell."""
    await fill(cells[0])
    failed = [uuid4() for _ in range(2)]
    for id_, task in zip(failed, ("erase", "import"), strict=True):
        await pools[0].rows(
            "insert into dead_letters (id, task, lane, attempts, progress, reason)"
            " values ($1, $2, 'bulk', 8, 0, 'an error')",
            id_,
            task,
        )
    await pools[0].rows("insert into erasures (id, user_id, event_ids) values ($1, 999, '{}')", failed[0])
    await pools[0].rows("insert into imports (id, state, company_id) values ($1, 'applying', $2)", failed[1], COMPANY)
    with pytest.raises(Refusal, match=f"the erasure {failed[0]}: an error.*`tocsin replay {failed[0]} --cell a`"):
        await moving.move(*pools, COMPANY, "a", "b")
    pubsub = cells[0].app_state.pubsub
    done = await dead_letters.replay(
        pools[0], pubsub, [failed[0]], datetime.now(UTC), actor_of_command("tocsin replay")
    )
    assert done.jobs == 1
    await reaches(partial(pools[0].value, "select count(*) from erasures"), 0)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await pools[0].value("select count(*) from imports") == 1


@in_schemas
async def test_company_without_users_moves(cells: tuple[Api, Api], pools: tuple[Database, Database]) -> None:
    await cells[0].team(70, company_id=7)
    await moving.move(*pools, 7, "a", "b")
    assert (await cells[1].as_service("GET", "/directory/teams/70")).status_code == 200
    assert (await cells[0].as_service("GET", "/directory/teams/70")).status_code == 404
    await moving.move(*pools, 71, "a", "b")
    assert moving.cell_of(71, [await moving.whereabouts(each) for each in pools]) == "b"


@in_schemas
async def test_request_with_an_idempotency_key_can_be_repeated_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database]
) -> None:
    await fill(cells[0])
    for company in (COMPANY, None):
        keys = {"Idempotency-Key": str(uuid4())}
        first = await cells[0].as_service("POST", "/events", json=note(3), company_id=company, headers=keys)
        assert first.status_code == 202
        await moving.move(*pools, COMPANY, "a", "b")
        again = await cells[1].as_service("POST", "/events", json=note(3), company_id=company, headers=keys)
        assert again.json() == first.json()
        await moving.move(pools[1], pools[0], COMPANY, "b", "a")


@in_schemas
async def test_words_erased_during_the_copy_are_not_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of an event that all have deleted: no inbox changes then."""
    await fill(cells[0])
    email = deepcopy(CATALOGUE.samples["incoming_email"]["event"])
    email["data"]["contact"] |= {"id": CONTACT, "first_name": "Zebulon"}
    id_ = await cells[0].post({**email, "notify": {"users": [1]}})
    await cells[0].as_user(1, "DELETE", f"/notifications/{id_}")
    follow = moving._Move._follow  # noqa: SLF001
    erased: list[bool] = []

    async def erase(self: Any, source: Connection | None = None) -> int:
        if not erased:
            erased.append(True)
            assert "Zebulon" in str(await pools[1].rows("select data from events"))
            await resolve(cells[0], f"contact:{CONTACT}", "erased")
            await settled(cells[0])
        return await follow(self, source)

    monkeypatch.setattr(moving._Move, "_follow", erase)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    assert erased
    assert await pools[1].value("select erased from events where id = $1", id_)
    for table in ("events", "contents", "moved_rows"):
        assert "Zebulon" not in str(await pools[1].rows(f"select t::text from {table} t"))


@in_schemas
async def test_copy_of_a_move_that_is_given_up_is_deleted(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(cells[0])
    await cells[1].people(201, company_id=9)
    await cells[1].post(note(201), company_id=9)
    before, other = await of_company(pools[0], COMPANY), await of_company(pools[1], 9)
    await interrupt(pools, "ab", monkeypatch, "_switch")
    assert await pools[1].value("select count(*) from users where company_id = $1", COMPANY) == len(USERS)
    with pytest.raises(Refusal, match="is being copied to cell b"):
        await moving.move(*pools, COMPANY, "a", "c")
    said = {name: await moving.whereabouts(each) for name, each in zip("ab", pools, strict=True)}
    assert moving.origin_of(COMPANY, "a", said, "a") == "a"
    await moving.give_up(*pools, COMPANY, "a", "b")
    await nothing_of(pools[1], COMPANY)
    assert await pools[1].value("select count(*) from events") == 1
    assert (await of_company(pools[0], COMPANY), await of_company(pools[1], 9)) == (before, other)
    said = {name: await moving.whereabouts(each) for name, each in zip("ab", pools, strict=True)}
    with pytest.raises(Refusal, match="is in cell a already"):
        moving.origin_of(COMPANY, "a", said, "a")
    for url in urls:
        await assert_sound(url)
    await moving.move(*pools, COMPANY, "a", "b")
    assert await of_company(pools[1], COMPANY) == before
    with pytest.raises(Refusal, match="is in cell b"):
        await moving.give_up(*pools, COMPANY, "a", "b")


class Company:
    """A company in which everything happens that can change its rows, for as long as it is not closed."""

    def __init__(self, api: Api, dice: random.Random) -> None:
        self.api, self.database, self.dice = api, api.app_state.database, dice
        self.is_over = False
        self.done: Counter[str] = Counter()

    async def run(self) -> None:
        actions = [
            self.post,
            self.post_without_recipients,
            self.mark,
            self.hold_and_cancel,
            self.fail_and_replay,
            self.resolve,
            self.erase,
            self.put,
            self.register,
            self.settle,
        ]
        while not self.is_over:
            action = self.dice.choice(actions)
            with contextlib.suppress(Locked):
                await action()
                self.done[action.__name__] += 1

    def someone(self, count: int = 3) -> list[int]:
        return self.dice.sample(USERS, count)

    async def accept(self, *users: int, **more: Any) -> str:
        event = {**note(*users), "about": [f"case:{self.dice.randrange(5)}"], **more}
        event["notify"]["unknown"] = "skip"
        company = self.dice.choice([COMPANY, None])
        answer = await self.api.as_service("POST", "/events", json=event, company_id=company)
        assert answer.status_code in {202, 503}, answer.text
        return str(answer.json().get("id", uuid4()))

    async def post(self) -> None:
        await self.accept(*self.someone())

    async def post_without_recipients(self) -> None:
        await self.accept(999)

    async def mark(self) -> None:
        [user] = self.someone(1)
        answer = await self.api.as_user(user, "GET", "/notifications")
        if answer.status_code == 200 and (data := answer.json()["data"]):
            method, path = self.dice.choice([("PUT", "/read"), ("DELETE", "/read"), ("DELETE", "")])
            await self.api.as_user(user, method, f"/notifications/{self.dice.choice(data)['id']}{path}")
        await self.api.as_user(user, "PUT", "/notifications/read", headers={"Idempotency-Key": str(uuid4())})

    async def hold_and_cancel(self) -> None:
        id_ = await self.accept(*self.someone(), deliver_at=in_future())
        if self.dice.random() < 0.5:
            await self.api.as_service("DELETE", f"/events/{id_}")

    async def fail_and_replay(self) -> None:
        ids = [await self.accept(*self.someone(), deliver_at=in_future()) for _ in range(2)]
        await die(self.database, *ids)
        await self.database.rows(queries("jobs")["requeue"], ids[:1], *[None] * 4)

    async def resolve(self) -> None:
        how = self.dice.choice(["read", "gone"])
        body = {"about": f"case:{self.dice.randrange(5)}", "as": how}
        await self.api.as_service("POST", "/events/resolve", json=body, company_id=COMPANY)

    async def erase(self) -> None:
        [user] = self.someone(1)
        if self.dice.random() < 0.2:
            await self.api.as_service("DELETE", f"/directory/users/{user}")
        await self.api.as_service(
            "PUT", f"/directory/users/{user}", json={**PERSON, "first_name": f"N{self.dice.random()}"}
        )

    async def put(self) -> None:
        await self.api.as_service(
            "PUT", "/directory/teams/7", json={"company_id": COMPANY, "name": "T", "users": self.someone(2)}
        )

    async def register(self) -> None:
        [user] = self.someone(1)
        device = {"token": f"{self.dice.randrange(20):064x}", "type": "iOS", "environment": "production"}
        await self.api.as_user(user, "POST", "/devices", json=device)

    async def settle(self) -> None:
        await self.database.rows(
            "with free as materialized (select user_id from heads where user_id = any($2) for update skip locked)"
            " insert into deliveries as p"
            " (event_id, device_id, user_id, lane, is_bulk, type, token_ending, state, settled_at)"
            " select i.event_id, d.id, d.user_id, d.lane, false, 'iOS', '', $1,"
            " case when $1 = 'dead' then clock_timestamp() end"
            " from free join devices d on d.user_id = free.user_id"
            " cross join lateral (select event_id from inbox where user_id = d.user_id limit 3) i"
            " on conflict (event_id, device_id) do update set state = excluded.state, settled_at = excluded.settled_at",
            self.dice.choice(["dead", "held"]),
            self.someone(),
        )


PERSON = {
    "company_id": COMPANY,
    "first_name": "A",
    "last_name": "B",
    "profile_picture": None,
    "email": None,
    "locale": "en",
    "time_zone": "UTC",
    "active": True,
}


@in_schemas
async def test_user_who_comes_during_the_copy_is_in_their_team_in_the_new_cell(
    cells: tuple[Api, Api], pools: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The users have been copied when the user comes, and the teams have not."""
    await fill(cells[0])
    bring = moving._Move._bring  # noqa: SLF001
    newcomer = USERS[-1] + 1

    async def bring_as_one_comes(self: Any, part: Any, source: Connection | None = None) -> Any:
        if part.of == "teams" and not await pools[0].value("select count(*) from users where id = $1", newcomer):
            await cells[0].people(newcomer, company_id=COMPANY)
            await cells[0].team(7, 1, newcomer, company_id=COMPANY)
        return await bring(self, part, source)

    monkeypatch.setattr(moving._Move, "_bring", bring_as_one_comes)  # noqa: SLF001
    await moving.move(*pools, COMPANY, "a", "b")
    assert (await of_company(pools[1], COMPANY))["members"] == [(7, 1), (7, newcomer)]


@in_schemas
async def test_nothing_differs_when_a_company_in_use_leaves(
    cells: tuple[Api, Api], pools: tuple[Database, Database], urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command takes for unchanged is compared in full, at the time at which the company is locked.

    Left out is what is brought later: keys, and results of pushes that wait again.
    """
    seed = int(os.environ.get("SEED", random.randrange(2**32)))  # noqa: S311
    sys.stdout.write(f"SEED={seed}\n")
    await fill(cells[0])
    company = Company(cells[0], random.Random(seed))  # noqa: S311
    follow, bring = moving._Move._follow, moving._Move._bring  # noqa: SLF001
    compared = []

    async def follow_and_compare(self: Any, source: Connection | None = None) -> int:
        count = await follow(self, source)
        if source:
            company.is_over = True
            async with pools[1].connection() as target:
                settled = "select d::text from deliveries d where settled_at is not null and user_id = any($1)"
                ends = [{row[0] for row in await store.fetch(settled, list(USERS))} for store in (source, target)]
                assert ends[0] <= ends[1]
                differing = []
                async for part in self._parts():
                    if part.of == "events":  # more are accepted, and brought later
                        continue
                    mine, theirs = [
                        [
                            row
                            for row in await self._digests(store, part)
                            if row[0] not in {"idempotency_keys", "deliveries"}
                        ]
                        for store in (source, target)
                    ]
                    differing += [part] if mine != theirs else []
                    compared.append(part)
                # if this process was held up, the company has opened, and does not leave
                is_closed = await source.fetchval("select bool_or(closed_until > clock_timestamp()) from moves")
                assert not (differing and is_closed)
        return count

    async def bring_slowly(self: Any, part: Any, source: Connection | None = None) -> Any:
        if source is None:
            await asyncio.sleep(0.05)
        return await bring(self, part, source)

    monkeypatch.setattr(copying, "ENTRIES", 5)
    monkeypatch.setattr(moving, "FEW", -1)
    monkeypatch.setattr(moving, "ATTEMPTS", 30)  # nothing refuses requests, so work can begin at any time
    monkeypatch.setattr(moving._Move, "_follow", follow_and_compare)  # noqa: SLF001
    monkeypatch.setattr(moving._Move, "_bring", bring_slowly)  # noqa: SLF001
    working = [asyncio.create_task(company.run()) for _ in range(3)]
    await moving.move(*pools, COMPANY, "a", "b")
    company.is_over = True
    await asyncio.gather(*working)
    assert {part.of for part in compared} >= {"users", "teams"}
    assert len(company.done) == 10, company.done
    await nothing_of(pools[0], COMPANY)
    for url in urls:
        await assert_sound(url)
