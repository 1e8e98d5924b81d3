"""Authorization of every route: callers, scopes, and no information about resources of others."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tests.support.answers import CONSOLE, FILES, UNKNOWN, codes_of, errors_of, raw, routes_of, sealed
from tests.support.events import custom
from tests.support.service import HOUR, SECRET, Api, at_rest
from tests.support.tokens import part, signed
from tocsin.auth.minting import mint_service, mint_user

SCOPES = ["events:write", "directory:write", "operations", "operations:support", "operations:read"]
SUPPORT = ["operations:support", "operations"]
VIEWER = ["operations:read", *SUPPORT]

OPEN = ["/healthz", "/readyz", "/openapi.json", "/docs", "/docs/{name}", *CONSOLE, *FILES]
OWNER, COLLEAGUE, STRANGER, INACTIVE, ERASED = 1, 2, 3, 4, 99

Token = Callable[[list[str]], str]
"""Makes a token for a route that requires one of these service scopes."""


def user(id_: int) -> Token:
    return lambda _: mint_user(SECRET, id_, HOUR)


def service(name: str, company_id: int | None = None) -> Token:
    """Return a service token with one required scope; for user routes, with all scopes."""
    return lambda scopes: mint_service(SECRET, name, scopes[:1] or SCOPES, HOUR, company_id)


def issued_before_the_user_was_created(_: list[str]) -> str:
    return signed({"alg": "HS256"}, {"sub": str(OWNER), "iat": time.time() - 3600, "exp": time.time() + 3600}, SECRET)


def unsigned(_: list[str]) -> str:
    return f"{part({'alg': 'none'})}.{part({'sub': str(OWNER), 'exp': time.time() + 3600})}."


def without_the_scope(scopes: list[str]) -> str:
    return mint_service(SECRET, "crm", [scope for scope in SCOPES if scope not in scopes], HOUR)


CALLERS: dict[str, Token] = {
    "nobody": lambda _: "",
    "expired user": lambda _: mint_user(SECRET, OWNER, timedelta(seconds=-60)),
    "expired service": lambda _: mint_service(SECRET, "crm", SCOPES, timedelta(seconds=-60)),
    "forged": lambda _: mint_user("another-secret-of-32-bytes-0123456789", OWNER, HOUR),
    "unsigned": unsigned,
    "owner": user(OWNER),
    "former": issued_before_the_user_was_created,
    "colleague": user(COLLEAGUE),
    "stranger": user(STRANGER),
    "inactive": user(INACTIVE),
    "unknown": user(ERASED),
    "scopeless": without_the_scope,
    "service": service("crm"),
    "another service": service("erp"),
    "bound": service("crm", 1),
    "bound elsewhere": service("erp", 2),
}
NO_ONE = dict.fromkeys(["nobody", "expired user", "expired service", "forged", "unsigned"], 401)


def for_users(owner: int, colleague: int, stranger: int) -> dict[str, int]:
    """Return the expected status of each caller for a user route."""
    out = dict.fromkeys(["former", "inactive", "unknown"], 401)
    people = {"owner": owner, "colleague": colleague, "stranger": stranger, **out}
    return {**dict.fromkeys(CALLERS, 403), **NO_ONE, **people}


def for_services(service: int, another: int, bound: int, elsewhere: int) -> dict[str, int]:
    """Return the expected status of each caller for a service route."""
    services = {"service": service, "another service": another, "bound": bound, "bound elsewhere": elsewhere}
    return {**dict.fromkeys(CALLERS, 403), **NO_ONE, **services}


@dataclass(frozen=True)
class RouteCase:
    """How to call a route: its scopes, its body, and the expected status of each caller."""

    due: dict[str, int]
    body: Any = None
    scopes: list[str] = field(default_factory=list)
    ends: bool = False  # the call deletes its target


TOKEN = "ab" * 32
MESSAGE = {"message": "x", "notify": {"users": [OWNER]}}
NAMES = {"first_name": "A", "last_name": "B"}
DIRECTORY = ["directory:write"]
ROUTE_CASES = {
    ("GET", "/notifications"): RouteCase(for_users(200, 200, 200)),
    ("POST", "/notifications"): RouteCase(for_users(202, 202, 422), MESSAGE),
    ("GET", "/notifications/{notification_id}"): RouteCase(for_users(200, 404, 404)),
    ("GET", "/notifications/kinds"): RouteCase(for_users(200, 200, 200)),
    ("GET", "/notifications/changes"): RouteCase(for_users(200, 200, 200)),
    ("GET", "/notifications/stream"): RouteCase(for_users(200, 200, 200)),
    ("GET", "/notifications/links"): RouteCase(for_users(422, 422, 422)),
    ("GET", "/notifications/preferences"): RouteCase(for_users(200, 200, 200)),
    ("PATCH", "/notifications/preferences"): RouteCase(for_users(200, 200, 200), {"time_zone": "Asia/Tokyo"}),
    ("DELETE", "/notifications/{notification_id}"): RouteCase(for_users(204, 404, 404)),
    ("PUT", "/notifications/{notification_id}/unread"): RouteCase(for_users(204, 404, 404)),
    ("PUT", "/notifications/read"): RouteCase(for_users(204, 204, 204)),
    ("PUT", "/notifications/{notification_id}/read"): RouteCase(for_users(204, 404, 404)),
    ("POST", "/events"): RouteCase(for_services(202, 202, 202, 422), custom(OWNER), ["events:write"]),
    ("POST", "/events/batch"): RouteCase(
        for_services(202, 202, 202, 422), {"events": [custom(OWNER)]}, ["events:write"]
    ),
    ("POST", "/events/resolve"): RouteCase(
        for_services(202, 202, 202, 202), {"about": "order:1", "as": "read"}, ["events:write", DIRECTORY[0]]
    ),
    ("DELETE", "/events/{event_id}"): RouteCase(
        for_services(409, 404, 404, 404), scopes=["events:write", "operations"]
    ),
    ("DELETE", "/events/by-key/{key}"): RouteCase(for_services(404, 404, 404, 404), scopes=["events:write"]),
    ("GET", "/events/{event_id}/recipients/{user_id}"): RouteCase(
        for_services(200, 404, 404, 404), scopes=["events:write", *SUPPORT]
    ),
    ("GET", "/events/{event_id}"): RouteCase(for_services(200, 404, 404, 404), scopes=["events:write", *SUPPORT]),
    ("GET", "/notifications/devices"): RouteCase(for_users(200, 200, 200)),
    ("POST", "/notifications/devices"): RouteCase(for_users(204, 204, 204), {"token": TOKEN}),
    ("POST", "/notifications/devices/{token}"): RouteCase(for_users(204, 204, 204)),
    ("DELETE", "/notifications/devices/{token}"): RouteCase(for_users(204, 204, 204)),
    ("DELETE", "/directory/users/{user_id}/devices"): RouteCase(for_services(204, 204, 204, 404), scopes=DIRECTORY),
    ("DELETE", "/directory/users/{user_id}/devices/{token}"): RouteCase(
        for_services(204, 204, 204, 404), scopes=DIRECTORY
    ),
    ("GET", "/operations/lanes"): RouteCase(for_services(200, 200, 200, 200), scopes=VIEWER),
    ("GET", "/operations/history"): RouteCase(for_services(200, 200, 200, 200), scopes=VIEWER),
    ("GET", "/operations/dead-letters"): RouteCase(for_services(200, 200, 200, 200), scopes=VIEWER),
    ("GET", "/operations/users"): RouteCase(for_services(422, 422, 422, 422), scopes=SUPPORT),
    ("GET", "/operations/events/{event_id}/recipients"): RouteCase(for_services(200, 200, 404, 404), scopes=SUPPORT),
    ("GET", "/operations/users/{user_id}"): RouteCase(for_services(200, 200, 200, 404), scopes=SUPPORT),
    ("GET", "/operations/users/{user_id}/events"): RouteCase(for_services(200, 200, 200, 404), scopes=SUPPORT),
    ("POST", "/operations/users/{user_id}/devices/{device_id}/test"): RouteCase(
        for_services(404, 404, 404, 404), scopes=SUPPORT
    ),
    ("GET", "/operations/devices"): RouteCase(for_services(422, 422, 422, 422), scopes=SUPPORT),
    ("GET", "/operations/custom-notifications"): RouteCase(for_services(200, 200, 200, 200), scopes=SUPPORT),
    ("GET", "/operations/audit"): RouteCase(for_services(200, 200, 200, 200), scopes=["operations"]),
    ("POST", "/operations/console"): RouteCase(for_services(204, 204, 204, 204), scopes=VIEWER),
    ("POST", "/operations/replay"): RouteCase(
        for_services(200, 200, 200, 200), {"lane": "apns/default"}, scopes=["operations"]
    ),
    ("GET", "/metrics"): RouteCase(for_services(200, 200, 200, 200), scopes=VIEWER),
    ("GET", "/notifications/web-push/key"): RouteCase(for_users(404, 404, 404)),
    ("POST", "/notifications/web-push"): RouteCase(for_users(422, 422, 422), {}),
    ("POST", "/notifications/devices/{token}/test"): RouteCase(for_users(404, 404, 404)),
    ("POST", "/notifications/web-push/test"): RouteCase(for_users(404, 404, 404), {"endpoint": "https://x/y"}),
    ("DELETE", "/notifications/web-push"): RouteCase(for_users(204, 204, 204), {"endpoint": "https://x/y"}),
    ("GET", "/directory/users"): RouteCase(for_services(200, 200, 200, 200), scopes=DIRECTORY),
    ("POST", "/directory/import"): RouteCase(for_services(415, 415, 415, 415), {}, DIRECTORY),
    ("GET", "/directory/teams"): RouteCase(for_services(200, 200, 200, 200), scopes=DIRECTORY),
    ("DELETE", "/directory/users/{user_id}"): RouteCase(for_services(204, 204, 204, 404), scopes=DIRECTORY, ends=True),
    ("DELETE", "/directory/teams/{team_id}"): RouteCase(for_services(204, 204, 204, 404), scopes=DIRECTORY, ends=True),
    ("PUT", "/directory/teams/{team_id}/users/{user_id}"): RouteCase(
        for_services(204, 204, 204, 404), scopes=DIRECTORY
    ),
    ("DELETE", "/directory/teams/{team_id}/users/{user_id}"): RouteCase(
        for_services(204, 204, 204, 404), scopes=DIRECTORY
    ),
    ("GET", "/directory/users/{user_id}"): RouteCase(for_services(200, 200, 200, 404), scopes=DIRECTORY),
    ("PUT", "/directory/users/{user_id}"): RouteCase(for_services(204, 204, 204, 404), NAMES, DIRECTORY),
    ("GET", "/directory/teams/{team_id}"): RouteCase(for_services(200, 200, 200, 404), scopes=DIRECTORY),
    ("PUT", "/directory/teams/{team_id}"): RouteCase(for_services(204, 204, 204, 404), {"name": "x"}, DIRECTORY),
}


async def settle(api: Api) -> dict[str, str]:
    """Create two companies with users, a team, and a notification of the owner; return ids by path parameter."""
    await api.people(OWNER, COLLEAGUE)
    await api.people(STRANGER, company_id=2)
    await api.people(INACTIVE, active=False)
    await api.team(7, OWNER)
    id_ = await api.post(custom(OWNER))
    return {
        "{notification_id}": id_,
        "{event_id}": id_,
        "{device_id}": id_,
        "{user_id}": str(OWNER),
        "{team_id}": "7",
        "{token}": TOKEN,
    }


def at(path: str, ids: dict[str, str]) -> str:
    return "/".join(ids.get(part, part) for part in path.split("/"))


def test_every_route_declares_its_callers(api: Api) -> None:
    assert {route for route in routes_of(api) if route[1] not in OPEN} == set(ROUTE_CASES)
    assert all(set(handler.due) == set(CALLERS) for handler in ROUTE_CASES.values())


@pytest.mark.parametrize("route", ROUTE_CASES, ids=" ".join)
async def test_each_route_accepts_only_its_callers(api: Api, route: tuple[str, str]) -> None:
    method, path = route
    ids, handler = await settle(api), ROUTE_CASES[route]
    wrong = {}
    for caller, token in CALLERS.items():
        if handler.ends:
            await settle(api)
        answer = await api.call(method, at(path, ids), token(handler.scopes), json=handler.body)
        if answer.status_code != handler.due[caller] or not (sealed(answer) or answer.is_success):
            wrong[caller] = answer.status_code, handler.due[caller], answer.text
        if answer.status_code in (401, 403):
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.headers["www-authenticate"] == challenge(caller, answer), caller
    await at_rest(api)
    assert wrong == {}


def challenge(caller: str, answer: httpx.Response) -> str:
    if answer.status_code == 401:
        return "Bearer" if caller == "nobody" else 'Bearer error="invalid_token"'
    scope = answer.headers["www-authenticate"].partition(", ")[2]
    assert scope == "" or scope.removeprefix("scope=").strip('"') in SCOPES
    return 'Bearer error="insufficient_scope"' + (f", {scope}" if scope else "")


@pytest.mark.parametrize("route", [route for route in ROUTE_CASES if "{" in route[1]], ids=" ".join)
async def test_other_users_resources_answer_404(api: Api, route: tuple[str, str]) -> None:
    method, path = route
    ids, handler = await settle(api), ROUTE_CASES[route]
    unknown = dict.fromkeys(ids, UNKNOWN) | {"{user_id}": "555", "{team_id}": "555", "{token}": TOKEN}
    before = await everything(api)
    for caller in [caller for caller, due in handler.due.items() if due == 404]:
        token = CALLERS[caller](handler.scopes)
        others = await api.call(method, at(path, ids), token, json=handler.body)
        missing = await api.call("GET" if method == "PUT" and handler.body else method, at(path, unknown), token)
        assert (others.status_code, others.content) == (missing.status_code, missing.content), caller
        assert differing(others) == differing(missing), caller
    assert await everything(api) == before


def differing(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in {"date", "x-request-id", "ratelimit"}}


async def everything(api: Api) -> list[Any]:
    """Return all that callers could change."""
    tables = ("inbox", "changes", "heads", "users", "teams", "members", "events", "jobs", "preferences")
    return [await api.app_state.database.rows(f"select * from {table} order by 1, 2") for table in tables]


@pytest.mark.parametrize("user_id", [INACTIVE, ERASED])
async def test_deleted_user_gets_401_before_validation(api: Api, user_id: int) -> None:
    await settle(api)
    wrong = {}
    for method, path, body in (
        ("GET", "/notifications?page=0", None),
        ("GET", "/notifications?show=all&per_page=x", None),
        ("GET", "/notifications/no-uuid", None),
        ("PUT", "/notifications/no-uuid/read", None),
        ("POST", "/notifications", b""),
        ("POST", "/notifications", b"{"),
        ("GET", "/notifications/preferences", None),
        ("PATCH", "/notifications/preferences", b"{"),
        ("POST", "/notifications", b'{"message": 1, "notify": {"users": [99999]}}'),
    ):
        answer = await api.as_user(user_id, method, path, content=body)
        if codes_of(answer) != (401, [("unauthenticated", None)]):
            wrong[method, path, body] = answer.status_code, answer.text
    assert wrong == {}


async def test_deactivating_a_user_takes_effect_immediately(api: Api) -> None:
    await api.people(OWNER)
    assert (await api.as_user(OWNER, "GET", "/notifications")).status_code == 200
    await api.people(OWNER, active=False)
    assert (await api.as_user(OWNER, "GET", "/notifications")).status_code == 401
    await api.people(OWNER)
    assert (await api.as_user(OWNER, "GET", "/notifications")).status_code == 200


async def test_malformed_authorization_header_is_401(api: Api) -> None:
    await api.people(OWNER)
    good = mint_user(SECRET, OWNER, HOUR)
    head, payload, signature = good.split(".")
    none = {
        "no header": "",
        "empty": "Authorization: ",
        "another scheme": "Authorization: Basic dXNlcjpwYXNz",
        "no scheme": f"Authorization: {good}",
        "a name of its own": f"Authorization: Token {good}",
        "joined": f"Authorization: Bearer{good}",
        "another header": f"X-Authorization: Bearer {good}",
        "a cookie": f"Cookie: token={good}",
    }
    bad = {
        "no token": "Authorization: Bearer",
        "an empty token": "Authorization: Bearer  ",
        "two tokens": f"Authorization: Bearer {good} {good}",
        "a list": f"Authorization: Bearer {good}, Bearer {good}",
        "quoted": f'Authorization: Bearer "{good}"',
        "two parts": f"Authorization: Bearer {head}.{payload}",
        "four parts": f"Authorization: Bearer {good}.x",
        "no signature": f"Authorization: Bearer {head}.{payload}.",
        "cut": f"Authorization: Bearer {good[:-1]}",
        "padded": f"Authorization: Bearer {good}==",
        "another payload": f"Authorization: Bearer {head}.{payload[:-1]}.{signature}",
        "dots": "Authorization: Bearer ..",
        "latin": "Authorization: Bearer \xe9.\xe9.\xe9",
        "huge": f"Authorization: Bearer {'a' * 60_000}.a.a",
        "long": f"Authorization: Bearer {'.'.join(['a' * 2000] * 3)}",
        "twice": f"Authorization: Bearer {good}\nAuthorization: Bearer {good}",
        "good and bad": f"Authorization: Bearer {good}\nAuthorization: Bearer x",
        "bad and good": f"Authorization: Basic x\nAuthorization: Bearer {good}",
    }
    wrong = {}
    for name, header in {**none, **bad}.items():
        answer = await raw(api, f"GET /notifications HTTP/1.1\n{header}{chr(10) if header else ''}")
        challenges = {"Bearer"} if name in none else {'Bearer error="invalid_token"'}
        challenges |= {"Bearer"} if name == "no token" else set()
        if codes_of(answer) != (401, [("unauthenticated", None)]) or not sealed(answer):
            wrong[name] = answer.status_code, answer.text
        elif answer.headers["www-authenticate"] not in challenges:
            wrong[name] = answer.status_code, answer.headers["www-authenticate"]
    assert wrong == {}


async def test_authorization_scheme_is_case_insensitive(api: Api) -> None:
    await api.people(OWNER)
    token = mint_user(SECRET, OWNER, HOUR)
    for spelling in ("Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}", "  Bearer {}", "Bearer {}  "):
        answer = await raw(api, f"GET /notifications HTTP/1.1\nAuthorization: {spelling.format(token)}\n")
        assert answer.status_code == 200, spelling


async def test_token_in_query_or_body_is_ignored(api: Api) -> None:
    await api.people(OWNER)
    token = mint_user(SECRET, OWNER, HOUR)
    asked = await api.call("GET", f"/notifications?access_token={token}")
    posted = await api.call("POST", "/notifications", json={**MESSAGE, "access_token": token})
    assert [codes_of(answer) for answer in (asked, posted)] == [(401, [("unauthenticated", None)])] * 2


async def test_authorization_precedes_reading_the_body(api: Api) -> None:
    await api.people(OWNER)
    for method, path in (("POST", "/events"), ("PUT", "/directory/users/1"), ("PUT", "/directory/teams/1")):
        assert errors_of(await api.call(method, path, content=b"{")) == [("unauthenticated", None)]
        assert errors_of(await api.as_user(OWNER, method, path, content=b"{")) == [("unauthorized", None)]
    assert errors_of(await api.as_service("POST", "/notifications", content=b"{")) == [("unauthorized", None)]


async def test_company_bound_service_cannot_reach_other_companies(api: Api) -> None:
    await api.people(OWNER)
    await api.people(STRANGER, company_id=2)
    await api.team(7, OWNER)
    await api.team(8, STRANGER, company_id=2)
    event = custom(OWNER, STRANGER, ERASED, teams=(7, 8, 9))
    answer = await api.as_service("POST", "/events", json=event, company_id=2)
    fields = ("notify.users.0", "notify.users.2", "notify.teams.0", "notify.teams.2")
    assert codes_of(answer) == (422, [("validation.unknown", name) for name in fields])
    actor = await api.as_service("POST", "/events", json={**custom(STRANGER), "data": {"user": OWNER}}, company_id=2)
    assert codes_of(actor) == (422, [("validation.unknown", "data.user")])
    assert (await api.as_service("POST", "/events", json=custom(STRANGER, teams=(8,)), company_id=2)).is_success
    assert await api.app_state.database.value("select count(*) from events") == 1
    await at_rest(api)
