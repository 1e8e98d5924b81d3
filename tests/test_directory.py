"""The directory: users, teams, and separate companies."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.answers import codes_of
from tests.support.database import blocked, make_database
from tests.support.deliveries import delivery
from tests.support.events import custom
from tests.support.imports import import_lines, team, user
from tests.support.service import Api, serving
from tests.support.waiting import until
from tocsin import directory
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection
from tocsin.db.statements import queries
from tocsin.ids import new_id
from tocsin.postgres.supervisor import Embedded

NAMES = {"first_name": "Ann", "last_name": "Lee"}
DEFAULTS = {
    "company_id": 1,
    "profile_picture": None,
    "email": None,
    "locale": "en",
    "time_zone": "UTC",
    "active": True,
}
FULL = {
    **NAMES,
    "company_id": 2,
    "profile_picture": "https://example.com/a.png",
    "email": "ann@example.com",
    "locale": "da-DK",
    "time_zone": "Europe/Copenhagen",
    "active": False,
}


FEW_MEMBERS = """
create function refuse_many() returns trigger language plpgsql as
    'begin if (select count(*) from entered) > 2 then raise query_canceled; end if; return null; end'
"""


async def put(api: Api, path: str, body: Any, **more: Any) -> Any:
    return codes_of(await api.as_service("PUT", f"/directory/{path}", "directory:write", json=body, **more))


async def get(api: Api, path: str, **more: Any) -> Any:
    answer = await api.as_service("GET", f"/directory/{path}", "directory:write", **more)
    return answer.json() if answer.is_success else codes_of(answer)


NOT_FOUND = (404, [("not_found", None)])
DONE: tuple[int, list[Any]] = (204, [])


async def test_put_user_stores_fields_and_defaults(api: Api) -> None:
    assert await put(api, "users/1", NAMES) == DONE
    assert await get(api, "users/1") == {"id": 1, **DEFAULTS, **NAMES}
    assert await put(api, "users/1", FULL) == DONE
    assert await get(api, "users/1") == {"id": 1, **FULL}
    assert await put(api, "users/1", {**NAMES, "profile_picture": None, "email": None, "company_id": None}) == DONE
    assert await get(api, "users/1") == {"id": 1, **DEFAULTS, **NAMES}


async def test_put_is_idempotent(api: Api) -> None:
    await api.people(2)
    for _ in range(3):
        assert await put(api, "users/1", FULL | {"active": True, "company_id": 1}) == DONE
        assert await put(api, "teams/7", {"name": "Sales", "users": [2, 1, 2]}) == DONE
    assert await get(api, "teams/7") == {"id": 7, "company_id": 1, "name": "Sales", "users": [1, 2]}
    assert await api.app_state.database.value("select count(*) from members") == 2


async def test_put_user_does_not_change_the_inbox(api: Api) -> None:
    await api.people(1)
    id_ = await api.post(custom(1))
    assert await put(api, "users/1", FULL | {"active": True}) == DONE
    page = await api.inbox(1)
    assert ([entry["id"] for entry in page["data"]], page["pagination"]["unread"]) == ([id_], 1)


async def test_members_of_a_large_team_are_entered_by_several_statements(
    server: Embedded, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "MEMBERS_BATCH_SIZE", 2)
    url = await make_database(server, f"few_{new_id().hex}")
    async with serving(url, catalogue) as api:
        await api.app_state.database.rows(FEW_MEMBERS)
        await api.app_state.database.rows(
            "create trigger few after insert on members referencing new table as entered"
            " for each statement execute function refuse_many()"
        )
        await api.people(*range(1, 8))
        assert await put(api, "teams/7", {"name": "Sales", "users": [3, 1, 2, 7, 5]}) == DONE
        assert (await get(api, "teams/7"))["users"] == [1, 2, 3, 5, 7]
        await import_lines(api, user(8), team(7, 8, 1, 2, 3, 4))
        assert (await get(api, "teams/7"))["users"] == [1, 2, 3, 4, 8]


async def test_put_team_replaces_its_members(api: Api) -> None:
    await api.people(1, 2, 3)
    assert await put(api, "teams/7", {"name": "Sales"}) == DONE
    assert await get(api, "teams/7") == {"id": 7, "company_id": 1, "name": "Sales", "users": []}
    assert await put(api, "teams/7", {"name": "Sales", "users": [3, 1]}) == DONE
    assert (await get(api, "teams/7"))["users"] == [1, 3]
    assert await put(api, "teams/7", {"name": "", "users": [2]}) == DONE
    assert await get(api, "teams/7") == {"id": 7, "company_id": 1, "name": "", "users": [2]}
    assert await put(api, "teams/7", {"name": "Sales"}) == DONE
    assert (await get(api, "teams/7"))["users"] == []


@pytest.mark.parametrize("path", ["users", "teams"])
async def test_directory_ids_range_from_1_to_2147483647(api: Api, path: str) -> None:
    body = NAMES | {"name": "x"}
    integer = [(422, [("validation.integer", "id")])]
    between = [(422, [("validation.numeric_between", "id")])]
    for id_ in ("x", "1.0", "%2B1", "%201", "1e3", "0x1", "%D9%A3", "1_0", "true", "-"):
        assert [await put(api, f"{path}/{id_}", body)] == integer, id_
        assert await get(api, f"{path}/{id_}") == NOT_FOUND, id_
    for id_ in ("0", "-1", "2147483648", "1" * 30):
        assert [await put(api, f"{path}/{id_}", body)] == between, id_
        assert await get(api, f"{path}/{id_}") == NOT_FOUND, id_
    for id_ in ("1", "2147483647"):
        assert await put(api, f"{path}/{id_}", body) == DONE
        assert (await get(api, f"{path}/{id_}"))["id"] == int(id_)
    assert await get(api, f"{path}/2") == NOT_FOUND
    assert await api.app_state.database.value(f"select count(*) from {path}") == 2


NO_STRINGS: list[Any] = [1, True, [], {}, ["x"]]
NO_INTEGERS: list[Any] = ["1", True, 1.0, [], {}]
NO_BOOLEANS: list[Any] = [None, 1, 0, "true", "", [], {}]
USER_FAULTS: list[tuple[str, Any, str]] = [
    *[(name, None, "string") for name in ("first_name", "last_name", "locale", "time_zone")],
    *[
        (name, value, "string")
        for name in ("first_name", "last_name", "profile_picture", "email", "locale", "time_zone")
        for value in NO_STRINGS
    ],
    *[(name, "\U0001f514" * 256, "string_between") for name in ("first_name", "last_name")],
    ("profile_picture", "x" * 1001, "string_between"),
    ("email", "x" * 321, "string_between"),
    *[("company_id", value, "integer") for value in NO_INTEGERS],
    *[("company_id", value, "numeric_between") for value in (0, -1, 2**31, 10**30)],
    *[
        ("locale", value, "regex")
        for value in ("", "x", "english", "en-", "-en", "en-US\n", "en US", "en/..", "é", "*")
    ],
    *[("time_zone", value, "in") for value in ("", "Mars", "CEST2", "../UTC", "/etc/passwd", "utc\n", "+01:00")],
    *[("active", value, "boolean") for value in NO_BOOLEANS],
]


async def test_user_fields_are_validated(api: Api) -> None:
    wrong = []
    for name, value, code in USER_FAULTS:
        found = await put(api, "users/1", {**NAMES, name: value})
        if found != (422, [(f"validation.{code}", name)]):
            wrong.append((name, value, found))
    assert wrong == []
    assert await get(api, "users/1") == NOT_FOUND


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("locale", value)
            for value in (
                "en",
                "da-DK",
                "da_DK",
                "DA-dk",
                "zh-Hant-TW",
                "es-419",
                "sr_Latn_RS",
                "fil",
                "ar-EG-u-nu-latn",
            )
        ],
        *[
            ("time_zone", value)
            for value in ("UTC", "Europe/Copenhagen", "America/Argentina/Buenos_Aires", "Etc/GMT+5")
        ],
        *[("first_name", value) for value in ("", " ", "\U0001f514" * 255)],
        *[("email", value) for value in ("", "x" * 320, "not an address")],
        ("profile_picture", "x" * 1000),
        ("company_id", 2**31 - 1),
        ("active", False),
    ],
)
async def test_user_fields_accept_valid_values(api: Api, name: str, value: Any) -> None:
    assert await put(api, "users/1", {**NAMES, name: value}) == DONE
    assert (await get(api, "users/1"))[name] == value


async def test_team_fields_are_validated(api: Api) -> None:
    await api.people(1)
    table: list[tuple[str, Any, str, str]] = [
        *[("name", value, "string", "name") for value in [None, *NO_STRINGS]],
        ("name", "\U0001f514" * 256, "string_between", "name"),
        *[("company_id", value, "integer", "company_id") for value in ("1", True, 1.0)],
        *[("company_id", value, "numeric_between", "company_id") for value in (0, 2**31)],
        *[("users", value, "array", "users") for value in [None, 1, "1", {"0": 1}, True]],
        *[("users", [1, value], "integer", "users.1") for value in [None, *NO_INTEGERS]],
        *[("users", [1, value], "numeric_between", "users.1") for value in (0, -1, 2**31, 10**30)],
        ("users", [1, 2], "unknown", "users.1"),
    ]
    wrong = []
    for name, value, code, field in table:
        found = await put(api, "teams/7", {"name": "x", name: value})
        if found != (422, [(f"validation.{code}", field)]):
            wrong.append((name, value, found))
    assert wrong == []
    assert await get(api, "teams/7") == NOT_FOUND


async def test_directory_reports_all_errors_of_a_body(api: Api) -> None:
    required = [("validation.required", "first_name"), ("validation.required", "last_name")]
    assert await put(api, "users/1", {}) == (422, required)
    assert await put(api, "teams/1", {}) == (422, [("validation.required", "name")])
    await api.people(1)
    everything = (("required", "name"), ("unknown", "users.1"), ("integer", "users.2"), ("numeric_between", "id"))
    errors = [(f"validation.{code}", field) for code, field in everything]
    assert await put(api, "teams/0", {"users": [1, 2, "3"]}) == (422, errors)
    assert await put(api, "teams/1", {"name": "x", "company_id": 0, "users": [2]}) == (
        422,
        [("validation.numeric_between", "company_id")],
    )
    body = {"first_name": 1, "email": [], "company_id": 0, "locale": "?", "time_zone": "?", "active": "?", "id": "?"}
    codes = ("string", "required", "string", "numeric_between", "regex", "in", "boolean")
    fields = ("first_name", "last_name", "email", "company_id", "locale", "time_zone", "active")
    status, found = await put(api, "users/1", body)
    assert (status, set(found)) == (422, {(f"validation.{c}", f) for c, f in zip(codes, fields, strict=True)})
    assert len(found) == len(fields)


async def test_unknown_fields_are_ignored(api: Api) -> None:
    assert await put(api, "users/1", {**NAMES, "id": 5, "admin": True, "total": 7, "position": -1}) == DONE
    assert await get(api, "users/1") == {"id": 1, **DEFAULTS, **NAMES}
    assert await get(api, "users/5") == NOT_FOUND


async def test_team_members_of_another_company_are_unknown(api: Api) -> None:
    await api.people(1, 2)
    await api.people(3, company_id=2)
    await put(api, "teams/7", {"name": "x", "users": [1]})
    field_errors = [("validation.unknown", f"users.{position}") for position in (1, 3, 4)]
    assert await put(api, "teams/7", {"name": "y", "users": [1, 3, 2, 99, 3]}) == (422, field_errors)
    assert await get(api, "teams/7") == {"id": 7, "company_id": 1, "name": "x", "users": [1]}
    other = {"name": "y", "company_id": 2, "users": [1, 3]}
    assert await put(api, "teams/7", other) == (422, [("validation.unknown", "users.0")])
    assert await put(api, "teams/7", other | {"users": [3]}) == DONE
    assert await get(api, "teams/7") == {"id": 7, "company_id": 2, "name": "y", "users": [3]}


async def test_company_bound_service_addresses_only_its_company(api: Api) -> None:
    await api.people(1)
    await api.people(2, company_id=2)
    await api.team(7, 1)
    await api.team(8, 2, company_id=2)
    before = [await get(api, path) for path in ("users/1", "teams/7")]
    for path in ("users/1", "users/99", "teams/7", "teams/99"):
        assert await get(api, path, company_id=2) == NOT_FOUND
    assert await put(api, "users/1", NAMES, company_id=2) == NOT_FOUND
    assert await put(api, "users/1", {**NAMES, "company_id": 2}, company_id=2) == NOT_FOUND
    assert await put(api, "teams/7", {"name": "x"}, company_id=2) == NOT_FOUND
    assert await put(api, "teams/7", {"name": "x", "users": [2]}, company_id=2) == NOT_FOUND
    foreign = (422, [("validation.unknown", "company_id")])
    for path in ("users/1", "users/2", "users/3", "teams/7", "teams/8", "teams/9"):
        assert await put(api, path, {**NAMES, "name": "x", "company_id": 1}, company_id=2) == foreign, path
    several = {"first_name": 1, "last_name": "x", "name": 1, "company_id": 1, "users": [2, 1]}
    assert await put(api, "users/0", several, company_id=2) == (
        422,
        [("validation.string", "first_name"), ("validation.numeric_between", "id"), foreign[1][0]],
    )
    assert await put(api, "teams/8", several, company_id=2) == (
        422,
        [("validation.string", "name"), foreign[1][0], ("validation.unknown", "users.1")],
    )
    assert await put(api, "users/2", {**NAMES, "company_id": "1"}, company_id=2) == (
        422,
        [("validation.integer", "company_id")],
    )
    stranger = (422, [("validation.unknown", "users.1")])
    assert await put(api, "teams/8", {"name": "x", "users": [2, 1]}, company_id=2) == stranger
    assert [await get(api, path) for path in ("users/1", "teams/7")] == before
    assert (await get(api, "teams/8"))["users"] == [2]


async def test_company_bound_service_creates_records_of_its_company(api: Api) -> None:
    assert await put(api, "users/1", NAMES, company_id=2) == DONE
    assert await put(api, "users/2", {**NAMES, "company_id": 2}, company_id=2) == DONE
    assert await put(api, "teams/7", {"name": "x", "users": [1, 2]}, company_id=2) == DONE
    assert (await get(api, "users/1"))["company_id"] == 2
    assert await get(api, "teams/7", company_id=2) == {"id": 7, "company_id": 2, "name": "x", "users": [1, 2]}


async def test_user_who_changes_company_leaves_its_teams(api: Api) -> None:
    await api.people(1, 2)
    await api.team(7, 1, 2)
    await api.team(8, 1)
    assert await put(api, "users/1", {**NAMES, "company_id": 1}) == DONE
    assert (await get(api, "teams/7"))["users"] == [1, 2]
    assert await put(api, "users/1", {**NAMES, "company_id": 2}) == DONE
    assert ((await get(api, "teams/7"))["users"], (await get(api, "teams/8"))["users"]) == ([2], [])
    assert await put(api, "users/1", NAMES) == DONE
    assert (await get(api, "teams/7"))["users"] == [2]


LEAVING: dict[str, tuple[str, tuple[object, ...]]] = {
    "erased": (queries("directory")["erase"], (2, 100, "", [])),
    "in another company": ("update users set company_id = 2 where id = $1", (2,)),
}


@pytest.mark.parametrize("state", LEAVING)
@pytest.mark.parametrize("path", ["teams/7", "teams/7/users/2"])
async def test_user_who_leaves_while_a_team_is_put_is_no_member(
    idle: Api, dba: Connection, path: str, state: str
) -> None:
    await idle.people(1, 2)
    await idle.team(7, 1)
    statement, arguments = LEAVING[state]
    async with asyncio.TaskGroup() as group, dba.transaction():
        await dba.execute(statement, *arguments)
        members = {"name": "Sales", "users": [1, 2]} if path == "teams/7" else None
        putting = group.create_task(put(idle, path, members))
        await until(lambda: blocked(dba))
    assert putting.result() == DONE
    assert (await get(idle, "teams/7"))["users"] == [1]


async def test_user_who_changes_company_leaves_a_team_that_was_just_put(idle: Api, dba: Connection) -> None:
    await idle.people(1, 2)
    await idle.team(7, 1)
    async with asyncio.TaskGroup() as group, dba.transaction():
        await dba.execute(queries("directory")["enter"], 7, [2])
        leaving = group.create_task(put(idle, "users/2", {**NAMES, "company_id": 2}))
        await until(lambda: blocked(dba))
    assert leaving.result() == DONE
    assert (await get(idle, "teams/7"))["users"] == [1]


async def test_team_is_put_while_members_before_and_after_it_leave_the_company(idle: Api, dba: Connection) -> None:
    """Neither waits for the other in a circle: both lock users first, and then members."""
    await idle.people(1, 2)
    await idle.team(7, 1)
    async with asyncio.TaskGroup() as group, dba.transaction():
        await dba.execute("update users set company_id = 2")
        putting = group.create_task(put(idle, "teams/7", {"name": "Sales", "users": [2]}))
        await until(lambda: blocked(dba))
        await dba.execute(queries("directory")["leave_former"], [1, 2])
    assert putting.result() == DONE
    assert (await get(idle, "teams/7"))["users"] == []


async def test_time_zone_put_during_another_put_releases_held_pushes(idle: Api, dba: Connection) -> None:
    await idle.people(1)
    await delivery(dba, 1, new_id(), state="held", worker_id=None, due_at=datetime.now(UTC) + timedelta(hours=1))
    async with asyncio.TaskGroup() as group, dba.transaction():
        await dba.execute("update users set time_zone = 'Pacific/Auckland'")
        putting = group.create_task(put(idle, "users/1", NAMES))  # in UTC, as before
        await until(lambda: blocked(dba))
    assert putting.result() == DONE
    assert await dba.fetchval("select due_at <= now() from deliveries")


async def test_users_of_different_companies_cannot_address_each_other(idle: Api) -> None:
    await idle.people(1)
    await idle.people(2, company_id=2)
    message = {"message": "x", "notify": {"users": [1, 2]}}
    for sender, field in ((1, "notify.users.1"), (2, "notify.users.0")):
        answer = await idle.as_user(sender, "POST", "/notifications", json=message)
        assert codes_of(answer) == (422, [("validation.unknown", field)])
    await idle.people(2)
    assert (await idle.as_user(1, "POST", "/notifications", json=message)).status_code == 202
