"""The deep checks of the doctor find every violated invariant, and nothing in a sound database."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import refusal
from tests.support.database import locked, url_for, value
from tests.support.events import custom, in_future, note, post
from tests.support.servers import own_server
from tests.support.service import Api, settings_for
from tests.support.waiting import reaches
from tests.support.workers import work
from tocsin import invariants, retention
from tocsin.cli.doctor.deep import check_deeply
from tocsin.db.connections import Connection, connect
from tocsin.db.errors import DRIVER_ERRORS
from tocsin.db.migrate import migrate
from tocsin.postgres.supervisor import Embedded
from tocsin.retention import run_once
from tocsin.settings import read_settings

ID = "00000000-0000-0000-0000-000000000001"
PUSH = "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending)"

BREAK = {
    "entries_without_content": "delete from contents",
    "entries_without_event": "update inbox set event_id = gen_random_uuid() where user_id = 1",
    "entries_without_owner": "update inbox set user_id = 99 where user_id = 1",
    "wrong_counts": "update heads set unread = unread + 1 where user_id = 1",
    "wrong_positions": "update heads set position = position + 1 where user_id = 1",
    "backward_times": "update inbox set created_at = created_at - position * interval '1 hour' where user_id = 1",
    "lost_events": "delete from recipients",
    "lost_work": f"insert into erasures (id, user_id, event_ids) values ('{ID}', 1, '{{}}')",
    "jobs_without_object": f"insert into jobs (id, task, lane, due_at) values ('{ID}', 'resolve', 'bulk', 'infinity')",
    "deliveries_without_owner": f"{PUSH} select id, '{ID}', 99, 'apns/default', false, 'iOS', 'a' from events limit 1",
    "deliveries_without_event": f"{PUSH} values ('{ID}', '{ID}', 1, 'apns/default', false, 'iOS', 'abc')",
    "leases_without_worker": f"update jobs set worker_id = '{ID}'",
    "missing_subjects": "delete from subjects",
    "leftover_changes": "insert into changes (user_id, position, change) values (99, 1, 'read')",
    "leftover_contents": f"insert into contents (event_id, language, body) values ('{ID}', 'en', '')",
    "leftover_recipients": "insert into recipients (event_id, after_user, user_ids, team_ids, reached, dropped)"
    f" values ('{ID}', 0, '{{}}', '{{}}', 0, 0)",
    "leftover_subjects": f"insert into subjects (subject, event_id) values ('case:1', '{ID}')",
    "leftover_keys": f"insert into event_keys (service, company_id, key, event_id) values ('crm', 0, 'a', '{ID}')",
}
"""A statement that violates each invariant."""


async def violations(url: str) -> dict[str, invariants.Violation]:
    connection = await invariants.open_session(url)
    try:
        found = [violation async for violation in invariants.check_rows(connection)]
        found += [violation async for violation in invariants.check_indexes(connection)]
        return {violation.name: violation for violation in found if violation}
    finally:
        await connection.close()


@pytest.fixture
async def used(idle: Api, url: str) -> str:
    """A database with what a service writes: entries of each state, changes, subjects, a held event, no worker."""
    await idle.people(1, 2, 3)
    ids = [(await post(idle, note(1, 2))).json()["id"] for _ in range(6)]
    await work(idle)
    await idle.as_user(1, "PUT", f"/notifications/{ids[0]}/read")
    await idle.as_user(1, "DELETE", f"/notifications/{ids[1]}")
    await idle.as_user(2, "PUT", "/notifications/read")
    database = idle.app_state.database
    await database.value("update recipients set delivered_at = '2020-01-01' where event_id = any($1)", ids[1:3])
    assert await retention.run_once(database, 30) == {"notifications": 2}
    held = (await post(idle, {**custom(3), "deliver_at": in_future()})).json()["id"]
    cancelled = (await post(idle, {**custom(3), "deliver_at": in_future()})).json()["id"]
    assert (await idle.as_service("DELETE", f"/events/{cancelled}")).status_code == 204
    assert held
    return url


async def test_sound_database_has_no_violation(used: str) -> None:
    assert await violations(used) == {}


async def test_erasures_resolutions_and_retention_violate_nothing(api: Api, server: Embedded) -> None:
    url = url_for(server, "busy")
    await api.people(1, 2, 3)
    ids = [await api.post(note(1, 2, 3)) for _ in range(4)]
    alone = await api.post(note(2))
    for how, about in (("read", "1"), ("gone", "2")):
        await api.post({**custom(1, 2), "about": [f"order:{about}"]})
        await api.as_service("POST", "/events/resolve", json={"about": f"order:{about}", "as": how})
    await api.as_user(3, "DELETE", f"/notifications/{ids[0]}")
    assert (await api.as_service("DELETE", "/directory/users/2")).status_code == 204
    await reaches(lambda: value(url, "select count(*) from jobs"), 0)
    assert await violations(url) == {}
    aged = "update recipients set delivered_at = now() - interval '3 days' where event_id = any($1::text[]::uuid[])"
    await value(url, aged, [ids[0], ids[1], alone])
    await run_once(api.app_state.database, 1)
    assert await value(url, "select count(*) from events where id = any($1::text[]::uuid[])", ids) == 2
    assert await violations(url) == {}
    await value(url, "update changes set changed_at = now() - interval '8 days'")
    await run_once(api.app_state.database, 1)
    assert await value(url, "select count(*) from changes") == 0
    assert await violations(url) == {}


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each range be one user, one event or one page, and report each."""
    small = [replace(ranges, size=(1,) * len(ranges.size)) for ranges in invariants.RANGES]
    monkeypatch.setattr(invariants, "RANGES", small)
    monkeypatch.setattr(invariants, "PROGRESS_INTERVAL", 0)


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize("name", invariants.INVARIANTS)
async def test_violation_is_found_by_its_invariant(used: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariants, "SETTLING_TIME", 0)
    await value(used, BREAK[name])
    found = await violations(used)
    assert name in found
    assert found[name].what in str(found[name])


async def test_checks_report_what_is_checked_next(used: str) -> None:
    said: list[str] = []
    connection = await invariants.open_session(used)
    found = [violation async for violation in invariants.check_rows(connection, said.append)]
    assert len(found) == len(invariants.INVARIANTS)
    assert said[:2] == ["rows of users, 0 %", "rows of events, 0 %"]
    assert said[-3:] == [f"rows: {what}" for what in invariants.WHOLE.values()]
    said.clear()
    found = [violation async for violation in invariants.check_indexes(connection, said.append)]
    assert len(said) == len(found)
    assert said[0].startswith(f"indexes, 1 of {len(found)}: ")
    await connection.close()


@pytest.mark.usefixtures("small_ranges")
async def test_violation_in_any_range_is_found_and_repaired(used: str) -> None:
    connection = await invariants.open_session(used, may_write=True)
    for broken in ("1", "2", "3", "1, 3"):
        await connection.execute(f"update heads set total = total + 1 where user_id in ({broken})")
        for repair in (False, True):
            said: list[str] = []
            check = invariants.check_rows(connection, said.append, repair=repair)
            [found] = [violation async for violation in check if violation]
            assert (found.name, sorted(found.found)) == ("wrong_counts", broken.split(", "))
            assert found.repaired == (len(found.found) if repair else 0)
            assert [line for line in said if "users" in line] == [f"rows of users, {done} %" for done in (0, 0, 50)]
    assert await violations(used) == {}
    await connection.close()


async def test_violations_beyond_the_number_that_is_listed_are_repaired(
    used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = invariants.RANGES[0]
    monkeypatch.setattr(invariants, "MAX_FOUND", 2)
    monkeypatch.setattr(invariants, "RANGES", [replace(users, size=(2, users.size[1]))])
    connection = await invariants.open_session(used, may_write=True)
    await connection.execute("update heads set total = total + 1")
    [found] = [violation async for violation in invariants.check_rows(connection, repair=True) if violation]
    assert (sorted(found.found), found.repaired) == (["1", "2"], 3)
    assert await violations(used) == {}
    await connection.close()


async def test_deep_checks_stop_at_a_locked_table_and_say_so(used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariants, "LOCK_TIMEOUT", 0.2)
    dba = await connect(used)
    async with locked(dba, "contents"):
        found = [each async for each in check_deeply(settings_for(database_url=used), repair=False)]
    await dba.close()
    said = "stopped, because another session locks a table that they read; end its transaction, and repeat"
    assert str(found[-1]) == f"FAIL deep checks: {said}"
    assert await violations(used) == {}


async def test_missing_position_is_found(used: str) -> None:
    await value(used, "delete from changes where user_id = 1 and change = 'read'")
    assert "wrong_positions" in await violations(used)


async def test_doubled_position_is_found(used: str) -> None:
    await value(used, "update inbox set position = 5 where user_id = 1 and position = 6")
    assert "wrong_positions" in await violations(used)


async def test_lease_that_ends_during_the_check_is_no_violation(used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariants, "SETTLING_TIME", 0)
    await value(used, BREAK["leases_without_worker"])
    found, before = invariants._found, list[Any]()  # noqa: SLF001 - the lease ends after the first look

    async def find_and_end(connection: Connection, name: str, *between: Any) -> list[Any]:
        here = await found(connection, name, *between)
        if name == "leases_without_worker" and not before:
            before.extend(here)
            await value(used, "update jobs set worker_id = null")
        return here

    monkeypatch.setattr(invariants, "_found", find_and_end)
    assert "leases_without_worker" not in await violations(used)
    assert before


async def test_wrong_counts_are_repaired_and_clients_load_the_list_again(used: str, idle: Api) -> None:
    cursor = (await idle.as_user(1, "GET", "/notifications/changes")).json()["cursor"]
    before = await idle.unread(1)
    await value(used, BREAK["wrong_counts"])
    assert await idle.unread(1) == before + 1
    settings = settings_for(database_url=used)
    found = {each.what: each async for each in check_deeply(settings, repair=False)}
    assert (found["rows"].level, found["rows"].remedy) == ("FAIL", "correct them with --repair")
    assert await idle.unread(1) == before + 1
    repaired = {each.what: each async for each in check_deeply(settings, repair=True)}
    assert repaired["rows"].remedy == "corrected 1"
    assert await idle.unread(1) == before
    changes = await idle.as_user(1, "GET", f"/notifications/changes?since={cursor}")
    assert changes.json()["resync"] is True
    assert await violations(used) == {}


async def test_repair_of_other_violations_changes_nothing(used: str) -> None:
    await value(used, "delete from contents")
    found = [each async for each in check_deeply(settings_for(database_url=used), repair=True)]
    assert [(each.level, each.what) for each in found if each.level == "FAIL"] == [("FAIL", "rows")]
    assert "entries of inboxes without content" in str(found[-1])


async def test_session_of_the_checks_writes_nothing(used: str) -> None:
    connection = await invariants.open_session(used)
    with pytest.raises(DRIVER_ERRORS, match="read-only transaction"):
        await connection.execute("delete from contents")
    await connection.close()


def damage(file: Path, page: int, at: int) -> None:
    """Change a byte of a page."""
    with file.open("r+b") as opened:
        opened.seek(page * 8192 + at)
        byte = opened.read(1)
        opened.seek(page * 8192 + at)
        opened.write(bytes([byte[0] ^ 0xFF]))


@pytest.mark.processes
async def test_damaged_page_and_index_are_found(place: Path) -> None:
    async with Embedded(place / "data") as server:
        await migrate(server.url)
        await value(server.url, "insert into teams select n, 1, 'Team' from generate_series(1, 5000) n")
        table, index = [
            await value(server.url, f"select pg_relation_filepath('{name}')") for name in ("teams", "teams_pkey")
        ]
        await value(server.url, "create index teams_part on teams (company_id, id) where id > 4000")
        await value(server.url, "update pg_index set indisready = false where indexrelid = 'teams_part'::regclass")
        await value(server.url, "insert into teams values (6000, 1, 'Team')")
        await value(server.url, "update pg_index set indisready = true where indexrelid = 'teams_part'::regclass")
        settings = read_settings({}, Path("/nonexistent"), data_dir=place / "data")
        found = {each.what: each async for each in check_deeply(settings, repair=False)}
        assert found["pages"].level == "ok"
        assert found["indexes"].level == "FAIL"
        assert "teams_part: it finds 1000 rows of 1001" in found["indexes"].finding
        assert found["indexes"].finding.startswith("1 of ")
    assert index
    damage(place / "data/postgres" / table, 3, 4000)
    async with Embedded(place / "data"):
        found = {each.what: each async for each in check_deeply(settings, repair=False)}
        assert found["pages"].level == "FAIL"
        assert f"{table}" in found["pages"].finding
        assert "block 3" in found["pages"].finding


@pytest.mark.processes
async def test_deep_checks_need_no_privilege_on_an_external_database() -> None:
    async with own_server() as server:
        await server.role("app")
        database = await server.fresh("checked", owner="app")
        url = server.url("app", database)
        await migrate(url, accept_undurable=True)
        found = [each async for each in check_deeply(settings_for(database_url=url), repair=False)]
        assert [(each.level, each.what) for each in found] == [("ok", "pages"), ("ok", "indexes"), ("ok", "rows")]


async def test_deep_checks_need_a_running_database(tmp_path: Path) -> None:
    settings = read_settings({}, Path("/nonexistent"), data_dir=tmp_path)
    [found] = [each async for each in check_deeply(settings, repair=False)]
    assert (found.level, found.what, found.remedy) == ("FAIL", "deep checks", "start `tocsin serve`")


def test_repair_needs_deep(tmp_path: Path) -> None:
    assert refusal("doctor", "--repair", cwd=tmp_path) == "tocsin: --repair needs --deep."
