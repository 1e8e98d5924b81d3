"""The audit log has an entry for each action of an operator, and for none that did not happen."""

import asyncio
import json
import os
import pwd
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from tests.support.commands import run
from tests.support.events import custom, in_future
from tests.support.imports import NDJSON, team, text_of, user
from tests.support.processes import Program
from tests.support.pushes import IPHONE, register
from tests.support.service import Api
from tests.support.waiting import reaches
from tocsin import audit, retention
from tocsin.audit import Action, Actor
from tocsin.catalogue import Catalogue
from tocsin.db.pool import Database
from tocsin.ids import new_id
from tocsin.preferences import Operator, record_locks

TEXT = "A word that only the recipient may read"
REQUEST = {"X-Request-Id": "the-request"}

Act = Callable[[Api], Awaitable[httpx.Response]]


async def log_of(api: Api, query: str = "", company_id: int | None = None) -> list[dict[str, Any]]:
    answer = await api.as_service("GET", f"/operations/audit{query}", "operations", company_id=company_id)
    assert answer.status_code == 200, answer.text
    entries: list[dict[str, Any]] = answer.json()["data"]
    return entries


async def count(api: Api) -> int:
    number: int = await api.app_state.database.value("select count(*) from audit_entries")
    return number


async def held(api: Api, **more: Any) -> str:
    event = {**custom(1, body=TEXT), "deliver_at": in_future(), **more}
    id_: str = (await api.as_service("POST", "/events", json=event)).json()["id"]
    return id_


async def failed(api: Api) -> str:
    id_ = await held(api)
    await api.app_state.database.value(
        "with dead as (delete from jobs where id = $1 returning id, task, lane)"
        " insert into dead_letters (id, task, lane, attempts, progress, reason)"
        " select id, task, lane, 8, 0, '' from dead",
        id_,
    )
    return id_


async def a_message(api: Api) -> httpx.Response:
    body = {"message": TEXT, "notify": {"users": [2], "teams": [7]}}
    return await api.as_user(1, "POST", "/notifications", json=body, headers=REQUEST)


async def an_erasure(api: Api) -> httpx.Response:
    return await api.as_service("DELETE", "/directory/users/2", headers=REQUEST)


async def an_import(api: Api) -> httpx.Response:
    content = text_of([user(1), user(2), team(7, 1, 2)])
    return await api.as_service("POST", "/directory/import", content=content, headers={**NDJSON, **REQUEST})


async def a_replay(api: Api) -> httpx.Response:
    body = {"events": [await failed(api)]}
    return await api.as_service("POST", "/operations/replay", "operations", json=body, headers=REQUEST)


async def a_cancellation(api: Api) -> httpx.Response:
    return await api.as_service("DELETE", f"/events/{await held(api)}", headers=REQUEST)


async def a_cancellation_by_key(api: Api) -> httpx.Response:
    await held(api, key="order/7")
    return await api.as_service("DELETE", "/events/by-key/order/7", headers=REQUEST)


async def a_resolution(api: Api) -> httpx.Response:
    await held(api, about=["order:7"])
    body = {"about": "order:7", "as": "gone", "users": [1]}
    return await api.as_service("POST", "/events/resolve", json=body, headers=REQUEST)


async def an_opening(api: Api) -> httpx.Response:
    return await api.as_service("POST", "/operations/console", "operations", headers=REQUEST)


async def a_test_push(api: Api) -> httpx.Response:
    await register(api, 1, IPHONE)
    device = await api.app_state.database.value("select id from devices")
    path = f"/operations/users/1/devices/{device}/test"
    return await api.as_service("POST", path, "operations", headers=REQUEST)


ACTS: dict[str, tuple[Act, Action, dict[str, Any]]] = {
    "custom notification": (a_message, "custom_sent", {"users": 1, "teams": 1, "recipients": 2}),
    "erasure": (an_erasure, "user_erased", {}),
    "import": (an_import, "imported", {"users": 2, "teams": 1, "devices": 0, "notifications": 0}),
    "replay": (a_replay, "replayed", {"jobs": 1, "pushes": 0}),
    "cancellation": (a_cancellation, "event_cancelled", {}),
    "cancellation by key": (a_cancellation_by_key, "event_cancelled", {}),
    "resolution": (a_resolution, "subject_resolved", {"as": "gone", "events": 1, "users": 1}),
    "test push": (a_test_push, "test_push_sent", {"lane": "apns/default"}),
    "opened console": (an_opening, "console_opened", {}),
}


@pytest.fixture
async def staffed(api: Api) -> Api:
    await api.people(1, 2, 3)
    await api.team(7, 1, 2, 3)
    return api


@asynccontextmanager
async def refusing(api: Api, table: str, condition: str) -> AsyncIterator[None]:
    """Refuse new rows of a table that do not fulfil a condition."""
    database = api.app_state.database
    await database.value(f"alter table {table} add constraint refused check ({condition}) not valid")
    try:
        yield
    finally:
        await database.value(f"alter table {table} drop constraint refused")


@pytest.mark.parametrize("act", ACTS)
async def test_action_is_recorded_with_caller_company_and_request_but_no_text(staffed: Api, act: str) -> None:
    do, action, details = ACTS[act]
    answer = await do(staffed)
    assert answer.is_success, answer.text
    [entry] = await log_of(staffed)
    assert (entry["action"], entry["details"], entry["request_id"]) == (action, details, "the-request")
    by_user = action == "custom_sent"
    assert (entry["caller"], entry["name"]) == (("user 1", "First1 Last1") if by_user else ("service crm", None))
    assert entry["company_id"] == (1 if action in {"custom_sent", "test_push_sent", "user_erased"} else None)
    assert TEXT not in json.dumps(entry)


@pytest.mark.parametrize("act", [act for act in ACTS if act != "opened console"])
async def test_action_fails_if_it_cannot_be_recorded(staffed: Api, act: str) -> None:
    do = ACTS[act][0]
    async with refusing(staffed, "audit_entries", "false"):
        assert (await do(staffed)).status_code == 500
    database = staffed.app_state.database
    done = {
        "erasure": "select 3 - count(*) from users",
        "cancellation": "select count(*) from cancellations",
        "resolution": "select count(*) from resolutions",
        "custom notification": "select count(*) from events where service is null",
        "import": "select count(*) from imports where state = 'applying'",
        "replay": "select count(*) from jobs where due_at <= now()",
    }
    assert {name: await database.value(statement) for name, statement in done.items()} == dict.fromkeys(done, 0)


@pytest.mark.parametrize(
    ("act", "table", "condition"),
    [
        ("erasure", "erased_ids", "false"),
        ("resolution", "events", "excepted = '{}'"),
        ("custom notification", "events", "service is not null"),
        ("import", "imports", "state <> 'applying'"),
        ("cancellation", "cancellations", "false"),
        ("replay", "jobs", "due_at > now()"),
    ],
)
async def test_action_that_fails_is_not_recorded(staffed: Api, act: str, table: str, condition: str) -> None:
    async with refusing(staffed, table, condition):
        assert (await ACTS[act][0](staffed)).status_code == 500
    assert await count(staffed) == 0


async def test_action_without_effect_is_not_recorded(staffed: Api) -> None:
    id_ = await held(staffed)
    for status in (204, 204):
        assert (await staffed.as_service("DELETE", f"/events/{id_}")).status_code == status
    await staffed.as_service("DELETE", "/directory/users/99")
    await staffed.as_service("POST", "/operations/replay", "operations", json={"events": [str(uuid4())]})
    await staffed.as_service("POST", "/directory/import", content="{}", headers=NDJSON)
    await staffed.as_user(1, "POST", "/notifications", json={"message": "x", "notify": {"users": [99]}})
    assert [entry["action"] for entry in await log_of(staffed)] == ["event_cancelled"]


async def test_repeated_request_with_idempotency_key_is_recorded_once(staffed: Api) -> None:
    body = {"message": TEXT, "notify": {"users": [2]}}
    for _ in range(2):
        answer = await staffed.as_user(1, "POST", "/notifications", json=body, headers={"Idempotency-Key": "a"})
        assert answer.status_code == 202
    assert await count(staffed) == 1


async def test_events_of_services_and_lists_write_no_audit_entry(staffed: Api) -> None:
    await staffed.as_service("POST", "/events", json=custom(1))
    await staffed.as_service("POST", "/events/batch", json={"events": [custom(1), custom(2)]})
    await staffed.inbox(1)
    assert await count(staffed) == 0


async def test_name_of_the_sender_stays_as_it_was_even_after_erasure(staffed: Api) -> None:
    await a_message(staffed)
    await staffed.people(1, first_name="Renamed")
    await a_message(staffed)
    await staffed.as_service("DELETE", "/directory/users/1")
    await staffed.people(1, first_name="Another")
    names = [(entry["action"], entry["name"]) for entry in await log_of(staffed)]
    assert names == [("user_erased", None), ("custom_sent", "Renamed Last1"), ("custom_sent", "First1 Last1")]


async def test_operator_of_a_company_sees_only_its_entries(staffed: Api) -> None:
    await staffed.people(4, 5, company_id=2)
    await staffed.as_user(4, "POST", "/notifications", json={"message": "x", "notify": {"users": [5]}})
    await a_message(staffed)
    await staffed.as_service("DELETE", "/directory/users/5")
    await staffed.as_service("POST", "/operations/console", "operations", company_id=2)
    await an_opening(staffed)
    assert [entry["action"] for entry in await log_of(staffed, company_id=2)] == [
        *("console_opened", "user_erased", "custom_sent")
    ]
    assert [entry["caller"] for entry in await log_of(staffed, company_id=1)] == ["user 1"]
    assert await log_of(staffed, company_id=3) == []
    assert len(await log_of(staffed)) == 5


@pytest.mark.parametrize(
    "statement",
    [
        "update audit_entries set caller = 'nobody'",
        "delete from audit_entries",
        "truncate audit_entries",
        "insert into audit_entries select * from audit_entries on conflict (id) do update set name = 'x'",
        "with allowed as (select set_config('tocsin.audit_retention', 'on', true)) delete from audit_entries",
    ],
)
async def test_audit_entries_cannot_be_changed_or_deleted(staffed: Api, statement: str) -> None:
    await an_opening(staffed)
    database = staffed.app_state.database
    before = await database.rows("select * from audit_entries")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await database.rows(statement)
    assert await database.rows("select * from audit_entries") == before


async def written(database: Database, number: int, caller: str = "user 1", days: int = 0, company: int = 1) -> None:
    """Write entries, each a second older than the one before."""
    await database.value(
        "insert into audit_entries (id, happened_at, action, caller, company_id, details)"
        " select gen_random_uuid(), now() - make_interval(days => $3, secs => i), 'custom_sent', $2, $4, '{}'"
        " from generate_series(1, $1::int) i",
        number,
        caller,
        days,
        company,
    )


async def test_retention_deletes_old_audit_entries_only(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH_SIZE", 2)
    database = api.app_state.database
    await written(database, 5, days=366)
    await written(database, 3, days=30)
    await written(database, 1)
    assert await retention.run_once(database, None, 365) == {"audit_entries": 5}
    assert await retention.run_once(database, None, 2) == {"audit_entries": 3}
    assert await retention.run_once(database, None, 1) == {}
    assert await count(api) == 1


async def pages(api: Api, query: str, company_id: int | None = None) -> list[list[dict[str, Any]]]:
    """Return all pages of a query."""
    found, following = [], ""
    while True:
        path = f"/operations/audit?{query}{following}"
        answer = (await api.as_service("GET", path, "operations", company_id=company_id)).json()
        found.append(answer["data"])
        if answer["next"] is None:
            return found
        following = f"&before={answer['next']}"


async def test_audit_pages_show_each_entry_once_while_others_arrive(api: Api) -> None:
    database = api.app_state.database
    await written(database, 7)
    first = (await api.as_service("GET", "/operations/audit?limit=3", "operations")).json()
    await written(database, 1, caller="user 9", days=-1)
    rest = await pages(api, f"limit=3&before={first['next']}")
    assert [len(page) for page in rest] == [3, 1]
    shown = [*first["data"], *(entry for page in rest for entry in page)]
    assert len({entry["id"] for entry in shown}) == 7
    assert [entry["at"] for entry in shown] == sorted((entry["at"] for entry in shown), reverse=True)
    assert [len(page) for page in await pages(api, "limit=4", company_id=1)] == [4, 4]
    assert await pages(api, f"before={new_id()}") == [[]]


async def test_audit_log_is_filtered_by_caller_action_and_time(api: Api) -> None:
    await written(api.app_state.database, 3)
    await written(api.app_state.database, 2, caller="service crm", days=2)
    await an_opening(api)
    for query, number in (
        ("", 6),
        ("?caller=service%20crm", 3),
        ("?caller=service+crm&action=custom_sent", 2),
        ("?action=console_opened", 1),
        ("?caller=user+2", 0),
    ):
        assert len(await log_of(api, query)) == number, query
    [newest, *_] = await log_of(api, "?caller=user+1")
    assert len(await log_of(api, f"?since={newest['at']}&limit=1000")) in {2, 3}
    assert len(await log_of(api, "?until=2000-01-01 00:00:00")) == 0
    for query, code in (
        ("action=nothing", "in"),
        ("caller=%00", "string_between"),
        ("caller=" + "x" * 201, "string_between"),
        ("before=7", "uuid"),
        ("since=now", "date"),
        ("until=now", "date"),
        ("limit=0", "numeric_between"),
    ):
        answer = await api.as_service("GET", f"/operations/audit?{query}", "operations")
        assert [each["code"] for each in answer.json()["errors"]] == [f"validation.{code}"], query


async def test_page_of_a_rare_caller_examines_a_bounded_number_of_entries(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_EXAMINED", 10)
    await written(api.app_state.database, 25)
    await written(api.app_state.database, 2, caller="user 9", days=3)
    for company_id in (None, 1):
        found = await pages(api, "caller=user+9", company_id)
        assert [len(page) for page in found] == [0, 0, 2]


async def test_changed_locks_of_preferences_are_recorded_once(
    database: Database, catalogue: Catalogue, tmp_path: Path
) -> None:
    actor = Actor("command tocsin serve")

    async def started_with(content: str) -> None:
        file = tmp_path / "preferences.toml"
        file.write_text(content, "utf-8")
        operator = Operator.load(catalogue, file)
        await asyncio.gather(*(record_locks(database, operator, actor) for _ in range(3)))

    await started_with("")
    await started_with('[locked]\nquiet_hours = true\n[kinds.note]\nlocked = ["push"]\n')
    await started_with('[kinds.note]\npush = false\nlocked = ["push", "urgent"]\n')
    found = await audit.page(database, audit.AuditFilter(), None, 10)
    assert [(entry["action"], entry["details"]) for entry in found.entries] == [
        ("preference_locks_changed", {"locked": ["note.urgent"], "unlocked": ["quiet_hours"]}),
        ("preference_locks_changed", {"locked": ["note.push", "quiet_hours"], "unlocked": []}),
    ]


@pytest.mark.processes
@pytest.mark.parametrize("command", ["serve", "worker"])
async def test_starting_process_records_changed_locks(
    url: str, database: Database, tmp_path: Path, command: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "preferences.toml").write_text("[locked]\nquiet_hours = true\n", "utf-8")
    variables = {
        "TOCSIN_DATABASE_URL": url,
        "TOCSIN_PREFERENCES_FILE": str(tmp_path / "preferences.toml"),
    }
    async with Program(tmp_path / "data", command, variables=variables):
        await reaches(
            lambda: database.value("select string_agg(caller, ',') from audit_entries"), f"command tocsin {command}"
        )


async def test_commands_are_recorded_with_the_name_of_the_user(tmp_path: Path, idle: Api, quiet_database: str) -> None:
    await idle.people(1)
    command = partial(run, cwd=tmp_path, TOCSIN_DATABASE_URL=quiet_database)
    (tmp_path / "lines").write_bytes(text_of([user(2)]))
    for arguments in (
        ("export", "--company-id", "1", "exported"),
        ("import", "lines"),
        ("cancel", await held(idle)),
        ("replay", await failed(idle)),
    ):
        done = await asyncio.to_thread(command, *arguments)
        assert done.returncode == 0, done.stderr
    entries = await log_of(idle)
    assert [(entry["action"], entry["caller"], entry["company_id"]) for entry in entries] == [
        ("replayed", "command tocsin replay", None),
        ("event_cancelled", "command tocsin cancel", None),
        ("imported", "command tocsin import", None),
        ("exported", "command tocsin export", 1),
    ]
    assert {entry["name"] for entry in entries} == {pwd.getpwuid(os.getuid()).pw_name}
