"""A company-bound service cannot read or change anything of another company."""

import asyncio
import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from tests.support.answers import field_errors
from tests.support.database import everything
from tests.support.events import custom, in_future
from tests.support.imports import NDJSON, device, import_lines, notification, send, team, text_of, user
from tests.support.resolutions import settled
from tests.support.service import Api
from tests.support.waiting import bounded, until
from tests.support.workers import work
from tocsin import explain, jobs
from tocsin.audit import Actor
from tocsin.ids import new_id
from tocsin.transfer import imports
from tocsin.transfer.exports import export

PHONE = "cd" * 32
MINE, THEIRS, UNKNOWN = 3, 911, 977
"""Users of the caller's company, of another, and of none; teams have the same ids."""

Body = Callable[[int, str], Any]
"""Makes what is sent, about a user or team with an id, and an event."""

CALLS: dict[str, tuple[str, str, Body | None]] = {
    "post to a user": ("POST", "/events", lambda id_, _: custom(id_)),
    "post to a team": ("POST", "/events", lambda id_, _: custom(teams=(id_,))),
    "post, and skip who is unknown": ("POST", "/events", lambda id_, _: skipping(id_)),
    "post a batch": ("POST", "/events/batch", lambda id_, _: {"events": [custom(MINE), custom(id_)]}),
    "name who did it": ("POST", "/events", lambda id_, _: {**custom(MINE), "data": {"user": id_}}),
    "leave out": ("POST", "/events", lambda id_, _: {**custom(MINE), "notify": {"users": [MINE], "except": [id_]}}),
    "resolve for a user": ("POST", "/events/resolve", lambda id_, _: resolution(users=[id_])),
    "cancel": ("DELETE", "/events/{event}", None),
    "cancel by key": ("DELETE", "/events/by-key/task 7", None),
    "look at an event": ("GET", "/events/{event}", None),
    "list the recipients of an event": ("GET", "/operations/events/{event}/recipients", None),
    "explain one's own": ("GET", "/events/{event}/recipients/3", None),
    "explain": ("GET", "/events/{event}/recipients/{id}", None),
    "read a user": ("GET", "/directory/users/{id}", None),
    "erase a user": ("DELETE", "/directory/users/{id}", None),
    "detach all": ("DELETE", "/directory/users/{id}/devices", None),
    "detach one": ("DELETE", f"/directory/users/{{id}}/devices/{PHONE}", None),
    "read a team": ("GET", "/directory/teams/{id}", None),
    "put a team": ("PUT", "/directory/teams/3", lambda id_, _: {"name": "x", "users": [MINE, id_]}),
    "delete a team": ("DELETE", "/directory/teams/{id}", None),
    "enter a team": ("PUT", "/directory/teams/3/users/{id}", None),
    "enter one's own into a team": ("PUT", "/directory/teams/{id}/users/3", None),
    "leave a team": ("DELETE", "/directory/teams/{id}/users/3", None),
    "import a member": ("POST", "/directory/import", lambda id_, _: [team(3, MINE, id_)]),
    "import a device": ("POST", "/directory/import", lambda id_, _: [device(id_)]),
    "import a notification": ("POST", "/directory/import", lambda id_, _: [notification(id_)]),
    "look at a person": ("GET", "/operations/users/{id}", None),
    "look at their events": ("GET", "/operations/users/{id}/events", None),
    "test a device": ("POST", f"/operations/users/{{id}}/devices/{uuid4()}/test", None),
    "replay": ("POST", "/operations/replay", lambda _, event: {"ids": [event]}),
}


def skipping(id_: int) -> dict[str, Any]:
    event = custom(MINE, id_)
    return {**event, "notify": {**event["notify"], "unknown": "skip"}}


def resolution(**more: Any) -> dict[str, Any]:
    return {"about": "order:4343", "as": "gone", **more}


async def two_companies(api: Api) -> str:
    """Create two companies, and return the id of a held event of the other one."""
    await api.people(THEIRS, 912)
    await api.people(MINE, 4, company_id=2)
    await api.team(THEIRS, THEIRS, 912)
    await api.team(MINE, MINE, company_id=2)
    await api.as_user(THEIRS, "POST", f"/notifications/devices/{PHONE}")
    event = {**custom(THEIRS, teams=(THEIRS,)), "about": ["order:4343"], "key": "task 7", "deliver_at": in_future()}
    answer = await api.as_service("POST", "/events", json=event, company_id=1)
    id_: str = answer.json()["id"]
    return id_


async def call(api: Api, name: str, id_: int, event: str) -> tuple[int, str]:
    """Return the response without the requested ids."""
    method, path, body = CALLS[name]
    more: dict[str, Any] = {}
    if path.endswith("import") and body:
        more = {"content": text_of(body(id_, event)), "headers": NDJSON}
    elif body:
        more = {"json": body(id_, event)}
    scopes = ("events:write", "directory:write", "operations")
    path = path.replace("{id}", str(id_)).replace("{event}", event)
    answer = await api.as_service(method, path, *scopes, company_id=2, **more)
    said = json.loads(answer.text) if answer.text else {}
    if answer.is_success:
        said.pop("id", None)
        said.pop("ids", None)
    return answer.status_code, json.dumps(said).replace(str(id_), "{id}").replace(event, "{event}")


@pytest.mark.parametrize("name", CALLS)
async def test_other_companies_resources_answer_like_unknown_ones(api: Api, name: str) -> None:
    event = await two_companies(api)
    before = {table: text for table, text in (await everything(api)).items() if table in THEIRS_IN}
    foreign, unknown = await call(api, name, THEIRS, event), await call(api, name, UNKNOWN, str(uuid4()))
    assert foreign == unknown
    await settled(api)
    after = await everything(api)
    for table, text in before.items():
        rows = [row for row in text.split("<Record ") if THEIRS_IN[table](row, event)]
        assert rows or table == "inbox"
        assert all(row.rstrip(", []") in after[table] for row in rows), table


THEIRS_IN: dict[str, Callable[[str, str], bool]] = {
    "users": lambda row, _: "First91" in row,
    "members": lambda row, _: "'(911," in row,
    "teams": lambda row, _: "Team 911" in row,
    "devices": lambda row, _: PHONE in row,
    "events": lambda row, event: event in row,
    "jobs": lambda row, event: event in row,
    "inbox": lambda row, event: event in row,
}
"""The rows of the other company in each table."""


async def test_import_cannot_reuse_event_id_of_another_company(api: Api) -> None:
    await api.people(THEIRS)
    await api.people(MINE, 4, company_id=2)
    theirs, mine = await api.post(custom(THEIRS), company_id=1), await api.post(custom(MINE), company_id=2)
    of_no_company = await api.post(custom(THEIRS, MINE))
    before = await everything(api)
    answer = await send(
        api,
        [notification(4), notification(4, id=theirs), notification(4, id=of_no_company)],
        company_id=2,
    )
    assert field_errors(answer) == [("lines.2.notification.id", "unknown"), ("lines.3.notification.id", "unknown")]
    assert await everything(api) == before
    await import_lines(
        api,
        notification(MINE, id=of_no_company),
        notification(4, id=mine),
        notification(4, id=str(uuid4())),
        company_id=2,
    )
    explained = await api.as_service("GET", f"/events/{theirs}/recipients/4", company_id=1)
    assert explained.json()["recipient"] is False
    assert (await api.as_service("GET", f"/events/{theirs}", company_id=1)).json()["recipients"] == 1
    assert (await api.as_service("GET", f"/events/{of_no_company}")).json()["recipients"] == 2
    assert (await api.as_service("GET", f"/events/{mine}", company_id=2)).json()["recipients"] == 2
    await import_lines(
        api, notification(4, id=theirs)
    )  # by a service of no company in particular, as a whole export is brought in


async def test_waiting_import_does_not_touch_event_of_another_company(idle: Api) -> None:
    await idle.people(THEIRS)
    await idle.people(MINE, company_id=2)
    id_ = str(uuid4())
    importing = asyncio.create_task(send(idle, [notification(MINE, id=id_)], company_id=2))
    await until(lambda: idle.app_state.database.value("select count(*) from jobs where task = 'import'"))
    answer = await idle.as_service("POST", "/events", json={**custom(THEIRS), "id": id_}, company_id=1)
    assert answer.status_code == 202
    await work(idle)
    async with bounded():
        while leased := await jobs.claim(idle.app_state.database, worker := new_id(), "bulk", 1):
            await imports.apply(idle.app_state.database, worker, leased[0])
        assert (await importing).status_code == 200
    assert await idle.ids(MINE) == []
    assert (await idle.as_service("GET", f"/events/{id_}", company_id=1)).json()["recipients"] == 1


async def test_resolution_excepts_only_recipients_of_own_company_events(api: Api) -> None:
    event = await two_companies(api)
    await api.people(5, 6, 7, company_id=2)
    own = {**custom(MINE, 5, teams=(MINE,)), "about": ["order:4343"], "deliver_at": in_future()}
    ids = [(await api.as_service("POST", "/events", json=own, company_id=2)).json()["id"]]
    ids += [(await api.as_service("POST", "/events", json=own)).json()["id"]]  # of no company in particular
    await api.team(MINE, MINE, 6, company_id=2)
    for users in ([MINE, MINE, 7], [MINE, 6, 4], [6, 7, 5, 5]):
        answer = await api.as_service("POST", "/events/resolve", json=resolution(users=users), company_id=2)
        assert answer.status_code == 202
    left_out = {
        str(row["id"]): row["excepted"] for row in await api.app_state.database.rows("select id, excepted from events")
    }
    assert left_out.pop(event) == []
    assert {id_: sorted(excepted) for id_, excepted in left_out.items()} == {id_: [MINE, 5, 6] for id_ in ids}
    await api.as_service("POST", "/events/resolve", json=resolution(), company_id=2)
    assert (await api.as_service("GET", f"/events/{event}", company_id=1)).json()["state"] == "held"


async def test_user_who_changes_company_keeps_inbox_without_exporting_it(
    api: Api,
) -> None:
    await api.people(THEIRS)
    before = [
        await api.post(custom(THEIRS, body="SECRET"), company_id=1),
        await api.post(custom(THEIRS, body="SECRET")),
    ]
    await api.people(THEIRS, company_id=2)
    after = [await api.post(custom(THEIRS, body="mine"), company_id=2), await api.post(custom(THEIRS, body="mine"))]
    await import_lines(api, notification(THEIRS, message="of old"), company_id=2)
    await api.people(THEIRS, company_id=2, first_name="Changed")
    assert (await api.ids(THEIRS))[:4] == [*after[::-1], *before[::-1]]
    lines = [line async for line in export(api.app_state.database, Actor("test", 2)) if "notification" in line]
    assert [line.count("SECRET") for line in lines] == [0, 0, 0]
    assert sum("mine" in line for line in lines) == 2
    assert sum("of old" in line for line in lines) == 1
    assert not [line async for line in export(api.app_state.database, Actor("test", 1)) if "SECRET" in line]
    assert len([line async for line in export(api.app_state.database, Actor("test")) if "SECRET" in line]) == 2
    found = await api.as_service("GET", f"/operations/users/{THEIRS}/events", "operations", company_id=2)
    assert not set(before) & {each["event_id"] for each in found.json()["data"]}


async def test_company_sees_no_device_of_a_user_who_has_left(api: Api) -> None:
    await api.people(THEIRS)
    id_ = await api.post(custom(THEIRS), company_id=1)
    await api.people(THEIRS, company_id=2)
    await api.as_user(THEIRS, "POST", f"/notifications/devices/{PHONE}")
    for company, shown in ((1, 0), (None, 1)):
        explained = await api.as_service("GET", f"/events/{id_}/recipients/{THEIRS}", company_id=company)
        assert explained.json()["recipient"] is True
        assert len(explained.json()["devices"]) == shown


async def test_import_can_move_a_user_to_another_company(api: Api) -> None:
    await api.people(THEIRS)
    await api.post(custom(THEIRS, body="SECRET"))
    await import_lines(api, user(THEIRS, company_id=2))
    assert not [line async for line in export(api.app_state.database, Actor("test", 2)) if "SECRET" in line]


async def test_custom_notification_keeps_sender_name_of_its_time(api: Api) -> None:
    await api.people(1, 50, first_name="Mallory")
    answer = await api.as_user(50, "POST", "/notifications", json={"message": "x", "notify": {"users": [1]}})
    assert answer.status_code == 202
    await api.post({**custom(1), "data": {}})
    await api.as_service("DELETE", "/directory/users/50")
    await api.people(50, first_name="Innocent")
    answer = await api.as_service("GET", "/operations/custom-notifications", "operations")
    assert [each["sender"] for each in answer.json()["data"]] == [
        None,
        {"id": 50, "first_name": "Mallory", "last_name": "Last50"},
    ]
    assert (await api.inbox(1))["data"][1]["data"]["user"]["first_name"] == "Mallory"


WHOLE_SERVICE = {"/healthz", "/readyz", "/metrics", "/operations/history", "/operations/lanes"}
"""Routes whose answers are about the whole service, as the documentation says."""

QUERIES = {
    "/operations/devices": "?ending=" + PHONE[-6:],
    "/operations/users": "?search=first",
    "/operations/users/{user_id}/events": "?since=2020-01-01 00:00:00",
    "/notifications/links": "?ids={event_id}",
    "/notifications/changes": "?since={cursor}",
}
"""The parameters of reads that require one, or whose answers change with the time without it."""


OF_THE_REQUEST = {"date", "x-request-id", "ratelimit"}
"""Headers that are different for each request, or count those of the caller."""


async def all_answers(api: Api, names: dict[str, Any], company_id: int) -> dict[str, tuple[Any, ...]]:
    """Return the answers to all reads by services and a user of a company: status, headers and body."""
    document = (await api.call("GET", "/openapi.json")).json()
    found = {}
    for path, methods in document["paths"].items():
        if "get" not in methods or path in WHOLE_SERVICE or not methods["get"].get("security"):
            continue
        url = (path + QUERIES.get(path, "")).format(**names)
        for scopes in (("events:write", "directory:write", "operations"), ()):
            if scopes:
                answer = await api.as_service("GET", url, *scopes, company_id=company_id)
            else:
                answer = await api.as_user(names["user_id"], "GET", url)
            headers = {name: each for name, each in answer.headers.items() if name not in OF_THE_REQUEST}
            found[f"{url} {scopes}"] = answer.status_code, headers, answer.text
    assert sum(status == 200 for status, _, _ in found.values()) >= 22
    return found


async def act(api: Api, number: int, company_id: int) -> None:
    """Do everything that a company can do, about things with the names that those of the other company have."""
    person, other, token = number, number + 1, f"{number:058x}{PHONE[-6:]}"
    await import_lines(
        api, user(person, first_name="First3"), user(other), team(person, person, other), company_id=company_id
    )
    await api.as_user(person, "POST", f"/notifications/devices/{token}")
    await api.as_user(person, "POST", "/notifications", json={"message": "x", "notify": {"users": [other]}})
    id_ = await api.post({**custom(person, teams=(person,)), "about": ["order:4343"]}, company_id=company_id)
    held = {**custom(person), "about": ["order:4343"], "key": "task 7", "deliver_at": in_future()}
    for method, path, body in (
        ("POST", "/events", held),
        ("POST", "/events", {**held, "key": "task 8"}),
        ("POST", "/events/resolve", resolution(users=[other])),
        ("POST", "/events/resolve", {**resolution(), "as": "erased"}),
        ("DELETE", "/events/by-key/task 8", None),
        ("DELETE", f"/directory/teams/{person}", None),
        ("DELETE", f"/directory/users/{other}", None),
        ("POST", "/operations/replay", {"events": [id_]}),
        ("POST", "/operations/console", None),
    ):
        scopes = ("events:write", "directory:write", "operations")
        answer = await api.as_service(method, path, *scopes, company_id=company_id, json=body)
        assert answer.is_success, (path, answer.text)
    await api.app_state.database.value(DEAD_LETTER, id_)


DEAD_LETTER = (
    "insert into dead_letters (id, task, lane, attempts, progress, cost, reason)"
    " values ($1::uuid, 'deliver', 'direct', 8, 0, 1, 'for the test') returning id"
)


async def test_no_answer_to_a_company_shows_that_another_one_is_busy(api: Api) -> None:
    await api.people(MINE, 4, company_id=2)
    await api.team(MINE, MINE, 4, company_id=2)
    await act(api, 5, 2)
    await api.as_user(MINE, "POST", f"/notifications/devices/{PHONE}")
    since = (await api.as_user(MINE, "GET", "/notifications/changes")).json()["cursor"]
    mine = await api.post({**custom(MINE, teams=(MINE,)), "about": ["order:4343"]}, company_id=2)
    ids = {"user_id": MINE, "team_id": MINE, "event_id": mine, "notification_id": mine, "cursor": since}
    await settled(api)
    before = await all_answers(api, ids, company_id=2)
    for number in range(1_000, 1_020, 2):
        await act(api, number, 1)
    everyone = [user(id_, first_name="First3") for id_ in range(2_000, 3_000)]
    await import_lines(api, *everyone, company_id=1)
    batch = {"events": [custom(id_) for id_ in range(2_000, 3_000)]}
    assert (await api.as_service("POST", "/events/batch", json=batch, company_id=1)).status_code == 202
    await settled(api)
    after = await all_answers(api, ids, company_id=2)
    assert {path: (after[path], answer) for path, answer in before.items() if after[path] != answer} == {}


async def test_audit_log_counts_no_events_that_may_be_for_other_companies(api: Api) -> None:
    await api.people(THEIRS)
    await api.people(MINE, company_id=2)
    for event, company in ((custom(THEIRS), None), (custom(THEIRS), 1), (custom(MINE), 2)):
        await api.post({**event, "about": ["order:4343"]}, company_id=company)
    for company, count in ((2, 1), (1, 1), (None, 3)):
        await api.as_service("POST", "/events/resolve", json=resolution(), company_id=company)
        log = await api.as_service("GET", "/operations/audit", "operations", company_id=company)
        assert log.json()["data"][0]["details"]["events"] == count
    await settled(api)


async def test_search_for_missed_events_shows_a_company_no_time_of_another(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "MAX_EVENTS_SCANNED", 3)
    await api.people(THEIRS)
    await api.people(MINE, company_id=2)

    async def searched_since(company_id: int | None = 2) -> str:
        path = f"/operations/users/{MINE}/events?since=2020-01-01 00:00:00"
        answer = await api.as_service("GET", path, "operations", company_id=company_id)
        since: str = answer.json()["looked_back_to"]
        return since

    async def at(id_: str) -> str:
        when = "update events set accepted_at = now() - make_interval(hours => $2) where id = $1::uuid returning"
        return str(
            await api.app_state.database.value(
                f"{when} to_char(accepted_at at time zone 'UTC', '{FORMAT}')", id_, next(hours)
            )
        )

    hours = iter(range(9, 0, -1))
    await at(await api.post(custom(MINE), company_id=2))
    second = await at(await api.post(custom(MINE), company_id=2))
    assert await searched_since() == "2020-01-01 00:00:00"
    theirs = [await at(await api.post(custom(THEIRS), company_id=1)) for _ in range(2)]
    assert await searched_since() == second
    theirs += [await at(await api.post(custom(THEIRS), company_id=1)) for _ in range(2)]
    assert await searched_since(None) == theirs[0]
    assert await searched_since() not in theirs


FORMAT = "YYYY-MM-DD HH24:MI:SS"


async def test_event_for_a_deleted_team_reaches_no_team_of_another_company(api: Api) -> None:
    await api.people(THEIRS)
    await api.people(MINE, company_id=2)
    await api.team(7, THEIRS)
    event = {**custom(THEIRS, teams=(7,), body="SECRET"), "deliver_at": in_future()}
    for company in (None, 1):
        assert (await api.as_service("POST", "/events", json=event, company_id=company)).status_code == 202
    await api.as_service("DELETE", "/directory/teams/7", company_id=1)
    # the clock is set back
    await api.app_state.database.rows("update events set accepted_at = now() + interval '1 hour'")
    new = await api.as_service("PUT", "/directory/teams/7", json={"name": "x", "users": [MINE]}, company_id=2)
    assert new.status_code == 204
    await api.app_state.database.rows("update jobs set due_at = now(), wanted_at = now()")
    api.app_state.pubsub.publish("direct")
    await until(lambda: api.app_state.database.value("select not exists (select from jobs)"))
    assert len(await api.ids(THEIRS)) == 2
    assert await api.ids(MINE) == []
    later = await api.post(custom(teams=(7,)))
    assert await api.ids(MINE) == [later]
