"""`GET /readyz` and `tocsin doctor`: ready means that writes succeed; otherwise the reason is given."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from tests.support.database import locked, make_database, renamed, value, waiting_at
from tests.support.events import accepted, custom
from tests.support.places import fill, tmpfs
from tests.support.processes import data_folder
from tests.support.pushes import IPHONE, becomes, hurry, until_stopped
from tests.support.servers import own_server
from tests.support.service import SECRET, Api, serving
from tests.support.waiting import reaches, until
from tests.support.workers import impatient
from tocsin import jobs, readiness
from tocsin.catalogue import Catalogue
from tocsin.cli.doctor.database import check_database as database_checks
from tocsin.db.connections import Connection, connect
from tocsin.db.migrate import migrate
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.disk_guard import DiskGuard
from tocsin.errors import Locked
from tocsin.ids import new_id
from tocsin.isolation import lock_timeout
from tocsin.postgres.supervisor import Embedded
from tocsin.push import lanes
from tocsin.push.apps import reload_keys
from tocsin.readiness import Readiness
from tocsin.settings import Settings
from tocsin_phones import Phones

pytestmark = pytest.mark.one_cell("problems name their cell, and /readyz is 200 while one cell works")

HELD = 20_000


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable caching of the readiness."""
    monkeypatch.setattr(readiness, "FRESH", 0.0)


async def ready(api: Api) -> tuple[int, Any]:
    """Return the status of `/readyz`, and its answer or the message of its one error."""
    answer = await api.call("GET", "/readyz")
    said = answer.json()
    return answer.status_code, said if answer.status_code == 200 else said["errors"][0]["message"]


async def doctored(url: str) -> dict[str, str]:
    settings = Settings.model_validate({"database_url": url, "jwt_secret": SECRET})
    return {finding.what: str(finding) async for finding in database_checks(settings)}


async def test_readyz_reports_a_read_only_database(server: Embedded, catalogue: Catalogue) -> None:
    url = await make_database(server, name := f"read_only_{new_id().hex}")
    async with serving(url, catalogue, with_worker=False) as api:
        assert (await ready(api))[0] == 200
        admin = await connect(server.url)
        await admin.execute(f"alter database {name} set default_transaction_read_only = on")
        await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
        await admin.close()
        status, said = await ready(api)
        if "read-only" not in said:  # the pool returned a connection that had just been closed
            status, said = await ready(api)
        assert (status, "it is read-only for its role" in said) == (503, True), said
    assert (await doctored(url))["database"].startswith("FAIL database: it accepts no writes: it is read-only")


@pytest.mark.processes
async def test_readyz_reports_a_standby(catalogue: Catalogue) -> None:
    async with data_folder() as data:
        async with Embedded(data) as embedded:
            await migrate(embedded.url)
        (data / "postgres" / "standby.signal").touch()
        async with Embedded(data) as embedded, serving(embedded.url, catalogue, with_worker=False) as api:
            assert await ready(api) == (
                503,
                "The database accepts no writes: it is a standby, which accepts no writes.",
            )
            assert "it is a standby" in (await doctored(embedded.url))["database"]


@pytest.mark.processes
async def test_commits_that_wait_for_a_standby_are_named_and_not_accepted(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "MAX_LOCK_WAIT", 0.5)
    async with own_server() as own:
        url = own.url(database=await own.fresh("tocsin"))
        await migrate(url, accept_undurable=True)
        async with serving(url, catalogue, with_worker=False) as api:
            await api.people(1)
            await own.run("alter system set synchronous_standby_names = 'absent'", "select pg_reload_conf()")
            event = {**custom(1), "id": str(new_id())}
            assert (await api.as_service("POST", "/events", json=event)).status_code == 503
            problem = "commits wait for a synchronous standby, and none confirms them"
            assert await ready(api) == (503, f"The database accepts no writes: {problem}.")
            found = await doctored(url)
            assert found["database"].startswith(f"FAIL database: it accepts no writes: {problem}; start one again")
            assert "locks" not in found
            await own.run("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
            stored = "select count(*) from tocsin.events where id = $1::text::uuid"
            await reaches(lambda: value(url, stored, event["id"]), 1)
            assert (await api.as_service("POST", "/events", json=event)).status_code == 503
            await own.run("alter system reset synchronous_standby_names", "select pg_reload_conf()")
            assert (await api.as_service("POST", "/events", json=event)).status_code == 202


@pytest.mark.processes
async def test_readyz_reports_full_disk_and_accepted_events_arrive_later(catalogue: Catalogue) -> None:
    async with data_folder() as data:
        with tmpfs(data, "200m"):
            async with Embedded(data) as embedded:
                await migrate(embedded.url)
                async with serving(embedded.url, catalogue) as api:
                    await api.people(1)
                    assert (await ready(api))[0] == 200
                    fill(data / "filler")
                    assert await ready(api) == (
                        503,
                        "The database is not available: the disk of the database is full.",
                    )
                    assert "No space left" in (await doctored(embedded.url))["database"]
                    (data / "filler").unlink()
                    assert (await ready(api))[0] == 200
                    id_ = await accepted(api, 1)
                    assert (await api.as_service("GET", f"/events/{id_}?wait=30")).json()["state"] == "delivered"


async def test_queue_depth_ignores_held_jobs_and_counts_up_to_a_limit(database: Database) -> None:
    async def pages() -> int:
        async with database.connection() as connection:
            plan = await connection.fetchval(
                "explain (analyze, buffers, format json) "
                + queries("jobs")["depth"].replace("$1", str(readiness.MAX_COUNTED))
            )
        root = json.loads(plan)[0]["Plan"]
        return int(root["Shared Hit Blocks"] + root["Shared Read Blocks"])

    before = await pages()
    fill_jobs = (
        "insert into jobs (id, task, lane, due_at)"
        " select gen_random_uuid(), 'deliver', 'direct', now() + $1::interval from generate_series(1, $2::int)"
    )
    await database.rows(fill_jobs, timedelta(days=1), HELD)
    assert await pages() <= before + 10
    await database.rows(fill_jobs, timedelta(minutes=-2), HELD)
    found = await Readiness(database, DiskGuard(None)).answer()
    assert found["queue"]["direct"]["due"] == readiness.MAX_COUNTED
    assert found["queue"]["direct"]["stalled"]
    assert not found["queue"]["bulk"]["stalled"]
    assert found["problems"] == ["jobs of the direct queue have waited for more than 60 s: no worker is running"]
    worker = new_id()
    await jobs.enrol(database, worker, "busy")
    found = await Readiness(database, DiskGuard(None)).answer()
    assert found["problems"] == ["jobs of the direct queue have waited for more than 60 s"]
    await jobs.leave(database, worker)
    assert (await jobs.depth(database))["direct"][0] == HELD


async def test_concurrent_readyz_probes_share_one_query(idle: Api, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "FRESH", 3600.0)
    first = await ready(idle)
    assert first[0] == 200
    connection = await connect(url)
    async with locked(connection, "migrations"):
        assert await asyncio.gather(*(ready(idle) for _ in range(50))) == [first] * 50
    await connection.close()


@pytest.fixture
async def dba(url: str) -> AsyncIterator[Connection]:
    connection = await connect(url)
    yield connection
    await connection.close()


async def test_readyz_and_doctor_report_what_blocks_a_worker(
    idle: Api, url: str, catalogue: Catalogue, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "HEARTBEAT_INTERVAL", 0.05)
    await idle.people(1)
    async with impatient(url, catalogue):
        async with locked(dba, "inbox"):
            id_ = await accepted(idle, 1)
            holder = f"the table inbox is locked by another session (process {dba.get_server_pid()}, tocsin)"
            await until(lambda: _reports(idle, "a lock was not released in time", holder))
            said = await doctored(url)
            assert holder in said["locks"]
            [line] = [line for what, line in said.items() if what.startswith("worker ")]
            assert "it is blocked: direct queue: a lock was not released in time" in line
            assert (await idle.call("GET", "/metrics", None)).status_code == 401
        assert (await idle.as_service("GET", f"/events/{id_}?wait=30")).json()["state"] == "delivered"
        await until(lambda: _reports(idle))


@pytest.mark.parametrize("table", ["jobs", "deliveries", "workers"])
async def test_readyz_answers_while_a_table_is_locked_and_names_it(idle: Api, dba: Connection, table: str) -> None:
    async with locked(dba, table):
        status, found = await ready(idle)
        shown = (await idle.as_service("GET", "/metrics", "operations")).text
    assert status == 200
    assert f'tocsin_problem{{reason="the table {table} is locked by another session' in shown
    holder = f"the table {table} is locked by another session (process {dba.get_server_pid()}, tocsin)"
    assert found["problems"] == ["a lock was not released in time", holder]
    assert [found["queue"]["direct"]["stalled"], found["pushes"]["stalled"]] == [table == "jobs", table == "deliveries"]
    await until(lambda: _reports(idle))


async def test_readyz_and_doctor_name_a_session_that_waits_to_lock_a_table(
    idle: Api, url: str, dba: Connection
) -> None:
    changing = await connect(url)
    async with dba.transaction():
        await dba.execute("select from jobs")
        altering = asyncio.create_task(changing.execute("alter table jobs add column further int"))
        try:
            await until(lambda: waiting_at(dba, "jobs"))
            holder = (
                f"the table jobs is locked by another session (process {changing.get_server_pid()}, tocsin)"
                f" that waits for others (process {dba.get_server_pid()}, tocsin)"
            )
            assert (await ready(idle))[1]["problems"] == ["a lock was not released in time", holder]
            assert holder in (await doctored(url))["locks"]
        finally:
            await dba.execute("select pg_cancel_backend($1)", changing.get_server_pid())
            await asyncio.gather(altering, return_exceptions=True)
            await changing.close()
    await until(lambda: _reports(idle))


async def test_readyz_and_doctor_name_an_idle_transaction_that_locks_rows(
    idle: Api, url: str, catalogue: Catalogue, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "HEARTBEAT_INTERVAL", 0.05)
    monkeypatch.setattr(readiness, "MAX_LOCK_WAIT", 0.1)
    await idle.people(1)
    async with impatient(url, catalogue):
        async with dba.transaction():
            await dba.execute("select from heads where user_id = 1 for update")
            id_ = await accepted(idle, 1)
            holder = f"rows of heads are locked by an idle transaction (process {dba.get_server_pid()}, tocsin)"
            await until(lambda: _reports(idle, "a lock was not released in time", holder))
            assert holder in (await doctored(url))["locks"]
        assert (await idle.as_service("GET", f"/events/{id_}?wait=30")).json()["state"] == "delivered"
        await until(lambda: _reports(idle))


async def test_readyz_names_a_session_for_which_only_requests_wait(
    idle: Api, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "MAX_LOCK_WAIT", 0.0)
    await idle.people(1)
    async with dba.transaction():
        await dba.execute("lock table events in share mode")  # as `create index` does
        posting = asyncio.create_task(idle.as_service("POST", "/events", json=custom(1)))
        await until(lambda: waiting_at(dba, "events"))
        holder = f"the table events is locked by another session (process {dba.get_server_pid()}, tocsin)"
        assert (await ready(idle))[1]["problems"] == ["a lock was not released in time", holder]
    assert (await posting).status_code == 202
    await until(lambda: _reports(idle))


async def test_readyz_reports_stopped_lanes_and_failing_providers(
    pushing: Api, phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "HEARTBEAT_INTERVAL", 0.05)
    monkeypatch.setattr(lanes, "MIN_FAILING", 0.5)
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    phones.answer("apns", status=503, reason="ServiceUnavailable")
    failing = await accepted(pushing, 1)
    said = await until(lambda: _only_problem(pushing))
    assert re.fullmatch(r"pushes of apns/default fail since [-\d]{10} [:\d]{5} UTC: 503 ServiceUnavailable", said)
    phones.forget()
    await hurry(pushing)
    await becomes(pushing, failing, {"delivered": 1})
    await until(lambda: _reports(pushing))
    phones.answer("apns", status=403, reason="InvalidProviderToken")
    await accepted(pushing, 1)
    await until(lambda: _reports(pushing, "push lane apns/default has stopped: 403 InvalidProviderToken"))


async def test_lane_without_keys_is_reported_as_that_while_pushes_wait(pushing: Api, phones: Phones) -> None:
    await pushing.as_user(1, "POST", f"/notifications/devices/{IPHONE}")
    phones.answer("apns", status=403, reason="InvalidProviderToken")
    waiting = await accepted(pushing, 1)
    await until_stopped(pushing)
    database = pushing.app_state.database
    await database.value(
        "update workers set lanes = array_remove(lanes, 'apns/default') returning 1"
    )  # as one without keys
    await until(lambda: _reports(pushing, "push lane apns/default has no keys at any running worker"))
    said = (await pushing.as_service("GET", "/operations/lanes", "operations")).json()["data"]
    [lane] = [lane for lane in said if lane["name"] == "apns/default"]
    assert lane | {"due": 1, "stopped_at": None, "problem": "has no keys at any running worker"} == lane
    assert (
        'tocsin_lane_stopped{lane="apns/default"} 0' in (await pushing.as_service("GET", "/metrics", "operations")).text
    )
    [device] = (await pushing.as_service("GET", f"/events/{waiting}/recipients/1", "operations")).json()["devices"]
    assert device["what"] == "apns/default has no keys at any running worker"
    [device] = (await pushing.as_service("GET", "/operations/users/1", "operations")).json()["devices"]
    assert (device["state"], device["what"]) == ("unserved", "no key is set for this provider and app")

    await database.value("delete from deliveries where event_id = $1", waiting)
    await until(lambda: _reports(pushing))
    said = (await pushing.as_service("GET", "/operations/lanes", "operations")).json()["data"]
    assert "apns/default" not in {lane["name"] for lane in said}
    [device] = (await pushing.as_service("GET", f"/events/{waiting}/recipients/1", "operations")).json()["devices"]
    assert device["state"] == "unserved"
    await database.value("update workers set lanes = null returning 1")  # as one of an earlier release
    await until(lambda: _reports(pushing, "push lane apns/default has stopped: 403 InvalidProviderToken"))


async def _only_problem(api: Api) -> str | None:
    [*problems] = (await ready(api))[1]["problems"]
    return problems[0] if len(problems) == 1 else None


async def test_an_error_because_of_a_lock_says_so(idle: Api, dba: Connection) -> None:
    async with locked(dba, "inbox"):
        with lock_timeout(0.1), pytest.raises(Locked, match="Another session of the database holds a lock"):
            await idle.app_state.database.rows("select from inbox")


async def _reports(api: Api, *problems: str) -> bool:
    return bool((await ready(api))[1]["problems"] == list(problems))


async def test_blocked_lane_reports_its_reason(
    pushing: Api, phones: Phones, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "HEARTBEAT_INTERVAL", 0.05)
    await pushing.as_user(1, "POST", f"/notifications/devices/{'aa' * 32}")
    async with renamed(dba, "preferences"):
        id_ = await accepted(pushing, 1)
        await until(lambda: _lane_reports(pushing, "an error: UndefinedTableError"))
    await becomes(pushing, id_, {"delivered": 1})
    await until(lambda: _lane_reports(pushing, None))
    assert phones.pushes("apns")


async def test_key_reload_retries_lane_waiting_for_access_token(
    pushing: Api, phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "HEARTBEAT_INTERVAL", 0.05)
    await pushing.as_user(
        1, "POST", "/notifications/devices/android-token-of-thirty-two-characters:1", json={"type": "Android"}
    )
    phones.answer("oauth", status=503, reason="busy; really", headers={"Retry-After": "120"})
    phones.answer("fcm", status=401, reason="UNAUTHENTICATED", times=1)  # the token that there may be already
    id_ = await accepted(pushing, 1)
    await until(lambda: _lane_reports(pushing, "no access token for FCM: busy, really: busy, really", "fcm/default"))
    assert (await pushing.as_service("GET", f"/events/{id_}")).json()["pushes"]["delivered"] == 0
    phones.forget()
    assert pushing.worker
    assert pushing.worker.dispatcher
    reload_keys(pushing.app_state.lanes, pushing.app_state.settings)
    await pushing.worker.dispatcher.keys_reloaded()
    await until(lambda: _lane_reports(pushing, None, "fcm/default"))
    await becomes(pushing, id_, {"delivered": 1})


async def test_key_reload_retries_lane_waiting_for_retry_after(
    pushing: Api, phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "HEARTBEAT_INTERVAL", 0.05)
    await pushing.as_user(
        1, "POST", "/notifications/devices/android-token-of-thirty-two-characters:1", json={"type": "Android"}
    )
    phones.answer("fcm", status=429, reason="QUOTA_EXCEEDED", headers={"Retry-After": "7200"}, times=1)
    await accepted(pushing, 1)
    said = await until(lambda: _problem_of(pushing, "fcm/default"))
    assert said.startswith("it waits until ")
    assert said.endswith("as the provider asked: 429 QUOTA_EXCEEDED")
    second = await accepted(pushing, 1)
    assert pushing.worker
    assert pushing.worker.dispatcher
    reload_keys(pushing.app_state.lanes, pushing.app_state.settings)
    await pushing.worker.dispatcher.keys_reloaded()
    await becomes(pushing, second, {"delivered": 1})
    await until(lambda: _lane_reports(pushing, None, "fcm/default"))


async def _problem_of(api: Api, name: str) -> str | None:
    lanes = (await api.as_service("GET", "/operations/lanes", "operations")).json()["data"]
    return next((lane["problem"] for lane in lanes if lane["name"] == name), None)


async def _lane_reports(api: Api, problem: str | None, name: str = "apns/default") -> bool:
    lanes = (await api.as_service("GET", "/operations/lanes", "operations")).json()["data"]
    return any(lane["name"] == name and lane["problem"] == problem for lane in lanes)
