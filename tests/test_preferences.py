"""Preferences: choices of users, quiet hours by local time, and locks of the operator."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.answers import codes_of
from tests.support.built_in import CATALOGUE
from tests.support.preferences import OPERATOR, WINDOWS, ZONES, choosing, utc, window
from tests.support.service import Api, serving
from tocsin import preferences
from tocsin.catalogue import Catalogue
from tocsin.errors import FieldError, Refusal
from tocsin.preferences import SEND, Operator, Switches, changes_of, merged
from tocsin.quiet_hours import DAYS

PAGE = (Path(__file__).parent.parent / "docs/guides/preferences.md").read_text("utf-8")


KINDS = st.sampled_from([*CATALOGUE.kinds][:4])
CHANGED_SWITCHES = st.dictionaries(st.sampled_from(["push", "web_push", "urgent"]), st.none() | st.booleans())
PATCHES = st.fixed_dictionaries(
    {},
    optional={
        "kinds": st.none() | st.dictionaries(KINDS, st.none() | CHANGED_SWITCHES),
        "quiet_hours": st.none() | WINDOWS,
        "paused_until": st.sampled_from([None, "2020-01-01T00:00:00Z"]),
        "time_zone": st.none() | st.sampled_from(ZONES),
    },
)


def patched(chosen: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    field_errors: list[FieldError] = []
    found: dict[str, Any] = merged(chosen, changes_of(patch, OPERATOR, field_errors))
    assert field_errors == []
    return found


def by_the_book(target: Any, patch: Any) -> Any:
    """The algorithm of RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = by_the_book(target.get(name), value)
    return target


@given(PATCHES, PATCHES)
def test_preferences_patch_changes_only_named_fields(first: dict[str, Any], second: dict[str, Any]) -> None:
    before = patched({}, first)
    after = patched(before, second)
    assert patched(after, second) == after
    expected = by_the_book(by_the_book({}, first), second)
    expected.pop("paused_until", None)  # they are all over
    shown = {"kinds": {}, **expected}
    shown["kinds"] = {name: switches for name, switches in shown["kinds"].items() if switches}
    assert {"kinds": {}, **after} == shown


@given(PATCHES, PATCHES)
def test_null_restores_the_default_preference(first: dict[str, Any], second: dict[str, Any]) -> None:
    chosen = patched(patched({}, first), second)
    back = dict.fromkeys(("kinds", "quiet_hours", "paused_until", "time_zone"))
    assert patched(chosen, back) == {}
    for name in chosen.get("kinds", {}):
        found = OPERATOR.preferences(patched(chosen, {"kinds": {name: None}}), "UTC")
        assert found.kinds[name] == OPERATOR.kinds[name]


@given(PATCHES)
def test_returned_preferences_can_be_sent_back_unchanged(patch: dict[str, Any]) -> None:
    now = datetime.now(UTC)
    shown = OPERATOR.preferences(patched({}, patch), "Asia/Tokyo").shown(now)
    assert OPERATOR.preferences(patched({}, shown), "Asia/Tokyo").shown(now) == shown


async def prefer(api: Api, user: int = 1, **changes: Any) -> httpx.Response:
    return await api.as_user(user, "PATCH", "/notifications/preferences", json=changes)


async def shown(api: Api, user: int = 1) -> dict[str, Any]:
    answer = await api.as_user(user, "GET", "/notifications/preferences")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_preferences_without_a_choice_are_the_defaults(api: Api) -> None:
    await api.people(1, time_zone="Asia/Tokyo")
    kinds = {
        name: {"push": True, "web_push": True, "urgent": name == "lead_escalated"}
        for name in api.app_state.catalogue.kinds
    }
    assert {"custom", "gamification/new_level"} < set(kinds)
    expected: dict[str, Any] = {"kinds": kinds, "quiet_hours": [], "paused_until": None, "time_zone": "Asia/Tokyo"}
    assert await shown(api) == expected
    assert (await prefer(api)).json() == expected
    assert await api.app_state.database.value("select count(*) from preferences") == 0


async def test_preferences_patch_returns_the_stored_preferences(api: Api) -> None:
    await api.people(1, 2)
    ahead = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    for changes in (
        {"kinds": {"note": {"push": False}, "gamification/new_level": {"web_push": False, "urgent": True}}},
        {"kinds": {"note": {"push": None, "urgent": True}}},
        {
            "quiet_hours": [
                {"days": ["sun", "mon", "sun"], "from": "20:00", "to": "07:30"},
                {"from": "12:00", "to": "13:00"},
            ]
        },
        {"paused_until": f"{ahead.astimezone(ZoneInfo('Asia/Tokyo')).isoformat()}", "time_zone": "Europe/Copenhagen"},
    ):
        answer = await prefer(api, **changes)
        assert (answer.status_code, answer.json()) == (200, await shown(api))
    found = await shown(api)
    assert found["kinds"]["note"] == {"push": True, "web_push": True, "urgent": True}
    assert found["kinds"]["gamification/new_level"] == {"push": True, "web_push": False, "urgent": True}
    assert found["quiet_hours"] == [window("20:00", "07:30", "mon", "sun"), window("12:00", "13:00")]
    assert found["paused_until"] == f"{ahead:%Y-%m-%d %H:%M:%S}"
    assert found["time_zone"] == "Europe/Copenhagen"
    assert (await shown(api, 2))["quiet_hours"] == []
    back = await prefer(api, kinds=None, quiet_hours=None, paused_until=None, time_zone=None)
    assert back.json() == await shown(api, 2)
    assert await api.app_state.database.value("select count(*) from preferences") == 0


async def test_pause_in_the_past_is_null(api: Api) -> None:
    await api.people(1)
    assert (await prefer(api, paused_until="2020-01-01T00:00:00+01:00")).json()["paused_until"] is None
    assert await api.app_state.database.value("select count(*) from preferences") == 0


def test_expired_pause_is_null() -> None:
    found = choosing(paused_until="2026-03-02 08:00:00")
    assert found.shown(utc("2026-03-02 07:59:59"))["paused_until"] == "2026-03-02 08:00:00"
    assert found.shown(utc("2026-03-02 08:00:00"))["paused_until"] is None
    assert found.decide("note", "push", utc("2026-03-02 08:00:00")) == SEND


async def test_only_two_content_types_are_accepted(api: Api) -> None:
    await api.people(1)
    for type_, status in {
        "application/merge-patch+json": 200,
        "Application/Merge-Patch+JSON; charset=utf-8": 200,
        "application/json": 200,
        "application/json-patch+json": 415,
        "text/plain": 415,
    }.items():
        headers = {"Content-Type": type_}
        answer = await api.as_user(1, "PATCH", "/notifications/preferences", content=b"{}", headers=headers)
        assert answer.status_code == status, type_


async def test_invalid_preferences_report_all_errors_and_change_nothing(api: Api) -> None:
    await api.people(1)
    too_far = (datetime.now(UTC) + timedelta(days=367)).isoformat()
    answer = await prefer(
        api,
        time_zone="Mars/Olympus_Mons",
        kinds={
            "nothing": {"push": True},
            "note": {"push": "no", "inbox": False, "web_push": False, "urgent": 1},
            "custom": [],
        },
        colour="red",
        quiet_hours=[
            {"days": ["mon", "monday", 1], "from": "20:00", "to": "20:00"},
            {"days": "mon", "from": "24:00", "until": "07:30"},
            {"days": [], "from": 20, "to": "7:30"},
            "at night",
        ],
        paused_until=too_far,
    )
    assert codes_of(answer) == (
        422,
        [
            ("validation.in", "time_zone"),
            ("validation.prohibited", "kinds.nothing"),
            ("validation.boolean", "kinds.note.push"),
            ("validation.prohibited", "kinds.note.inbox"),
            ("validation.boolean", "kinds.note.urgent"),
            ("validation.object", "kinds.custom"),
            ("validation.in", "quiet_hours.0.days.1"),
            ("validation.in", "quiet_hours.0.days.2"),
            ("validation.in", "quiet_hours.0.to"),
            ("validation.array", "quiet_hours.1.days"),
            ("validation.regex", "quiet_hours.1.from"),
            ("validation.required", "quiet_hours.1.to"),
            ("validation.array_between", "quiet_hours.2.days"),
            ("validation.string", "quiet_hours.2.from"),
            ("validation.regex", "quiet_hours.2.to"),
            ("validation.object", "quiet_hours.3"),
            ("validation.date", "paused_until"),
        ],
    )
    assert await api.app_state.database.value("select count(*) from preferences") == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"kinds": []}, ("validation.object", "kinds")),
        ({"kinds": {"nothing": None}}, ("validation.prohibited", "kinds.nothing")),
        ({"quiet_hours": {}}, ("validation.array", "quiet_hours")),
        ({"quiet_hours": [window("01:00", "02:00")] * 21}, ("validation.array_between", "quiet_hours")),
        ({"paused_until": "2020-01-01T00:00:00"}, ("validation.date", "paused_until")),
        ({"paused_until": "tomorrow"}, ("validation.date", "paused_until")),
        ({"paused_until": 1}, ("validation.date", "paused_until")),
        ({"time_zone": 1}, ("validation.string", "time_zone")),
        ({"time_zone": ""}, ("validation.in", "time_zone")),
        (
            {"quiet_hours": [{**window("01:00", "02:00"), "from": "01:00\n"}]},
            ("validation.regex", "quiet_hours.0.from"),
        ),
    ],
)
async def test_each_preference_error_has_its_code(api: Api, changes: dict[str, Any], code: tuple[str, str]) -> None:
    await api.people(1)
    assert codes_of(await prefer(api, **changes)) == (422, [code])


async def test_maximum_number_of_quiet_hours_is_accepted(api: Api) -> None:
    await api.people(1)
    assert len((await prefer(api, quiet_hours=[window("01:00", "02:00")] * 20)).json()["quiet_hours"]) == 20


async def test_concurrent_preference_changes_are_all_kept(api: Api) -> None:
    await api.people(1)
    kinds = [*api.app_state.catalogue.kinds][:10]
    answers = await asyncio.gather(
        *(prefer(api, kinds={name: {channel: False}}) for name in kinds for channel in ("push", "web_push")),
        prefer(api, time_zone="Asia/Tokyo"),
        prefer(api, quiet_hours=[window("01:00", "02:00")]),
    )
    assert {answer.status_code for answer in answers} == {200}
    found = await shown(api)
    assert {name for name, each in found["kinds"].items() if not (each["push"] or each["web_push"])} == set(kinds)
    assert (found["time_zone"], len(found["quiet_hours"])) == ("Asia/Tokyo", 1)


async def test_erasure_removes_preferences_before_id_reuse(api: Api) -> None:
    await api.people(1)
    await prefer(api, time_zone="Asia/Tokyo")
    assert (await api.as_service("DELETE", "/directory/users/1")).status_code == 204
    assert await api.app_state.database.value("select count(*) from preferences") == 0
    await api.people(1)
    assert (await shown(api))["time_zone"] == "UTC"


async def test_concurrent_erasure_and_preferences_patch_do_not_deadlock(api: Api) -> None:
    for user in range(1, 41):  # an erased id could not return within its second
        await api.people(user)
        erasing = api.as_service("DELETE", f"/directory/users/{user}")
        patching = prefer(api, user, time_zone="Asia/Tokyo"), prefer(api, user)
        first, erased, second = await asyncio.gather(patching[0], erasing, patching[1])
        assert erased.status_code == 204
        assert {first.status_code, second.status_code} <= {200, 401}
        assert await api.app_state.database.value("select count(*) from preferences") == 0


async def test_preferences_of_many_users_are_loaded_in_one_query(api: Api) -> None:
    await api.people(1, 2, 3)
    await api.people(4, time_zone="Asia/Tokyo")
    await prefer(api, 3, kinds={"note": {"push": False}})
    app_state = api.app_state
    found = await preferences.load(app_state.database, app_state.operator, [1, 2, 3, 4, 99])
    assert set(found) == {1, 2, 3, 4}
    assert found[1] is found[2]
    assert found[3].kinds["note"] == Switches(push=False)
    assert found[4].time_zone.key == "Asia/Tokyo"
    async with app_state.database.transaction() as connection:
        assert await preferences.load(connection, app_state.operator, [1]) == {1: found[1]}


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The file that the documentation shows."""
    [text] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "preferences.toml"
    path.write_text(text, encoding="utf-8")
    return path


async def test_operator_defaults_and_locks_apply_and_are_shown(url: str, catalogue: Catalogue, rules: Path) -> None:
    async with serving(url, catalogue, with_worker=False) as free:
        await free.people(1)
        hours = [window("01:00", "02:00")]
        await prefer(free, quiet_hours=hours, kinds={"note": {"push": True, "web_push": False}})
    async with serving(url, catalogue, with_worker=False, preferences_file=rules) as api:
        found = await shown(api)
        nights = [window("20:00", "07:00", *DAYS[:5]), window("18:00", "09:00", *DAYS[5:])]
        assert found["quiet_hours"] == nights
        assert found["kinds"]["note"] == {"push": False, "web_push": False, "urgent": False}
        assert found["kinds"]["gamification/new_level"] == {"push": False, "web_push": False, "urgent": False}
        assert found["kinds"]["overdue_task"]["urgent"] is True
        answer = await prefer(api, kinds={"note": {"push": True, "urgent": True}}, quiet_hours=None, paused_until=None)
        assert codes_of(answer) == (
            422,
            [("validation.prohibited", "kinds.note.push"), ("validation.prohibited", "quiet_hours")],
        )
        assert (await prefer(api, kinds={"gamification/new_level": {"push": True}})).status_code == 200
        kinds = {each["name"]: each for each in (await api.as_user(1, "GET", "/notifications/kinds")).json()["data"]}
        assert kinds["note"]["default"] == {"push": False, "web_push": True, "urgent": False}
        assert kinds["note"]["locked"] == {"push": True, "web_push": False, "urgent": False}
        assert kinds["gamification/new_level"]["default"]["push"] is False
        assert kinds["overdue_task"]["default"]["urgent"] is True
        assert kinds["custom"]["locked"] == dict.fromkeys(("push", "web_push", "urgent"), False)
    async with serving(url, catalogue, with_worker=False) as free:
        assert (await shown(free))["quiet_hours"] == hours
        assert (await shown(free))["kinds"]["note"]["push"] is True


async def test_preferences_that_were_read_can_be_sent_back_unchanged(
    url: str, catalogue: Catalogue, rules: Path
) -> None:
    ahead = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    async with serving(url, catalogue, with_worker=False) as api:
        await api.people(1, time_zone="Asia/Tokyo")
        await prefer(api, paused_until=ahead, quiet_hours=[window("01:00", "02:00")], kinds={"note": {"push": False}})
        found = await shown(api)
        assert found["paused_until"] is not None
        answer = await prefer(api, **found, more={"of": "a later version"})
        assert (answer.status_code, answer.json()) == (200, found)
    rules.write_text(rules.read_text("utf-8").replace("[locked]", "[locked]\npaused_until = true\ntime_zone = true"))
    async with serving(url, catalogue, with_worker=False, preferences_file=rules) as api:
        found = await shown(api)
        assert (found["paused_until"], found["time_zone"]) == (None, "Asia/Tokyo")
        answer = await prefer(api, **found)
        assert (answer.status_code, answer.json()) == (200, found)
        wrong = {**found, "paused_until": ahead, "time_zone": "UTC", "kinds": {"note": {"push": 0}}}
        assert codes_of(await prefer(api, **wrong)) == (
            422,
            [("validation.prohibited", name) for name in ("kinds.note.push", "paused_until", "time_zone")],
        )
    async with serving(url, catalogue, with_worker=False) as api:
        assert (await shown(api))["quiet_hours"] == [window("01:00", "02:00")]


def test_locked_pause_is_null_and_locked_time_zone_is_the_directorys(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text("[locked]\npaused_until = true\ntime_zone = true\n")
    operator = Operator.load(CATALOGUE, path)
    found = operator.preferences({"paused_until": "2999-01-01 00:00:00", "time_zone": "Asia/Tokyo"}, "UTC")
    assert (found.paused_until, found.time_zone.key) == (None, "UTC")


def test_operator_preferences_file_reports_each_error_on_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(
        """
        colour = "red"
        [defaults]
        quiet_hours = [{ from = "20:00", to = "20:00" }, { from = 20, to = "07:00", until = "08:00" }]
        [locked]
        pause = true
        [kinds.noet]
        push = false
        [kinds.note]
        push = "no"
        locked = ["inbox"]
        """
    )
    with pytest.raises(Refusal) as refused:
        Operator.load(CATALOGUE, path)
    assert str(refused.value).splitlines() == [
        f"{path}: The locked.pause field is not allowed here.",
        f"{path}: The kinds.note.push field must be true or false.",
        f"{path}: The kinds.note.locked.0 field must be push, web_push or urgent.",
        f"{path}: The colour field is not allowed here.",
        f"{path}: The defaults.quiet_hours.0.to field must not be the same as from.",
        f"{path}: The defaults.quiet_hours.1.from field must be a string.",
        f"{path}: The defaults.quiet_hours.1.until field is not allowed here.",
        f"{path}: The kinds.noet field is not a known kind; write `note`.",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[kinds", "is not TOML in UTF-8: Expected"),
        (b"\xff", "is not TOML in UTF-8"),
        (None, "cannot be read: No such file or directory"),
        (b"kinds = 1", "The kinds field must be an object"),
        (b"defaults = 1", "The defaults field must be an object"),
        (b"[defaults]\nquiet_hours = 1", "The defaults.quiet_hours field must be an array"),
        (b"[defaults]\nquiet_hours = [{ from = 20:00:00, to = '07:00' }]", "quiet_hours.0.from field must be a string"),
        (b"[kinds]\nnote = 1", "The kinds.note field must be an object"),
    ],
)
def test_unreadable_preferences_file_is_rejected_in_one_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "rules.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refusal, match=said) as refused:
        Operator.load(CATALOGUE, path)
    assert len(str(refused.value).splitlines()) == 1
    assert str(path) in str(refused.value)
