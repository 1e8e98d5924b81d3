"""The operators' console: the page, its security, and its API calls."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.support import second_cell
from tests.support.barriers import barriers_of
from tests.support.built_in import CATALOGUE
from tests.support.database import locked, make_database
from tests.support.events import custom, in_future, note, post
from tests.support.host_page import SCREENSHOTS, stop_clock
from tests.support.openid_provider import CLIENT_ID, OpenIdProvider, openid_provider
from tests.support.pushes import ANDROID, IPHONE, becomes, hurry, pushes_of, register, until_stopped
from tests.support.service import HOUR, SECRET, Api, serving
from tests.support.waiting import reaches, until
from tocsin import explain
from tocsin.api.console import FILES
from tocsin.auth.minting import mint_service
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.db.url import read_only
from tocsin.history import Recorder
from tocsin.metrics import Metrics
from tocsin.postgres.supervisor import Embedded
from tocsin_phones import Phones

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""The content security policy, literally, so that a change is visible."""

SOURCES = Path(__file__).parents[2] / "web/console"
HOSTILE = "<img src=x onerror=document.title='taken'>\"'&amp;"
OPERATOR = mint_service(SECRET, "night", ["operations"], HOUR)

PAGE_OF_A_PROXY: dict[str, Any] = {"content_type": "text/html", "body": "<!doctype html><title>Sign in</title>"}
BROKEN = [PAGE_OF_A_PROXY, {"content_type": "application/json", "body": '{"data": ['}]
"""Answers that are not those of the service: the page of a proxy, and an answer that breaks off."""


async def ask(api: Api, path: str, company_id: int | None = None) -> Any:
    answer = await api.as_service("GET", path, "operations", company_id=company_id)
    assert answer.status_code == 200, answer.text
    return answer.json()


class TestCalls:
    async def test_console_shows_a_user_with_devices_and_their_state(self, pushing: Api, phones: Phones) -> None:
        await register(pushing, 1, IPHONE)
        await register(pushing, 1, ANDROID, type="Android")
        await register(pushing, 1, "cc" * 32, app="another")
        phones.answer("apns", status=413, reason="PayloadTooLarge", times=1)
        await becomes(pushing, await pushing.post(custom(1)), {"delivered": 1, "refused": 1})
        found = await ask(pushing, "/operations/users/1")
        assert (found["first_name"], found["active"], found["unread"], found["total"]) == ("First1", True, 1, 1)
        states = {device["token_ending"]: device["state"] for device in found["devices"]}
        assert states == {IPHONE[-6:]: "refused", ANDROID[-6:]: "delivered", "cccccc": "unserved"}
        assert not any(token in json.dumps(found) for token in (IPHONE, ANDROID))
        [iphone] = [device for device in found["devices"] if device["lane"] == "apns/default"]
        assert "PayloadTooLarge" in iphone["what"]

    async def test_console_shows_when_a_user_wants_pushes(self, api: Api) -> None:
        await api.people(1, 2, time_zone="Europe/Copenhagen")
        changes = {
            "kinds": {"note": {"push": False}},
            "quiet_hours": [{"days": ["sat"], "from": "20:00", "to": "07:00"}],
            "paused_until": in_future(),
        }
        assert (await api.as_user(1, "PATCH", "/notifications/preferences", json=changes)).status_code == 200
        own = (await api.as_user(1, "GET", "/notifications/preferences")).json()
        assert (await ask(api, "/operations/users/1"))["preferences"] == own
        usual = (await ask(api, "/operations/users/2"))["preferences"]
        assert (usual["paused_until"], usual["quiet_hours"], usual["kinds"]["note"]["push"]) == (None, [], True)

    async def test_console_explains_recent_and_missed_notifications(self, api: Api) -> None:
        await api.people(1, 2)
        await api.team(7, 1, 2)
        came, deleted = await api.post(note(1)), await api.post(custom(1))
        await api.as_user(1, "DELETE", f"/notifications/{deleted}")
        excepted = await api.post({**custom(teams=(7,)), "notify": {"teams": [7], "except": [1]}})
        await api.post(custom(2))
        found = await ask(api, "/operations/users/1/events")
        told = [(event["event_id"], event["recipient"], event["why"]) for event in found["data"]]
        assert told == [
            (excepted, False, "left out: the event excludes the user, or was resolved for them"),
            (deleted, True, "named"),
            (came, True, "named"),
        ]
        assert found["data"][1]["deleted_at"]
        assert len((await ask(api, "/operations/users/1/events?limit=1"))["data"]) == 1
        assert (await ask(api, "/operations/users/1/events?since=2999-01-01 00:00:00"))["data"] == []

    async def test_console_shows_how_far_back_events_were_searched(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tocsin.explain.MAX_EVENTS_SCANNED", 2)
        await api.people(1, 2)
        first = await api.post(custom(1))
        missed = await api.post({**custom(1, 2), "notify": {"users": [1, 2], "except": [1]}})
        for since in ("2020-01-01 00:00:00", "0999-12-31 23:59:59", "0001-01-01 00:00:00"):
            assert (await ask(api, f"/operations/users/1/events?since={since}"))["looked_back_to"] == since
        for _ in range(2):
            await api.post(custom(2))
        found = await ask(api, f"/operations/users/1/events?since={since}")
        assert [event["event_id"] for event in found["data"]] == [first], "what came is always told"
        assert found["looked_back_to"] > since
        assert missed

    async def test_console_finds_a_device_by_the_end_of_its_token(self, api: Api) -> None:
        await api.people(1)
        await api.people(3, company_id=2)
        await register(api, 1, "0f" * 29 + "abcdef")
        await register(api, 3, "A" * 32 + "abcdef", type="Android")
        for ending, users in (("abcdef", [3, 1]), ("ABCDEF", [1]), ("abcdeg", [])):
            found = (await ask(api, f"/operations/devices?ending={ending}"))["data"]
            assert [device["user_id"] for device in found] == users
        assert "0f0f" not in json.dumps(await ask(api, "/operations/devices?ending=abcdef"))
        found = (await ask(api, "/operations/devices?ending=abcdef", company_id=1))["data"]
        assert [device["user_id"] for device in found] == [1]

    async def test_console_finds_a_user_by_name_or_email_prefix(self, api: Api) -> None:
        await api.people(1, first_name="Jens Peter", last_name="Ærø", email="JP@example.com")
        await api.people(2, company_id=2, first_name="Jens", last_name="100%_Sure")
        for words, users in (
            ("jens", [1, 2]),
            ("JENS  peter æ", [1]),
            ("ærø", [1]),
            ("jp@EXAMPLE", [1]),
            ("100%", [2]),
            ("1_0", []),
            ("peter", []),
        ):
            assert [
                each["id"] for each in (await ask(api, f"/operations/users?search={quote(words)}"))["data"]
            ] == users
        assert [each["id"] for each in (await ask(api, "/operations/users?search=jens", company_id=2))["data"]] == [2]
        assert len((await ask(api, "/operations/users?search=jens&limit=1"))["data"]) == 1
        for wrong in ("j", "", "x" * 256):
            answer = await api.as_service("GET", f"/operations/users?search={wrong}", "operations")
            assert [each["field"] for each in answer.json()["errors"]] == ["search"]

    async def test_operator_finds_users_among_many_of_other_companies(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(explain, "MAX_CANDIDATES", 3)
        same: dict[str, Any] = {"first_name": "Jens", "last_name": "Jensen", "email": "jens@example.com"}
        await api.people(*range(1, 6), **same)
        await api.people(6, company_id=2, **same)
        for company, count in ((2, 1), (3, 0), (1, 3), (None, 3)):
            found = (await ask(api, "/operations/users?search=jens", company_id=company))["data"]
            assert len(found) == count, company
            assert {each["company_id"] for each in found} <= {company or 1}

    async def test_console_lists_recipients_and_failed_pushes_of_an_event(self, pushing: Api, phones: Phones) -> None:
        await pushing.people(*range(1, 6))
        await register(pushing, 2, IPHONE)
        await register(pushing, 3, ANDROID, type="Android")
        phones.answer("apns", status=413, reason="PayloadTooLarge", times=1)
        id_ = await pushing.post(custom(1, 2, 3, 4))
        await becomes(pushing, id_, {"delivered": 1, "refused": 1})
        path = f"/operations/events/{id_}/recipients"
        found = (await ask(pushing, path))["data"]
        assert [(each["user_id"], each["pushes"]) for each in found] == [
            (1, []),
            (2, ["refused"]),
            (3, ["delivered"]),
            (4, []),
        ]
        assert [each["user_id"] for each in (await ask(pushing, f"{path}?pushed=no"))["data"]] == [2]
        assert [each["user_id"] for each in (await ask(pushing, f"{path}?limit=2&after=1"))["data"]] == [2, 3]
        assert (await ask(pushing, f"{path}?pushed=no&after=2"))["data"] == []
        other = await pushing.as_service("GET", path, "operations", company_id=2)
        assert other.status_code == 404

    async def test_console_shows_senders_but_no_text_of_custom_notifications(self, api: Api) -> None:
        await api.people(1, 2, 3)
        await api.people(4, company_id=2)
        await api.team(7, 1, 2, 3)
        body = {"message": "A private word", "notify": {"teams": [7]}}
        await api.as_user(1, "POST", "/notifications", json=body)
        await api.as_user(4, "POST", "/notifications", json={"message": "Another", "notify": {"users": [4]}})
        last = await api.post(custom(2, 3))
        found = (await ask(api, "/operations/custom-notifications"))["data"]
        assert "word" not in json.dumps(found)
        told = [(each["sender"] and each["sender"]["id"], each["service"]) for each in found]
        assert told == [(None, "crm"), (4, None), (1, None)]
        assert (found[0]["id"], found[0]["users"], found[0]["recipients"]) == (last, 2, 2)
        assert (found[2]["sender"]["first_name"], found[2]["teams"], found[2]["recipients"]) == ("First1", 1, 2)
        found = (await ask(api, "/operations/custom-notifications", company_id=2))["data"]
        assert [each["sender"]["id"] for each in found] == [4]

    async def test_console_limits_a_company_bound_service_to_its_company(self, api: Api) -> None:
        database = api.app_state.database
        await api.people(1)
        await api.people(2, company_id=2)
        ids = [await api.post(custom(user), company_id=user) for user in (1, 2)]
        for id_ in ids:
            await database.value(
                "insert into dead_letters (id, task, lane, attempts, progress, reason)"
                " values ($1, 'deliver', 'direct', 8, 0, 'broken')",
                id_,
            )
            await database.value(
                "insert into deliveries (event_id, device_id, user_id, lane, is_bulk, state, settled_at, type,"
                " token_ending) values ($1, $1, 1, 'apns/default', false, 'dead', now(), 'iOS', 'abcdef')",
                id_,
            )
        letters = (await ask(api, "/operations/dead-letters", company_id=1))["data"]
        assert {letter["event_id"] for letter in letters} == {ids[0]}
        assert len(letters) == 2
        for body, due in (
            ({"events": [ids[0]]}, {"jobs": 0, "pushes": 0}),
            ({"lane": "apns/default"}, {"jobs": 0, "pushes": 1}),
            ({"events": ids}, {"jobs": 1, "pushes": 0}),
        ):
            answer = await api.as_service("POST", "/operations/replay", "operations", company_id=2, json=body)
            assert answer.json() == due, body
        assert {letter["what"] for letter in (await ask(api, "/operations/dead-letters"))["data"]} == {"job", "push"}

    async def test_time_to_inbox_is_measured_once_per_event(self, api: Api) -> None:
        people = range(1, 151)
        await api.people(*people)
        await api.team(7, *people)
        before = await counted(api)
        await api.post(custom(1, 2))
        await api.post(custom(teams=(7,)))  # through the bulk queue
        await reaches(lambda: counted(api), before + 2)


async def test_concurrent_metrics_requests_share_one_count(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def due_counts(metrics: Metrics) -> list[str]:
        await database.value("insert into jobs (id, task, lane) values (gen_random_uuid(), 'erase', 'bulk')")
        texts = await asyncio.gather(*(metrics.text(database) for _ in range(3)))
        return [re.findall(r'tocsin_jobs_due{lane="bulk"} (\S+)', str(text, "utf-8"))[0] for text in texts]

    monkeypatch.setattr("tocsin.metrics.FRESH", 3600)
    metrics = Metrics()
    assert await due_counts(metrics) == ["1.0"] * 3
    assert await due_counts(metrics) == ["1.0"] * 3
    monkeypatch.setattr("tocsin.metrics.FRESH", 0)
    monkeypatch.setattr("tocsin.metrics._PART", 0)
    metrics = Metrics()
    assert [await due_counts(metrics) for _ in range(2)] == [["3.0"] * 3, ["4.0"] * 3]


async def counted(api: Api) -> float:
    text = (await api.as_service("GET", "/metrics", "operations")).text
    return float(re.findall(r"^tocsin_inbox_seconds_count (\S+)", text, re.MULTILINE)[0])


MANY = 40_000
"""Rows of each large table, of which a console query may read only a part."""

READS: dict[tuple[str, str], tuple[Any, ...]] = {
    ("explain", "person"): (1, None),
    ("explain", "devices"): (1,),
    ("explain", "find"): ("first 39999", None, 50, 1_000),
    ("explain", "find "): ("39999@example.com", 2, 50, 1_000),
    ("explain", "recipients"): ("00000000-0000-0000-0000-000000000001", 0, 25, None, False),
    ("explain", "recipients "): ("00000000-0000-0000-0000-000000000001", 0, 25, 1, True),
    ("explain", "reach"): (timedelta(days=90), 5_000, None),
    ("explain", "reach "): (timedelta(days=90), 5_000, 2),
    ("explain", "events"): (1, timedelta(days=90), None, 50, 5_000),
    ("event_status", "customs"): (timedelta(0), 100, None),
    ("event_status", "customs "): (timedelta(0), 100, 2),
    ("audit", "page"): (None, "00000000-0000-0000-0000-000000009000", None, None, None, None, 26, 26),
    ("audit", "page "): (2, "00000000-0000-0000-0000-000000009000", None, None, None, None, 26, 26),
    ("devices", "by_ending"): ("abcdef", None, 100),
    ("jobs", "dead_letters"): (timedelta(0), 100, None),
    ("deliveries", "dead"): (timedelta(0), 100, None),
    ("deliveries", "dead "): (timedelta(0), 100, 2),
    ("deliveries", "of_person"): ("00000000-0000-0000-0000-000000000001", 1),
    ("deliveries", "counts"): ("00000000-0000-0000-0000-000000000001", ()),
    ("event_status", "event"): ("00000000-0000-0000-0000-000000000001", None, None, ()),
    ("event_status", "person"): ("00000000-0000-0000-0000-000000000001", 1, None, None),
    ("event_status", "readers"): ("00000000-0000-0000-0000-000000000001", ()),
}
"""The statements of the console's API calls, with arguments; an interval is a time that long ago."""


@pytest.fixture
async def crowded(database: Database) -> Database:
    """A database with many rows, most of them unrelated to user 1."""
    for statement in FILLING.split(";\n"):
        await database.value(statement, *([MANY] if "$1" in statement else []))
    return database


FILLING = """
insert into users (id, company_id, first_name, last_name, email, time_zone)
select n, 1 + n % 2, 'First', n || ' Last', n || '@example.com', 'UTC' from generate_series(1, $1::int) n;
insert into heads (user_id, locale, active) select n, 'en', true from generate_series(1, $1::int) n;
insert into teams values (1, 1, 'All');
insert into members select 1, n from generate_series(1, $1::int) n;
insert into devices (token, user_id, type, provider, environment, app)
select md5(n::text), n, 'iOS', 'apns', 'production', 'default' from generate_series(1, $1::int) n;
insert into events (id, service, company_id, kind, actor, data, params, users, teams, subjects, accepted_at)
select lpad(to_hex(n), 32, '0')::uuid, 'crm', case when n % 1000 = 1 then 2 else 1 end,
       case when n % 5 = 0 then 'custom' else 'note' end, n, '{}', '{}', array[n], '{}', '{}',
       now() - n * interval '1 minute'
from generate_series(1, $1::int) n;
insert into recipients (event_id, after_user, user_ids, team_ids, reached, dropped)
select id, 0, users, '{0}', 1, 0 from events;
insert into inbox (position, created_at, event_id, user_id, language)
select n, now() - n * interval '1 minute', lpad(to_hex(n), 32, '0')::uuid, 1 + n % 2, 'en'
from generate_series(1, $1::int) n;
insert into deliveries
    (event_id, device_id, user_id, lane, is_bulk, state, settled_at, made_at, type, token_ending)
select lpad(to_hex(n), 32, '0')::uuid, gen_random_uuid(), 1 + n % 3, 'apns/default', false,
       case when n % 100 = 0 then 'dead' else 'delivered' end, now() - n * interval '1 minute',
       now() - n * interval '1 minute', 'iOS', 'abcdef'
from generate_series(1, $1::int) n;
insert into dead_letters
select lpad(to_hex(n), 32, '0')::uuid, 'deliver', 'direct', 8, 0, 'broken', now() - n * interval '1 minute'
from generate_series(1, $1::int) n;
insert into audit_entries (id, happened_at, action, caller, company_id, details)
select lpad(to_hex(n), 32, '0')::uuid, now() - n * interval '1 minute', 'custom_sent', 'user 1', 1 + n % 2, '{}'
from generate_series(1, $1::int) n;
vacuum analyze
"""


async def test_console_queries_never_scan_a_large_table(crowded: Database) -> None:
    wrong = {}
    async with crowded.connection() as connection:
        now = await connection.fetchval("select now()")
        for (module, name), arguments in READS.items():
            given = [now - each if isinstance(each, timedelta) else each for each in arguments]
            statement = f"explain (analyze, format json) {queries(module)[name.strip()]}"
            plan = json.loads(await connection.fetchval(statement, *given))[0]["Plan"]
            for node in nodes(plan):
                touched = node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
                if node.get("Relation Name") == "workers":
                    continue  # a row for each worker
                if node["Node Type"] == "Seq Scan" or ("Relation Name" in node and touched > MANY / 7):
                    wrong[module, name] = node["Node Type"], node["Relation Name"], touched
    assert wrong == {}


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for inner in plan.get("Plans", []) for node in nodes(inner))]


class TestFiles:
    async def test_console_has_content_security_policy_and_cache_headers(self, api: Api) -> None:
        for path in ("/console", *(f"/console/{name}" for name in FILES)):
            answer = await api.call("GET", path)
            assert answer.status_code == 200, path
            assert answer.headers["content-security-policy"] == POLICY
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cache-control"] == "no-cache"
            again = await api.call("GET", path, headers={"If-None-Match": answer.headers["etag"]})
            assert again.status_code == 304
        for name in ("console.html", "nothing.js", "__init__.py", "..%2fschema.sql"):
            assert (await api.call("GET", f"/console/{name}")).status_code == 404, name

    async def test_console_sources_load_no_other_host_and_parse_no_markup(self) -> None:
        folder = files("tocsin.web")
        written = [
            folder / "console.html",
            folder / "console.css",
            *SOURCES.glob("*.js"),
            *SOURCES.glob("../shared/*.js"),
        ]
        assert len(written) > 8
        for file in [*written, folder / "console.js"]:
            text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?:|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|style=|=\"/", text)

    async def test_console_chart_code_stays_small(self) -> None:
        assert len((SOURCES / "charts.js").read_text("utf-8").splitlines()) < 200


class TestPage:
    async def test_console_link_signs_in_and_keeps_token_in_this_tab(self, page: Page, api: Api) -> None:
        await page.goto(f"{api.http.base_url}/console#token={OPERATOR}")
        await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        assert "token" not in page.url
        assert await page.evaluate("history.length") == 2, "about:blank and the console"
        kept = "[localStorage.length, document.cookie, sessionStorage.getItem('tocsin.console.token')]"
        assert await page.evaluate(kept) == [0, "", OPERATOR]
        await page.reload()
        await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("Token", exact=True)).to_be_visible()
        assert await page.evaluate("sessionStorage.length") == 0

    async def test_late_answer_to_an_ended_session_changes_nothing(self, page: Page, api: Api) -> None:
        held: list[Route] = []

        def hold(route: Route) -> None:
            held.append(route)

        field = page.get_by_label("Token", exact=True)
        await page.route("**/operations/console", hold)
        await page.goto(f"{api.http.base_url}/console#token={OPERATOR}")
        await until(lambda: held)
        await page.get_by_role("button", name="Sign out").click()
        await expect(field).to_be_visible()
        async with page.expect_response("**/operations/console"):
            await held.pop().continue_()
        assert await page.evaluate("sessionStorage.length") == 0
        await page.unroute_all()

        await enter(page, api)
        await page.route("**/operations/audit?*", hold)
        await page.evaluate("location.hash = 'audit'")
        await until(lambda: held)
        await page.get_by_role("button", name="Sign out").click()
        await field.fill(mint_service(SECRET, "Ærø", ["operations"], HOUR))
        await page.keyboard.press("Enter")
        await until(lambda: len(held) > 1)
        async with page.expect_response("**/operations/audit?*"):
            await held[0].fulfill(status=401, json={"errors": [{"code": "unauthorized", "message": "Sign in."}]})
        await held[1].continue_()
        await expect(page.get_by_role("heading", name="Audit")).to_be_visible()
        await expect(page.get_by_role("button", name="Sign out")).to_be_visible()

    async def test_console_link_asks_before_replacing_a_session(self, page: Page, api: Api) -> None:
        await enter(page, api)
        other = mint_service(SECRET, "Ærø", ["operations"], HOUR)
        kept = "sessionStorage.getItem('tocsin.console.token')"
        for how in ("hash", "load"):
            if how == "load":
                await page.goto("about:blank")
            await page.goto(f"{api.http.base_url}/console#token={other}")
            await expect(page.get_by_role("dialog")).to_contain_text(
                "signs in as “Ærø”, and you are signed in as “night”"
            )
            assert other not in page.url
            await page.get_by_role("button", name="Cancel").click()
            await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
            assert await page.evaluate(kept) == OPERATOR
        await page.goto(f"{api.http.base_url}/console#token={other}")
        await page.get_by_role("button", name="Switch").click()
        await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        await reaches(lambda: page.evaluate(kept), other)

    async def test_console_shows_stopped_lanes_first_with_reason_and_remedy(
        self, page: Page, pushing: Api, phones: Phones
    ) -> None:
        await register(pushing, 1, IPHONE)
        phones.answer("apns", status=403, reason="InvalidProviderToken")
        await post(pushing, custom(1))
        await until_stopped(pushing)
        await enter(page, pushing)
        first = page.get_by_role("list", name="Problems").get_by_role("listitem").first
        said = r"apns/default stopped at [-\d]{10} [:\d]{8} UTC: .*InvalidProviderToken.*waits?; nothing is lost.*HUP"
        await expect(first).to_have_text(re.compile(said))
        titles = await page.locator("main h2").all_inner_texts()
        assert titles == ["Lanes", "Recent failures", "Last 15 minutes"]
        await pushing.app_state.database.value(
            "update workers set lanes = array_remove(lanes, 'apns/default') returning 1"
        )
        await page.get_by_role("button", name="Refresh").click()
        problems = page.get_by_role("list", name="Problems").get_by_role("listitem")
        await expect(problems).to_have_text(
            ["apns/default: has no keys at any running worker. 1 push waits; nothing is lost."]
        )

    async def test_console_shows_why_work_waits_until_it_ends(self, page: Page, idle: Api, dba: Connection) -> None:
        problems = page.get_by_role("list", name="Problems")
        late = "insert into jobs (id, task, lane, due_at) values (gen_random_uuid(), 'deliver', 'direct', $1)"
        await dba.execute(late, datetime.now(UTC) - timedelta(minutes=2))
        await enter(page, idle)
        await expect(problems).to_contain_text(
            "jobs of the direct queue have waited for more than 60 s: no worker is running"
        )
        await dba.execute("delete from jobs")
        await expect(problems).to_contain_text("No problems")
        async with locked(dba, "jobs"):
            holder = f"the table jobs is locked by another session (process {dba.get_server_pid()}, tocsin)"
            await expect(problems).to_contain_text(f"Work waits or fails: {holder}.")
        await expect(problems).to_contain_text("No problems")

    async def test_console_long_name_stays_in_its_cell(self, page: Page, api: Api) -> None:
        await api.people(1, first_name="W" * 255, last_name="Z\u0335\u0334\u0336" * 60)
        await api.as_user(1, "POST", "/notifications", json={"message": "x", "notify": {"users": [1]}})
        await page.set_viewport_size({"width": 1100, "height": 800})
        await enter(page, api)
        for view in ("custom", "audit", "user/1"):
            await page.evaluate("view => location.hash = view", view)
            await expect(page.get_by_text("WWWW").first).to_be_visible()
            assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
            assert await page.evaluate(
                "[...document.querySelectorAll('.scroll')].every((each) => each.scrollWidth <= each.clientWidth)"
            ), view

    async def test_console_asks_for_a_token_if_missing_or_expired(self, page: Page, api: Api) -> None:
        for token in (mint_service(SECRET, "night", ["operations"], -HOUR), OPERATOR[:-3] + "abc"):
            await page.goto(f"{api.http.base_url}/console#token={token}")
            await expect(page.get_by_label("Token", exact=True)).to_be_visible()
            await page.goto("about:blank")
        await page.goto(f"{api.http.base_url}/console#dead-letters")
        await page.get_by_label("Token", exact=True).fill(mint_service(SECRET, "crm", ["events:write"], HOUR))
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("scope operations")
        for copied in (OPERATOR, f" {OPERATOR[:40]} {OPERATOR[40:]}\N{ZERO WIDTH SPACE}"):
            await page.get_by_label("Token", exact=True).fill(copied)
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("heading", name="Dead letters")).to_be_visible()
            await expect(page.get_by_role("main")).to_be_focused()
            await page.get_by_role("button", name="Sign out").click()
            await expect(page.get_by_role("alert")).to_have_text("You are signed out.")
            await expect(page.get_by_role("main")).to_be_focused()

    async def test_filter_of_the_audit_log_is_chosen_by_keyboard(self, page: Page, api: Api) -> None:
        await enter(page, api, "audit")
        await page.get_by_label("Action").focus()
        for _ in range(3):
            await page.keyboard.press("ArrowDown")
            assert await page.evaluate("location.hash") == "#audit", "an action on the way to another is not chosen yet"
        await expect(page.get_by_label("Action")).to_have_value("event_cancelled")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("No entries.")).to_be_visible()
        await expect(page.get_by_label("Action")).to_have_value("event_cancelled")

    async def test_console_returns_to_sign_in_when_the_token_expires(self, page: Page, api: Api) -> None:
        await enter(page, api)
        await page.get_by_role("button", name="Refresh").evaluate(
            "(button) => { sessionStorage.setItem('tocsin.console.token', 'a.b.c'); button.click(); }"
        )  # at once: the page asks by itself every 5 seconds
        await expect(page.get_by_role("alert")).to_contain_text("expired")
        await expect(page.get_by_label("Token", exact=True)).to_be_visible()

    async def test_console_polls_metrics_every_5_seconds_while_visible(self, page: Page, api: Api) -> None:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
        await page.clock.install()
        await enter(page, api)
        await expect(page.locator("#pulse")).to_contain_text("signed in until")
        asked.clear()
        for count in (1, 2, 3):
            async with page.expect_response("**/metrics"):
                await page.clock.run_for(5_000)
            await page.evaluate("document.readyState")  # requests sent at the same time are recorded now
            assert asked == ["metrics"] * count
        await look(page, "hidden")
        await page.clock.run_for(60_000)
        assert asked == ["metrics"] * 3, "nothing is asked in the background"
        async with page.expect_response("**/metrics"):
            await look(page, "visible")
        assert asked.count("metrics") == 4

    @pytest.mark.parametrize("broken", BROKEN)
    async def test_view_without_an_answer_says_so_and_is_loaded_later(
        self, page: Page, api: Api, broken: dict[str, Any]
    ) -> None:
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.clock.install()
        await enter(page, api)
        await expect(page.locator("#pulse")).to_contain_text("signed in until")
        await page.route("**/*", lambda route: route.fulfill(**broken))
        await page.get_by_role("link", name="Dead letters", exact=True).click()
        await expect(page.get_by_role("alert")).to_have_text("The service does not answer.")
        await page.clock.run_for(5_000)
        await expect(page.locator("#pulse")).to_contain_text("The service does not answer.")
        await page.unroute_all()
        await page.clock.run_for(5_000)
        await expect(page.get_by_text("No failures in the last 30 days.")).to_be_visible()
        await expect(page.locator("#pulse")).to_contain_text("signed in until")
        assert errors == []

    async def test_console_shows_a_stopped_lane_and_resumes_it(self, page: Page, pushing: Api, phones: Phones) -> None:
        await register(pushing, 1, IPHONE)
        await register(pushing, 1, ANDROID, type="Android")
        id_ = await give_up(pushing, phones)
        await enter(page, pushing)
        await expect(page.get_by_role("table", name="Lanes")).to_contain_text("apns/default")
        await expect(page.get_by_role("table", name="Recent failures")).to_contain_text("it expired before its turn")
        await page.get_by_role("link", name="Dead letters", exact=True).click()
        await page.get_by_role("checkbox", name="Select all").check()
        await expect(page.get_by_role("checkbox", name=f"Replay event {id_}")).to_be_checked()
        await shoot(page, "dead-letters")
        await page.get_by_role("button", name="Replay 1 selected").click()
        await expect(page.get_by_role("status")).to_have_text("Requeued 0 jobs and 1 push.")
        await expect(page.get_by_text("No failures in the last 30 days.")).to_be_visible()
        await becomes(pushing, id_, {"delivered": 2})
        await page.get_by_label("Event ID, user ID").fill(id_.upper())
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Event")).to_be_visible()
        await page.get_by_label("User ID", exact=True).fill("1")
        await page.get_by_role("button", name="Explain").click()
        await expect(page.get_by_text("to the inbox at")).to_contain_text("named")
        await expect(page.get_by_text("…aaaaaa through apns/default")).to_be_visible()
        await expect(page.get_by_role("table", name="Recipients")).to_contain_text("First1")
        await shoot(page, "event")
        await page.get_by_label("Event ID, user ID").fill("first1")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("table", name="Users")).to_contain_text("User 1")
        await page.get_by_label("Event ID, user ID").fill("aaaaaa")
        await page.keyboard.press("Enter")
        await page.get_by_role("link", name="User 1").click()
        await expect(page.get_by_role("table", name="Devices")).to_contain_text("…aaaaaa")
        await expect(page.locator("article")).to_have_count(1)
        wishes = page.locator("section", has=page.get_by_role("heading", name="Preferences"))
        await expect(wishes).to_contain_text("Not pushed to phones")
        await expect(wishes).to_contain_text("Quiet hours")
        await shoot(page, "user")

    async def test_support_sends_a_test_push_and_sees_its_result(
        self, page: Page, pushing: Api, phones: Phones
    ) -> None:
        await register(pushing, 1, IPHONE)
        await page.goto(
            f"{pushing.http.base_url}/console#token={mint_service(SECRET, 'desk', ['operations:support'], HOUR)}"
        )
        await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        await page.get_by_label("Event ID, user ID").fill("first1")
        await page.keyboard.press("Enter")
        await page.get_by_role("link", name="User 1").click()
        button = page.get_by_role("button", name="Send test push to iOS …aaaaaa")
        phones.answer("apns", token=IPHONE, status=400, reason="PayloadTooLarge", times=1)
        await button.focus()
        await page.keyboard.press("Enter")
        devices = page.get_by_role("table", name="Devices")
        await expect(devices.get_by_role("status")).to_have_text(re.compile("refused.*PayloadTooLarge"))
        await expect(button).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(devices.get_by_role("status")).to_have_text("delivered")
        assert len(phones.pushes("apns", IPHONE)) == 2
        await shoot(page, "test-push")

    async def test_console_requeues_a_whole_lane_after_confirmation(
        self, page: Page, pushing: Api, phones: Phones
    ) -> None:
        await register(pushing, 1, IPHONE)
        ids = [await give_up(pushing, phones) for _ in range(2)]
        await enter(page, pushing, "dead-letters")
        await page.get_by_role("button", name="Replay lane apns/default").click()
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.get_by_role("row")).to_have_count(3)
        await page.get_by_role("button", name="Replay lane apns/default").click()
        await page.get_by_role("dialog").get_by_role("button", name="Replay").click()
        await expect(page.get_by_role("status")).to_have_text("Requeued 0 jobs and 2 pushes.")
        for id_ in ids:
            await becomes(pushing, id_, {"delivered": 1})

    async def test_console_records_its_opening_once_and_shows_the_audit_log(self, page: Page, api: Api) -> None:
        await api.people(1, 2)
        for _ in range(26):
            await api.as_user(1, "POST", "/notifications", json={"message": "Private", "notify": {"users": [2]}})
        await api.as_service("DELETE", "/directory/users/2")
        await enter(page, api)
        opened = "select count(*) from audit_entries where action = 'console_opened' and caller = 'service night'"
        await reaches(lambda: page.evaluate("sessionStorage.getItem('tocsin.console.recorded') !== null"), due=True)
        await page.reload()
        await expect(page.locator("#pulse")).to_contain_text("signed in until")
        await page.get_by_role("link", name="Audit log").click()
        rows = page.get_by_role("table", name="Audit log").get_by_role("row")
        await expect(rows).to_have_count(26)
        await expect(rows.nth(1)).to_contain_text("Opened the console")
        await expect(rows.nth(2)).to_contain_text("Erased a user")
        await expect(rows.nth(2)).to_contain_text("service crm")
        await expect(rows.nth(3)).to_contain_text("user 1 First1 Last1")
        await expect(rows.nth(3)).to_contain_text("users: 1; teams: 0; recipients: 1")
        await page.get_by_role("button", name="Next page").click()
        await expect(rows).to_have_count(4)
        await page.get_by_role("button", name="First page").click()
        await expect(rows).to_have_count(26)
        await shoot(page, "audit")
        await page.get_by_label("Action").select_option("Erased a user")
        await page.get_by_role("button", name="Filter").click()
        await expect(rows).to_have_count(2)
        await page.get_by_label("Caller").fill("user 1")
        await page.get_by_role("button", name="Filter").click()
        await expect(page.get_by_text("No entries.")).to_be_visible()
        await expect(page.get_by_label("Action")).to_have_value("user_erased")
        assert await api.app_state.database.value(opened) == 1
        assert "Private" not in await page.content()

    async def test_console_shows_only_what_the_role_permits(self, page: Page, pushing: Api, phones: Phones) -> None:
        await register(pushing, 1, IPHONE)
        id_ = await give_up(pushing, phones)
        for role, views, selects, lanes in (
            ("operations:read", ["Overview", "Dead letters"], 0, 0),
            ("operations:support", ["Overview", "Dead letters", "Custom notifications"], 1, 0),
            ("operations", ["Overview", "Dead letters", "Custom notifications", "Audit log"], 1, 1),
        ):
            await page.goto("about:blank")
            token = mint_service(SECRET, "night", [role], HOUR)
            await page.goto(f"{pushing.http.base_url}/console#token={token}")
            if await page.get_by_role("button", name="Switch").count():
                await page.get_by_role("button", name="Switch").click()
            await expect(page.locator("nav a:visible")).to_have_text(views)
            await expect(page.get_by_role("search")).to_have_count(selects)
            await page.get_by_role("link", name="Dead letters", exact=True).click()
            await expect(page.get_by_role("table", name="Dead letters")).to_contain_text(id_[-12:])
            await expect(page.get_by_role("checkbox", name="Select all")).to_have_count(selects)
            await expect(page.get_by_role("button", name="Replay lane")).to_have_count(lanes)
            await expect(page.locator("td a")).to_have_count(2 * selects)

    async def test_console_of_a_company_says_among_which_failures_it_looked(self, page: Page, api: Api) -> None:
        for company, said in ((None, "No failures in the last 30 days."), (2, "among the latest 10,000 jobs and")):
            await page.goto("about:blank")
            token = mint_service(SECRET, "night", ["operations"], HOUR, company)
            await page.goto(f"{api.http.base_url}/console#token={token}")
            if company:
                await page.get_by_role("button", name="Switch").click()
            await expect(page.locator(".nothing", has_text=said)).to_be_visible()
            await page.get_by_role("link", name="Dead letters", exact=True).click()
            await expect(page.get_by_text(said)).to_be_visible()

    async def test_charts_show_what_was_before_the_page_was_opened(self, page: Page, api: Api) -> None:
        recorder = Recorder(api.app_state.database, api.app_state.metrics)
        await api.people(1)
        for _ in range(3):
            await api.post(custom(1))
        await recorder.record()
        earlier = "update metric_minutes set minute = date_trunc('minute', now()) - interval '5 minutes', seconds = 1"
        await api.app_state.database.value(earlier)
        await enter(page, api)
        await page.get_by_text("As a table").first.click()
        table = page.get_by_role("region", name="Throughput, as a table")
        await expect(table.get_by_role("row").last).to_contain_text("3.0")
        await expect(page.locator(".legend").first).to_contain_text("max 3.0")

    @pytest.mark.parametrize("hours", [-1, 1])
    async def test_charts_and_sign_in_follow_the_clock_of_the_service(self, page: Page, api: Api, hours: int) -> None:
        await a_day(api.app_state.database)
        await page.clock.install(time=datetime.now(UTC) + timedelta(hours=hours))
        await enter(page, api)
        now = datetime.now(UTC)
        await expect(page.locator("#pulse")).to_contain_text(re.compile(f"{now:%H}:|{now + timedelta(minutes=1):%H}:"))
        await page.get_by_text("As a table").first.click()
        rows = page.get_by_role("region", name="Throughput, as a table").get_by_role("row")
        await expect(rows.nth(10)).to_be_visible()
        assert 15 <= await rows.count() <= 18, "the minutes of the history and the measurements since"

    async def test_charts_show_the_last_hour_or_day_by_keyboard(self, page: Page, api: Api) -> None:
        await a_day(api.app_state.database)
        await enter(page, api)
        await expect(page.locator("#pulse")).to_contain_text("signed in until")
        drawing = page.get_by_role("group", name="Throughput:")
        await page.get_by_role("radio", name="Last 15 minutes").focus()
        await page.keyboard.press("ArrowRight")
        await expect(page.get_by_role("heading", name="Last hour")).to_be_visible()
        await expect(drawing).to_have_accessible_name(re.compile("the last hour; use the left and right arrow keys"))
        await expect(page.locator(".times").first).to_have_text("60 min ago40 min ago20 min agonow")
        await expect(page.locator(".legend").first).to_contain_text(re.compile(r"max (59|60)\b"))
        await page.keyboard.press("ArrowRight")
        await expect(page.get_by_role("heading", name="Last 24 hours")).to_be_visible()
        await expect(page.locator(".times").first).to_have_text("24 h ago16 h ago8 h agonow")
        await expect(page.locator(".legend").first).to_contain_text(re.compile(r"max 1,43\d"))
        spoken = page.locator("figcaption [aria-live]").first
        await drawing.focus()
        read: list[str] = []
        for key in ("Home", "PageDown", "ArrowRight", "PageUp", "End", "PageUp", "ArrowLeft"):
            await page.keyboard.press(key)
            await expect(spoken).not_to_have_text(read[-1] if read else "")
            read.append(await spoken.inner_text())

        def value(nth: int) -> int:
            return int(re.findall(r"inboxes ([\d,]+)", read[nth])[0].replace(",", ""))

        assert value(0) - value(1) == 120, "a page is two hours"
        assert value(1) - value(2) == 1
        assert value(3) - value(2) == 120
        assert value(6) - value(5) == 1
        await page.get_by_text("As a table: the highest values of each 15 minutes").first.click()
        rows = page.get_by_role("region", name="Throughput, as a table").get_by_role("row")
        await expect(rows.nth(95)).to_be_visible()
        assert await rows.count() <= 99
        await page.get_by_role("link", name="Dead letters", exact=True).click()
        await page.get_by_role("link", name="Overview").click()
        await expect(page.get_by_role("radio", name="Last 24 hours")).to_be_checked()
        await page.get_by_role("radio", name="Last 15 minutes").check()
        await expect(page.locator(".legend").first).not_to_contain_text("max 1,4")

    async def test_people_sign_in_at_the_identity_provider(self, page: Page, url: str, catalogue: Catalogue) -> None:
        async with signing_in(url, catalogue) as (console, provider):
            provider.person = {"sub": "a-1", "name": "Anna", "roles": ["other"]}
            await page.goto(f"{console}#custom")
            sign_in = page.get_by_role("button", name="Sign in with your organisation")
            await sign_in.click()
            await expect(page.get_by_text("have no role for this console")).to_be_visible()
            await shoot(page, "sign-in-failed")
            provider.person = {"sub": "a-1", "name": "Anna", "roles": ["support"]}
            await sign_in.click()
            await expect(page.locator("#pulse")).to_contain_text("Anna signed in until")
            await expect(page.get_by_role("heading", name="Custom notifications")).to_be_visible()
            await expect(page.locator("nav a:visible")).to_have_count(3)
            await page.reload()
            await expect(page.locator("#pulse")).to_contain_text("Anna signed in until")
            assert await page.evaluate("document.cookie + JSON.stringify({...localStorage, ...sessionStorage})") == "{}"
            second = await page.context.new_page()
            await second.goto(console)
            await expect(second.locator("#pulse")).to_contain_text("Anna signed in until")
            await page.get_by_role("button", name="Sign out").click()
            await expect(page.get_by_text("You are signed out.")).to_be_visible()
            await expect(second.get_by_text("Your session has ended. Sign in again.")).to_be_visible()
            await page.goto("about:blank")
            await page.goto(f"{console}#token={OPERATOR}")
            await expect(page.get_by_role("link", name="Audit log")).to_be_visible()
            await page.get_by_role("link", name="Audit log").click()
            rows = page.get_by_role("table", name="Audit log")
            await expect(rows).to_contain_text("operator a-1 Anna")
            for words in ("Signed in", "Signed out"):
                await expect(rows).to_contain_text(words)

    async def test_long_name_of_a_person_fits_a_narrow_window(self, page: Page, url: str, catalogue: Catalogue) -> None:
        await page.set_viewport_size({"width": 320, "height": 740})
        async with signing_in(url, catalogue) as (console, provider):
            provider.person["name"] = "W" * 200
            await page.goto(console)
            await page.get_by_role("button", name="Sign in with your organisation").click()
            await expect(page.locator("#pulse")).to_contain_text(re.compile(r"W{200} signed in until"))
            assert await page.evaluate("document.documentElement.scrollWidth") <= 320

    async def test_question_is_withdrawn_when_the_session_ends(self, page: Page, pushing: Api, phones: Phones) -> None:
        await register(pushing, 1, IPHONE)
        await give_up(pushing, phones)
        await enter(page, pushing, "dead-letters")
        await page.get_by_role("button", name="Replay lane").click()
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.evaluate("sessionStorage.setItem('tocsin.console.token', 'a.b.c')")
        await expect(page.get_by_role("alert")).to_contain_text("This token has expired")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(page.get_by_role("main")).to_be_focused()

    async def test_signing_in_again_in_one_tab_signs_no_other_tab_out(
        self, page: Page, url: str, catalogue: Catalogue
    ) -> None:
        async with signing_in(url, catalogue) as (console, _):
            tabs = [page, await page.context.new_page(), await page.context.new_page()]
            for tab in tabs:
                await tab.goto(console)
                await expect(tab.get_by_role("button", name="Sign in with your organisation")).to_be_visible()
            for tab in tabs[:2]:
                await tab.get_by_role("button", name="Sign in with your organisation").click()
                await expect(tab.locator("#pulse")).to_contain_text("Anna signed in until")
            await page.get_by_role("link", name="Audit log").click()
            await expect(page.get_by_role("table", name="Audit log")).to_contain_text("Signed out")
            await look(tabs[2], "hidden")
            await look(tabs[2], "visible")
            await expect(tabs[2].locator("#pulse")).to_contain_text("Anna signed in until")
            await page.get_by_role("button", name="Sign out").click()
            for tab in tabs[1:]:
                await expect(tab.get_by_text("Your session has ended. Sign in again.")).to_be_visible()

    async def test_page_that_is_not_the_console_of_the_settings_says_where_it_is(
        self, page: Page, url: str, catalogue: Catalogue
    ) -> None:
        async with signing_in(url, catalogue, console_url="https://ops.example.com/console") as (console, _):
            await page.goto(console)
            await expect(page.get_by_role("alert")).to_contain_text("Only the console at https://ops.example.com")
            await page.get_by_label("Token", exact=True).fill(OPERATOR)
            await page.keyboard.press("Enter")
            await expect(page.locator("#pulse")).to_contain_text("signed in until")

    async def test_session_outlasts_answers_that_do_not_arrive(
        self, page: Page, url: str, catalogue: Catalogue
    ) -> None:
        async with signing_in(url, catalogue) as (console, _):
            await page.clock.install()
            await page.route("**/console/session", lambda route: route.abort())
            await page.goto(console)
            await expect(page.get_by_role("alert")).to_have_text("The service does not answer.")
            await page.unroute_all()
            await page.clock.run_for(5_000)
            await page.get_by_role("button", name="Sign in with your organisation").click()
            signed_in = re.compile("Anna signed in until")
            await expect(page.locator("#pulse")).to_have_text(signed_in)
            await page.route("**/console/session", lambda route: route.fulfill(**PAGE_OF_A_PROXY))
            await page.get_by_role("button", name="Sign out").click()
            await expect(page.get_by_role("status")).to_have_text(
                "You are still signed in. The service does not answer."
            )
            await page.clock.fast_forward("10:00")  # the token has expired by then
            await expect(page.locator("#pulse")).to_contain_text("The service does not answer.")
            await page.unroute_all()
            await page.clock.run_for(5_000)
            await expect(page.locator("#pulse")).to_have_text(signed_in)

    async def test_console_works_without_a_database_that_accepts_writes(
        self, page: Page, url: str, catalogue: Catalogue
    ) -> None:
        async with serving(read_only(url), catalogue, with_worker=False) as api:
            await page.goto(f"{api.http.base_url}/console")
            await page.get_by_label("Token", exact=True).fill(OPERATOR)
            await page.keyboard.press("Enter")
            await expect(page.locator(".verdict")).to_contain_text("No problems")
            await expect(page.locator("#pulse")).to_contain_text("This server is read-only.")
            origin = str(api.http.base_url)
        async with serving(url, catalogue, with_worker=False) as api:
            there = str(api.http.base_url)
            await page.route("**/*", lambda route: route.continue_(url=route.request.url.replace(origin, there)))
            await expect(page.locator("#pulse")).to_contain_text("signed in until")
            opened = "select count(*) from audit_entries where action = 'console_opened'"
            assert await api.app_state.database.value(opened) == 1

    async def test_console_shows_external_data_as_text(self, page: Page, api: Api) -> None:
        await api.people(1, first_name=HOSTILE, last_name=HOSTILE)
        await register(api, 1, "0f" * 29 + "abcdef")
        id_ = await api.post({**custom(1), "params": {"body": HOSTILE}})
        await api.as_user(1, "POST", "/notifications", json={"message": "x", "notify": {"users": [1]}})
        await api.app_state.database.value(
            "insert into dead_letters values ($1, 'deliver', 'direct', 8, 0, $2)", id_, HOSTILE
        )
        await api.app_state.database.value("insert into lanes (name, configuration) values ($1, '')", HOSTILE)
        await enter(page, api)
        for view in ("", "dead-letters", "custom", "audit", "user/1"):
            await page.goto(f"{api.http.base_url}/console#{view}")
            await expect(page.get_by_text(HOSTILE).first).to_be_visible()
        for view in (
            HOSTILE,
            f"find/{HOSTILE}",
            f"user/{HOSTILE}",
            f"event/{HOSTILE}",
            "device/<b>%C3%28",
            f"audit/{HOSTILE}/{HOSTILE}",
        ):
            await page.evaluate("view => location.hash = view", view)
            await expect(page.locator("main[aria-busy]")).to_have_count(0)
        assert await page.locator("main img, main b:not(.legend b)").count() == 0
        assert "taken" not in await page.title()

    async def test_console_works_under_a_root_path(self, page: Page, url: str, catalogue: Catalogue) -> None:
        async with serving(url, catalogue, root_path="/notify") as api:
            await api.people(1)
            await page.goto(f"{api.http.base_url}/notify/console#token={OPERATOR}")
            await expect(page.locator("#pulse")).to_contain_text("signed in until")
            await expect(page.get_by_role("heading", name="Lanes")).to_be_visible()

    async def test_console_shows_the_chosen_one_of_several_cells(
        self, page: Page, server: Embedded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A user is found in any cell."""
        monkeypatch.setattr(second_cell, "is_wanted", True)
        async with serving(await make_database(server, "console_of_cells"), CATALOGUE) as api:
            await api.people(7)
            id_ = await api.post(custom(7))
            await enter(page, api, "custom")
            choice = page.get_by_label("Cell")
            await expect(choice).to_have_value("first")
            await expect(page.get_by_text(id_[-10:])).to_be_hidden()
            await choice.select_option("second")
            await expect(page.get_by_text(id_[-10:])).to_be_visible()
            await page.reload()
            await expect(page.get_by_text(id_[-10:])).to_be_visible()
            await choice.select_option("first")
            await expect(page.get_by_text(id_[-10:])).to_be_hidden()
            await page.evaluate("location.hash = 'user/7'")
            await expect(page.get_by_text("First7 Last7")).to_be_visible()
            await page.get_by_role("button", name="Sign out").click()
            of_company = mint_service(SECRET, "night", ["operations"], HOUR, 1)
            await page.goto(f"{api.http.base_url}/console#token={of_company}")
            await expect(page.locator("#pulse")).to_contain_text("signed in until")
            await expect(choice).to_be_hidden()
            await page.evaluate("location.hash = 'find/First7'")
            await expect(page.get_by_role("table", name="Users")).to_contain_text("First7 Last7")

    async def test_console_shows_no_choice_of_cells_without_several(self, page: Page, api: Api) -> None:
        await enter(page, api)
        await expect(page.get_by_label("Cell")).to_be_hidden()

    async def test_console_is_accessible_in_both_themes(self, chromium: Browser, pushing: Api, phones: Phones) -> None:
        await busy(pushing, phones)
        async with opened(chromium, viewport={"width": 1280, "height": 900}) as page:
            await page.goto(f"{pushing.http.base_url}/console")
            await accessible(page, "sign-in")
            await stop_clock(page)
            await enter(page, pushing)
            await expect(page.locator("#pulse")).to_contain_text("signed in until")
            for body in range(3):
                await pushing.post(custom(1, body=str(body)))
                async with page.expect_response("**/metrics"):
                    await page.clock.run_for(5_000)
            await page.clock.resume()
            await page.locator(".drawing").first.focus()
            await page.keyboard.press("ArrowLeft")
            await expect(page.locator("figcaption").first).to_contain_text("UTC: events in inboxes 0.2")
            await page.get_by_text("As a table").first.click()
            await expect(page.get_by_role("region", name="Throughput, as a table")).to_contain_text("events in inboxes")
            await accessible(page, "overview")
            await a_day(pushing.app_state.database)
            await page.get_by_role("radio", name="Last 24 hours").check()
            await expect(page.locator(".legend").first).to_contain_text("max 1,4")
            await accessible(page, "overview-day")
            for view in ("dead-letters", "custom", "audit", "user/1/7d", "find/nothing", "device/aaaaaa"):
                await page.evaluate("view => location.hash = view", view)
                await expect(page.locator("main[aria-busy]")).to_have_count(0)
                await accessible(page, view.replace("/", "-"))

    @pytest.mark.parametrize(
        ("view", "said"),
        [("user/9", "No user has this ID"), ("event/01a22b4a-3299-7710-b75f-9590231aa225", "No event has this ID")],
    )
    async def test_console_says_why_it_does_not_show_an_id(
        self, chromium: Browser, pushing: Api, view: str, said: str
    ) -> None:
        async with opened(chromium) as page:
            await enter(page, pushing)
            await page.evaluate("view => location.hash = view", view)
            await expect(page.get_by_role("alert")).to_contain_text(said)

    async def test_console_fits_a_narrow_window(self, chromium: Browser, pushing: Api, phones: Phones) -> None:
        await busy(pushing, phones)
        async with opened(chromium, viewport={"width": 360, "height": 740}) as page:
            await enter(page, pushing)
            for view in ("", "dead-letters", "custom", "audit", "user/1", "find/nothing"):
                await page.evaluate("view => location.hash = view", view)
                await expect(page.locator("main[aria-busy]")).to_have_count(0)
                assert await page.evaluate("document.documentElement.scrollWidth") <= 360, view
                await shoot(page, f"narrow-{view.replace('/', '-') or 'overview'}")


@asynccontextmanager
async def signing_in(url: str, catalogue: Catalogue, **more: Any) -> AsyncIterator[tuple[str, OpenIdProvider]]:
    """Run the service with a provider at which Anna is an operator; yield the URL of the console, and the provider."""
    async with openid_provider() as provider:
        settings = {"oidc_issuer": provider.issuer, "oidc_client_id": CLIENT_ID, **more}
        async with serving(url, catalogue, with_worker=False, **settings) as api:
            console = f"{api.http.base_url}/console"
            provider.redirect_uris = {f"{console}/signed-in"}
            provider.person = {"sub": "a-1", "name": "Anna", "roles": ["operator"]}
            yield console, provider


THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


@asynccontextmanager
async def opened(chromium: Browser, **more: Any) -> AsyncIterator[Page]:
    """Open a separate page whose errors fail the test."""
    context = await chromium.new_context(**more)
    page = await context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if "Policy" in message.text else None)
    yield page
    await context.close()
    assert troubles == []


@pytest.fixture
async def page(chromium: Browser) -> AsyncIterator[Page]:
    async with opened(chromium) as page:
        yield page


async def enter(page: Page, api: Api, view: str = "") -> None:
    """Sign in by the link, and go to a view."""
    await page.goto("about:blank")
    await page.goto(f"{api.http.base_url}/console#token={OPERATOR}")
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    if view:
        await page.evaluate("view => location.hash = view", view)
        await expect(page.get_by_role("heading", name="Overview")).to_be_hidden()


async def look(page: Page, state: str) -> None:
    """Set the visibility state of the page."""
    await page.evaluate(
        """(state) => {
          Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        state,
    )


async def give_up(api: Api, phones: Phones) -> str:
    """Make a push to the iPhone of user 1 a dead letter, and return its event."""
    phones.answer("apns", status=503, reason="ServiceUnavailable", times=2)
    before = len(phones.pushes("apns", IPHONE))
    id_: str = (await post(api, custom(1))).json()["id"]
    await until(lambda: len(phones.pushes("apns", IPHONE)) > before)
    await api.app_state.database.value(
        "update deliveries set made_at = now() - interval '25 hours' where event_id = $1 and lane = 'apns/default'", id_
    )
    await hurry(api)

    async def is_dead() -> bool:
        return "dead" in await pushes_of(api, id_, 0)

    await until(is_dead)
    return id_


async def busy(api: Api, phones: Phones) -> None:
    """Create data for every view of the console."""
    await register(api, 1, IPHONE)
    await register(api, 1, ANDROID, type="Android")
    await give_up(api, phones)
    await api.team(7, 1, 2)
    await api.post(note(1))
    await api.post({**custom(teams=(7,)), "notify": {"teams": [7], "except": [1]}})
    await api.as_user(2, "POST", "/notifications", json={"message": "x", "notify": {"teams": [7]}})
    await api.app_state.database.value(
        "insert into dead_letters select id, 'deliver', 'direct', 8, 0, 'the catalogue has no kind note any more'"
        " from events order by accepted_at limit 1"
    )
    await api.app_state.database.value(
        "update lanes set stopped_at = now(), reason = '403 InvalidProviderToken' where name = 'apns/default/sandbox'"
    )


async def a_day(database: Database) -> None:
    """Write a history of a day; the events per second of a minute are the number of minutes since then."""
    await database.value(
        "insert into metric_minutes (minute, process_id, seconds, events, pushes, requests, api_errors, rate_limited,"
        " providers, push_errors, inbox_buckets, push_buckets, direct_due, bulk_due, pushes_due, direct_oldest,"
        " bulk_oldest) select date_trunc('minute', now()) - n * interval '1 minute', gen_random_uuid(), 1, n, n / 2,"
        " n % 120, n % 3, 0, '{apns}', array[n % 5], '{}', '{}', n % 90, n % 40, n % 60, n % 7, n % 11"
        " from generate_series(1, 1439) n"
    )


async def accessible(page: Page, name: str) -> None:
    """Check accessibility by WCAG 2.2 AA in both themes, and save screenshots."""
    for theme in THEMES:
        await page.emulate_media(color_scheme=theme)
        await shoot(page, f"{theme}-{name}")
        assert await barriers_of(page) == [], f"{theme} {name}"


async def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"console-{name}.png", full_page=True)
