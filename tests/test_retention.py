"""Retention deletes expired rows and nothing else."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import count
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from tests.support.database import blocked, everything, renamed
from tests.support.events import custom, id_made, in_future, message_event, post, state
from tests.support.imports import import_lines, notification
from tests.support.service import Api
from tests.support.waiting import bounded, reaches, until
from tocsin import fanout, inbox, invariants, jobs, retention
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.ids import new_id
from tocsin.retention import run_once

OLD = timedelta(days=31)


async def age(api: Api, table: str, column: str, days: float, where: str = "true") -> None:
    await api.app_state.database.value(
        f"update {table} set {column} = {column} - make_interval(secs => $1) where {where}", days * 86400
    )


async def go_round(api: Api, days: int | None = None) -> dict[str, int]:
    return await retention.run_once(api.app_state.database, days)


async def cursor(api: Api, user: int) -> str:
    found: str = (await api.as_user(user, "GET", "/notifications/changes")).json()["cursor"]
    return found


async def changes(api: Api, user: int, since: str) -> dict[str, Any]:
    found: dict[str, Any] = (await api.as_user(user, "GET", f"/notifications/changes?since={since}")).json()
    return found


async def test_retention_deletes_nothing_early(api: Api) -> None:
    await api.people(1)
    id_ = await api.post(custom(1), headers={"Idempotency-Key": "a"})
    await api.as_user(1, "PUT", f"/notifications/{id_}/read")
    await age(api, "idempotency_keys", "kept_at", 0.99)
    await age(api, "changes", "changed_at", 6.9)
    await age(api, "recipients", "delivered_at", 29.9)
    await age(api, "events", "accepted_at", 40)
    before = await everything(api)
    assert await go_round(api, 30) == {}
    assert await everything(api) == before


async def test_retention_deletes_nothing_while_the_clocks_disagree(
    api: Api, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    await api.people(1)
    await api.post(custom(1), headers={"Idempotency-Key": "a"})
    await age(api, "idempotency_keys", "kept_at", 400)
    await age(api, "recipients", "delivered_at", 400)
    before = await everything(api)
    with monkeypatch.context() as patched:
        patched.setattr(retention, "MAX_AHEAD", -timedelta(hours=1))
        assert await go_round(api, 30) == {}
    assert await everything(api) == before
    assert "the database's clock is ahead of this machine's" in capfd.readouterr().out
    assert await go_round(api, 30) == {"idempotency_keys": 1, "notifications": 1}


async def test_retention_deletes_idempotency_keys_after_a_day(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH_SIZE", 2)
    await api.people(1)
    for key in "abcde":
        await api.post(custom(1), headers={"Idempotency-Key": key})
    await age(api, "idempotency_keys", "kept_at", 1.1, "key <> 'e'")
    assert await go_round(api) == {"idempotency_keys": 4}
    assert await api.app_state.database.value("select string_agg(key, '') from idempotency_keys") == "e"


async def test_cursor_older_than_retention_requires_resync(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH_SIZE", 2)
    await api.people(1, 2)
    ids = [await api.post(custom(1, 2)) for _ in range(5)]
    old = await cursor(api, 1)
    for id_ in ids[:4]:
        await api.as_user(1, "PUT", f"/notifications/{id_}/read")
    await age(api, "changes", "changed_at", 7.1)
    since, others = await cursor(api, 1), await cursor(api, 2)
    await api.as_user(1, "PUT", f"/notifications/{ids[4]}/read")
    await api.as_user(2, "PUT", f"/notifications/{ids[4]}/read")
    assert await go_round(api) == {"changes": 4}
    assert (await changes(api, 1, old))["resync"] is True
    for user, given in ((1, since), (2, others)):
        assert (await changes(api, user, given))["data"] == [{"event": "read", "data": {"id": ids[4]}}]


async def test_retention_deletes_dead_letters_after_30_days(api: Api) -> None:
    await api.people(1)
    id_ = (await post(api, {**custom(1), "deliver_at": in_future()})).json()["id"]
    await api.app_state.database.value(
        "with gone as (delete from jobs returning *)"
        " insert into dead_letters (id, task, lane, attempts, progress, reason)"
        " select id, task, lane, 8, 0, 'why' from gone"
    )
    await age(api, "dead_letters", "died_at", 29)
    assert await go_round(api) == {}
    assert (await state(api, id_))["state"] == "failed"
    await age(api, "dead_letters", "died_at", 2)
    assert await go_round(api) == {"dead_letters": 1}
    assert (await state(api, id_))["state"] == "cancelled"


async def test_dead_letter_that_is_replayed_when_it_expires_is_not_cancelled(idle: Api, dba: Connection) -> None:
    await idle.people(1)
    id_ = UUID((await post(idle, custom(1))).json()["id"])
    database, worker = idle.app_state.database, new_id()
    await jobs.claim(database, worker, "direct", 1)
    await jobs.move_to_dead_letters(database, worker, id_, "it failed")
    await age(idle, "dead_letters", "died_at", 31)
    async with asyncio.TaskGroup() as group, dba.transaction():
        await dba.fetch(queries("jobs")["requeue"], [id_], *[None] * 4)
        expiring = group.create_task(go_round(idle))
        await until(lambda: expiring.done() or blocked(dba))
    assert (await state(idle, id_))["state"] == "queued"
    assert await database.value("select count(*) from cancellations") == 0


FAILED_WORK = {
    "import": "insert into imports (id, state) values ($1, 'applying')",
    "erase": "insert into erasures (id, user_id, event_ids) values ($1, 1, array[$1::uuid])",
    "resolve": "insert into resolutions (id, how, event_ids, rewritten) values ($1, 'erased', array[$1::uuid], false)",
}


@pytest.mark.parametrize("task", FAILED_WORK)
async def test_retention_keeps_failed_work_only_if_it_must_be_done(api: Api, task: str) -> None:
    database, id_ = api.app_state.database, new_id()
    await database.value(FAILED_WORK[task], id_)
    await database.value(
        "insert into import_lines (import_id, number, part, user_id, body)"
        " select id, number, 'user', number, '{}' from imports cross join generate_series(1, 3) number"
    )
    await database.value("insert into dead_letters values ($1, $2, 'bulk', 8, 0, '', now())", id_, task)
    await age(api, "dead_letters", "died_at", 29)
    before = await everything(api)
    assert await go_round(api) == {}
    assert await everything(api) == before
    await age(api, "dead_letters", "died_at", 2)
    if task == "import":
        assert await go_round(api) == {"dead_letters": 1, "imports": 3}
        assert await database.value("select count(*) from imports") == 0
    else:
        assert await go_round(api) == {}
    assert await violations(api) == []


async def test_retention_deletes_old_notifications_and_related_rows(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH_SIZE", 4)
    monkeypatch.setattr(fanout, "DIRECT_MAX_RECIPIENTS", 3)
    monkeypatch.setattr(fanout, "BULK_CHUNK_SIZE", 4)
    people = range(1, 11)
    await api.people(*people)
    await api.team(7, *people)
    old = [
        await api.post({**custom(1, 2, body="geheim"), "about": ["order:7"], "key": "k"}),
        await api.post(custom(1, teams=(7,), body="geheim")),
        await api.post(custom(1, body="geheim")),
        (await post(api, message_event("geheim", 1, deliver_at=in_future(), key="c"))).json()["id"],
    ]
    await api.as_service("DELETE", f"/events/{old[3]}")
    await api.as_user(1, "PUT", f"/notifications/{old[0]}/read")
    await api.as_user(1, "DELETE", f"/notifications/{old[2]}")
    await age(api, "recipients", "delivered_at", 31)
    await age(api, "events", "accepted_at", 31)
    held = (await post(api, message_event("later", 1, deliver_at=in_future()))).json()["id"]
    await age(api, "events", "accepted_at", 31, f"id = '{held}'")
    kept = await api.post(custom(*people))
    since = await cursor(api, 1)
    assert set(await go_round(api, 30)) == {"notifications", "events"}
    for table, text in (await everything(api)).items():
        ids = () if table == "audit_entries" else old  # the audit log names what was cancelled
        assert not [word for word in (*ids, "geheim", "order:7") if word in text] or table == "changes", table
    assert [(await api.inbox(user))["pagination"]["total"] for user in people] == [1] * 10
    assert [(await api.inbox(user))["pagination"]["unread"] for user in people] == [1] * 10
    assert await api.ids(1) == [kept]
    told = (await changes(api, 1, since))["data"]
    assert {change["event"] for change in told} == {"deleted"}
    gone = {id_ for change in told for id_ in change["data"].get("ids", [change["data"].get("id")])}
    assert gone == set(old[:2])
    assert (await state(api, held))["state"] == "held"
    for id_ in old:
        assert (await api.as_service("GET", f"/events/{id_}")).status_code == 404


@pytest.mark.parametrize("found_by", ["id", "time"])
async def test_concurrent_retention_runs_keep_counts_exact(
    api: Api, found_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_SIZE", 3)
    await api.people(1, 2, 3)
    ids = [await (old_event(api, 1, 2, 3) if found_by == "id" else api.post(custom(1, 2, 3))) for _ in range(20)]
    ids += [await api.post(custom(1, 2, 3)) for _ in range(10)]
    if found_by == "time":
        await age(api, "recipients", "delivered_at", 31, f"event_id in ({', '.join(repr(id_) for id_ in ids[:20])})")
    await asyncio.gather(
        *(go_round(api, 30) for _ in range(3)),
        *(api.as_user(user, "PUT", f"/notifications/{id_}/read") for user in (1, 2) for id_ in ids[10:25]),
        *(api.as_user(3, "DELETE", f"/notifications/{id_}") for id_ in ids[15:25]),
    )
    await go_round(api, 30)
    for user, due in ((1, (10, 5)), (2, (10, 5)), (3, (5, 5))):
        page = await api.inbox(user, "?per_page=100")
        counts = page["pagination"]["total"], page["pagination"]["unread"]
        assert counts == due == (len(page["data"]), sum(not entry["read"] for entry in page["data"]))


async def old_event(api: Api, *users: int, **more: Any) -> str:
    """Post an event that was made, accepted and delivered 31 days ago."""
    id_ = await api.post({**custom(*users, body="geheim"), "id": id_made(datetime.now(UTC) - OLD), **more})
    await age(api, "recipients", "delivered_at", OLD.days, f"event_id = '{id_}'")
    await age(api, "events", "accepted_at", OLD.days, f"id = '{id_}'")
    return id_


async def events_of(api: Api) -> list[str]:
    return [row["id"] for row in await api.app_state.database.rows("select id::text from events order by id")]


async def violations(api: Api) -> list[str]:
    async with api.app_state.database.connection() as connection:
        return [str(found) async for found in invariants.check_rows(connection) if found]


@pytest.mark.parametrize("size", [1, 2, 1000])
async def test_old_events_are_deleted_by_id_with_all_that_belongs_to_them(
    api: Api, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "DIRECT_MAX_RECIPIENTS", 3)
    monkeypatch.setattr(fanout, "BULK_CHUNK_SIZE", 4)
    people = range(1, 11)
    await api.people(*people)
    await api.team(7, *people)
    await api.as_user(1, "POST", f"/notifications/devices/{'ab' * 32}")
    since = await cursor(api, 1)
    kept = await api.post(custom(*people))
    old = [
        await old_event(api, 1, 2, about=["order:7"], key="k"),
        await old_event(api, notify={"teams": [7]}),
        await old_event(api, 1),
        (
            await post(api, message_event("geheim", 1, deliver_at=in_future(), id=id_made(datetime.now(UTC) - OLD)))
        ).json()["id"],
    ]
    await api.as_service("DELETE", f"/events/{old[3]}")
    await age(api, "events", "accepted_at", OLD.days, f"id = '{old[3]}'")
    monkeypatch.setattr(retention, "BATCH_SIZE", size)
    assert await go_round(api, 30) == {"notifications": 4}
    for table, text in (await everything(api)).items():
        ids = () if table == "audit_entries" else old  # the audit log names what was cancelled
        assert not [word for word in (*ids, "geheim", "order:7") if word in text] or table == "changes", table
    assert [await api.ids(user) for user in people] == [[kept]] * 10
    assert [(await api.inbox(user))["pagination"]["unread"] for user in people] == [1] * 10
    told = (await changes(api, 1, since))["data"]
    assert [change["event"] for change in told if change["event"] != "deleted"] == ["notification"]
    assert await violations(api) == []


async def test_events_among_old_ids_that_are_needed_stay(api: Api) -> None:
    await api.people(1, 2)
    made = datetime.now(UTC) - OLD
    first = await old_event(api, 1)
    held = (await post(api, message_event("later", 1, deliver_at=in_future(), id=id_made(made)))).json()["id"]
    failed = (await post(api, message_event("never", 1, deliver_at=in_future(), id=id_made(made)))).json()["id"]
    await api.app_state.database.value(
        "with gone as (delete from jobs where id = $1 returning *)"
        " insert into dead_letters (id, task, lane, attempts, progress, reason)"
        " select id, task, lane, 8, 0, 'why' from gone",
        failed,
    )
    delivered_late = await api.post({**custom(1, 2), "id": id_made(made)})
    await age(api, "events", "accepted_at", OLD.days)
    young = await api.post({**custom(2), "id": id_made(made)})
    last = await old_event(api, 2)
    assert await go_round(api, 30) == {"notifications": 2}
    assert await events_of(api) == sorted([held, failed, delivered_late, young])
    assert first not in await api.ids(1)
    assert last not in await api.ids(2)
    assert await api.ids(1) == [delivered_late]
    assert await api.ids(2) == [young, delivered_late]
    assert [(await state(api, id_))["state"] for id_ in (held, failed)] == ["held", "failed"]
    assert await violations(api) == []
    assert await go_round(api, 30) == {}


async def test_each_step_reads_the_next_events_also_if_those_before_stay(
    database: Database, dba: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_SIZE", 2)
    await dba.execute(
        "insert into events (id, kind, data, params, users, teams, subjects, accepted_at)"
        " select ('ffffffff-0000-0000-0000-00000000000' || n)::uuid, 'custom', '{}', '{}', '{1}', '{}', '{}',"
        " now() - make_interval(days => 40, hours => -n / 2) from generate_series(1, 8) n"
    )
    await dba.execute(  # they were delivered late
        "insert into recipients (event_id, after_user, user_ids, team_ids, reached, dropped)"
        " select id, 0, '{1}', '{0}', 1, 0 from events order by id limit 5"
    )
    first = datetime.min.replace(tzinfo=UTC), UUID(int=0)
    row = await database.row(queries("retention")["old_events"], 2, 30, *first)
    assert row is not None
    assert (row["count"], row["old"], str(row["id"])[-1]) == (2, [], "2")
    assert await run_once(database, 30) == {"events": 3}
    assert [id_[-1] for id_ in await dba.fetchval("select array(select id::text from events order by id)")] == [
        *"12345"
    ]


async def test_retention_that_is_killed_continues_where_it_was(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH_SIZE", 2)
    await api.people(1, 2)
    old = [await old_event(api, 1, 2) for _ in range(4)]
    kept = await api.post(custom(1, 2))
    monkeypatch.setattr(retention, "PAUSE", 1e6)
    going = asyncio.create_task(go_round(api, 30))
    await reaches(lambda: api.app_state.database.value("select count(*) from recipients"), 4)
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)
    assert await api.ids(1) == [kept, *old[:0:-1]]
    assert await violations(api) == []
    monkeypatch.undo()
    assert await go_round(api, 30) == {"notifications": 3}
    assert await events_of(api) == [kept]
    assert await violations(api) == []


async def test_step_whose_connection_is_lost_is_undone_and_repeated(api: Api) -> None:
    await api.people(1)
    old = await old_event(api, 1)
    await api.app_state.database.value(
        "create function lose() returns trigger language plpgsql as"
        " $$ begin perform pg_terminate_backend(pg_backend_pid()); return old; end $$"
    )
    await api.app_state.database.value(
        "create trigger lose before delete on contents for each row execute function lose()"
    )
    try:
        assert await go_round(api, 30) == {}
    finally:
        await api.app_state.database.value("drop trigger lose on contents")
        await api.app_state.database.value("drop function lose()")
    assert await api.ids(1) == [old]
    assert await violations(api) == []
    assert await go_round(api, 30) == {"notifications": 1}


async def test_only_one_process_at_a_time_deletes_old_events(api: Api) -> None:
    await api.people(1)
    old = await old_event(api, 1)
    async with api.app_state.database.transaction() as other:
        assert await other.fetchval(retention._SQL["turn"], retention._LOCK)  # noqa: SLF001 - the step of another process
        async with bounded():
            assert await go_round(api, 30) == {}
    assert await api.ids(1) == [old]
    assert await go_round(api, 30) == {"notifications": 1}


@pytest.mark.parametrize("found_by", ["id", "time"])
async def test_inbox_in_use_delays_its_notifications_only(api: Api, found_by: str) -> None:
    await api.people(1, 2, 3)
    if found_by == "id":
        ids = [await old_event(api, 1, 2), await old_event(api, 2), await old_event(api, 3)]
    else:
        ids = [await api.post(custom(1, 2)), await api.post(custom(2)), await api.post(custom(3))]
        await age(api, "recipients", "delivered_at", OLD.days)
    async with api.app_state.database.transaction() as other, bounded():
        await other.fetch("select from heads where user_id = 1 for update")
        await go_round(api, 30)
    assert await api.ids(1) == ids[:1]
    assert await api.ids(2) == ids[:1]
    assert await api.ids(3) == []
    assert await violations(api) == []
    await go_round(api, 30)
    assert await events_of(api) == []
    assert await violations(api) == []


async def test_pause_is_as_long_as_the_step_before(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await api.people(1)
    for _ in range(3):
        await old_event(api, 1)
    slept: list[float] = []
    seconds = count(0, 3)

    async def sleep(duration: float) -> None:
        slept.append(duration)

    with monkeypatch.context() as patch:
        patch.setattr(retention, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
        patch.setattr(retention, "asyncio", SimpleNamespace(sleep=sleep))
        patch.setattr(retention, "BATCH_SIZE", 1)
        await go_round(api, 30)
    assert slept
    assert set(slept) == {3.0}


async def test_retention_deletes_interrupted_imports_after_an_hour(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH_SIZE", 2)
    for id_, state_ in ((1, "checking"), (2, "applying"), (3, "checking")):
        uuid = f"00000000-0000-0000-0000-00000000000{id_}"
        await api.app_state.database.value("insert into imports (id, state) values ($1, $2)", uuid, state_)
        for number in range(5):
            await api.app_state.database.value(
                "insert into import_lines (import_id, number, part, body) values ($1, $2, 'team', '{}')", uuid, number
            )
    await age(api, "imports", "touched_at", 0.05, "id::text not like '%3'")
    assert await go_round(api) == {"imports": 5}
    left = await api.app_state.database.rows("select right(id::text, 1) as id from imports order by 1")
    assert [row["id"] for row in left] == ["2", "3"]
    assert await api.app_state.database.value("select count(*) from import_lines") == 10


@pytest.mark.parametrize("found_by", ["ids", "times"])
async def test_event_to_which_an_import_adds_a_user_is_not_deleted(
    api: Api, monkeypatch: pytest.MonkeyPatch, found_by: str
) -> None:
    """Nor if both are under way."""
    database = api.app_state.database
    await api.people(2, 4)
    made = datetime.now(UTC) - OLD if found_by == "ids" else datetime.now(UTC)
    id_ = await api.post({**custom(2), "id": id_made(made)})
    await age(api, "recipients", "delivered_at", 31)
    await age(api, "events", "accepted_at", 31)
    deleting: list[asyncio.Task[int]] = []
    count_history = inbox.count_history

    async def counting(*arguments: Any) -> None:
        deleting.append(asyncio.create_task(retention._delete_notifications(database, 30)))  # noqa: SLF001
        async with database.connection() as looking:
            await until(lambda: deleting[0].done() or blocked(looking))
        await count_history(*arguments)

    monkeypatch.setattr(inbox, "count_history", counting)
    await import_lines(api, notification(4, id=id_, data={}, created_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"))
    await asyncio.wait(deleting)
    async with database.connection() as connection:
        assert [str(found) async for found in invariants.check_rows(connection) if found] == []
    assert await api.ids(4) == [id_]
    await age(api, "recipients", "delivered_at", 31)
    assert await go_round(api, 30)
    assert (await api.ids(4), await database.value("select count(*) from events")) == ([], 0)


async def test_retention_deletes_push_states_after_30_and_devices_after_270_days(api: Api) -> None:
    await api.people(1)
    for token in ("aa" * 32, "bb" * 32):
        await api.as_user(1, "POST", f"/notifications/devices/{token}")
    id_ = await api.post(custom(1))
    await api.app_state.database.value(
        "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, state, settled_at, type, token_ending)"
        " select $1, id, 1, lane, false, 'dead', now(), type, right(token, 6) from devices",
        id_,
    )
    await age(api, "deliveries", "settled_at", 29)
    await age(api, "devices", "registered_at", 269)
    assert await go_round(api) == {}
    await age(api, "deliveries", "settled_at", 2, "token_ending = 'aaaaaa'")
    await age(api, "devices", "registered_at", 2, "token = repeat('bb', 32)")
    assert await go_round(api) == {"deliveries": 1, "devices": 1}
    assert await api.app_state.database.value("select token_ending from deliveries") == "bbbbbb"
    assert await api.app_state.database.value("select right(token, 6) from devices") == "aaaaaa"


@pytest.mark.parametrize("waits", ["queued", "later", "held"])
async def test_retention_deletes_pushes_of_a_lane_that_no_worker_serves(idle: Api, dba: Connection, waits: str) -> None:
    await dba.execute("insert into lanes (name, configuration) values ('apns/gone', ''), ('apns/here', '')")
    await dba.execute(
        "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, state, due_at, type, token_ending)"
        " select gen_random_uuid(), gen_random_uuid(), 1, lane, nth % 2 = 0, $1, now() - make_interval(days => days),"
        " 'iOS', '' from (values ('apns/gone', 31), ('apns/here', 29)) as of (lane, days)"
        " cross join generate_series(1, 4) nth",
        waits,
    )
    assert await go_round(idle) == {"deliveries": 4}
    assert await dba.fetchval("select array_agg(distinct lane) from deliveries") == ["apns/here"]
    await dba.execute("delete from deliveries; delete from lanes")


async def keep_expired_key(api: Api, dba: Connection) -> None:
    """Post an event with an `Idempotency-Key` that retention is due to delete."""
    event = {"type": "custom", "notify": {"users": [1]}, "params": {"body": "Hello"}}
    await api.people(1)
    answer = await api.as_service("POST", "/events", json=event, headers={"Idempotency-Key": "once"})
    assert answer.status_code == 202
    await dba.execute("update idempotency_keys set kept_at = kept_at - interval '2 days'")


async def test_retention_runs_in_one_worker_at_a_time(idle: Api, database: Database, dba: Connection) -> None:
    await keep_expired_key(idle, dba)
    async with dba.transaction():
        assert await dba.fetchval(retention._SQL["turn"], retention._LOCK)  # noqa: SLF001 - the turn of another keeper
        async with bounded():
            assert await run_once(database, None) == {}
    assert await run_once(database, None) == {"idempotency_keys": 1}


async def test_failing_retention_step_does_not_block_others(idle: Api, database: Database, dba: Connection) -> None:
    await keep_expired_key(idle, dba)
    await dba.execute(
        "insert into dead_letters values ($1, 'deliver', 'direct', 8, 0, '', now() - interval '40 days')", new_id()
    )
    async with renamed(dba, "idempotency_keys"):
        assert await run_once(database, None) == {"dead_letters": 1}
