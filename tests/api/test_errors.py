"""Error responses, and the headers of every response."""

import asyncio
import json
from typing import Any

import pytest
import structlog.testing
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tests.support.answers import UNKNOWN, codes_of, errors_of, raw, routes_of, sealed
from tests.support.service import HOUR, SECRET, Api, at_rest
from tests.support.waiting import reaches
from tocsin.api.errors import on_http_exception
from tocsin.auth.minting import mint_service, mint_user
from tocsin.logs import with_ids

ALL_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE", "PROPFIND")


def filled(path: str) -> str:
    """Return a path whose parameters have values that no other route matches."""
    return "/".join("1" if part.startswith("{") else part for part in path.split("/"))


async def test_unknown_path_is_404_for_every_caller_and_method(api: Api) -> None:
    paths = [
        "/",
        "/nothing",
        "/notifications/",
        "/notifications//read",
        "/notifications/read/",
        "//notifications",
        "/Notifications",
        "/notifications/a/b/c",
        "/notifications%00",
        "/notifications/../notifications",
        "/notifications/..%2f",
        "/%2e%2e/notifications",
        "/%ff%fe",
        "/events/",
        "/directory",
        "/directory/users/",
        "/directory/users/1/",
        "/docs/",
        "/docs/nothing.js",
        "/docs/../app.py",
        "/docs/..%2fapp.py",
        "/docs/%2e%2e%2fapp.py",
        "/docs/swagger-ui.css%00",
        "/healthz/",
        "/openapi.json/",
        "/" + "a" * 5000,
        "/" + "a/" * 2000,
    ]
    wrong = {}
    for path in paths:
        answer = await raw(api, f"GET {path} HTTP/1.1\n")
        if codes_of(answer) != (404, [("not_found", None)]) or not sealed(answer):
            wrong[path] = answer.status_code, answer.text
    assert wrong == {}


async def test_malformed_ids_in_paths_are_404(api: Api) -> None:
    await api.people(1)
    token = mint_user(SECRET, 1, HOUR)
    ids = [
        *("0", "-1", "x", "null", "%00", "%ff", "%F0%9F%94%94", "..%2f..", "%2e%2e", "1;drop", "'", "%27", "*", "%25"),
        UNKNOWN.replace("-", ""),
        "{" + UNKNOWN + "}",
        "urn:uuid:" + UNKNOWN,
        UNKNOWN + "%20",
        "%20" + UNKNOWN,
        UNKNOWN + "%00",
        UNKNOWN[:-1] + "g",
        UNKNOWN[:-1] + "%D9%A3",
        "a" * 10_000,
    ]
    wrong = {}
    for id_ in ids:
        for method, path in (("GET", "/notifications/{}"), ("PUT", "/notifications/{}/read")):
            answer = await raw(api, f"{method} {path.format(id_)} HTTP/1.1\nAuthorization: Bearer {token}\n")
            if answer.status_code != 404 or errors_of(answer) != [("not_found", None)]:
                wrong[method, id_] = answer.status_code, answer.text
    assert wrong == {}


async def test_unsupported_method_is_405_with_allow(api: Api) -> None:
    await api.people(1)
    user, service = mint_user(SECRET, 1, HOUR), mint_service(SECRET, "crm", ["events:write", "directory:write"], HOUR)
    routes = routes_of(api)
    paths = {path for _, path in routes}
    wrong: dict[tuple[str, str], object] = {}
    for path in sorted(paths):
        # /notifications/read matches /notifications/{id} too, but supports only its own methods
        taken = {
            method
            for method, other in routes
            if other == path or ("{" in path and other.count("/") == path.count("/") and covers(other, filled(path)))
        }
        token = user if path.startswith("/notifications") else service
        for method in ALL_METHODS:
            if method in taken or (method == "HEAD" and "GET" in taken):
                continue
            answer = await raw(api, f"{method} {filled(path)} HTTP/1.1\nAuthorization: Bearer {token}\n")
            allowed = set(answer.headers.get("allow", "").split(", ")) - {"HEAD"}
            if (answer.status_code, allowed) != (405, taken) or not sealed(answer):
                wrong[method, path] = answer.status_code, sorted(allowed), sorted(taken)
            elif method != "HEAD" and errors_of(answer) != [("method_not_allowed", None)]:
                wrong[method, path] = answer.text
    assert wrong == {}


def covers(route: str, path: str) -> bool:
    pairs = zip(route.split("/"), path.split("/"), strict=True)
    return all(part.startswith("{") or part == given for part, given in pairs)


async def test_every_success_has_the_common_headers(api: Api) -> None:
    await api.people(1)
    id_ = await api.post({"type": "custom", "notify": {"users": [1]}, "params": {"body": "x"}})
    answers = [
        await api.as_user(1, "GET", f"/notifications/{id_}"),
        await api.as_user(1, "PUT", f"/notifications/{id_}/read"),
        await api.as_user(1, "PUT", "/notifications/read"),
        await api.as_user(1, "POST", "/notifications", json={"message": "x", "notify": {"users": [1]}}),
        await api.as_service("GET", f"/events/{id_}"),
        await api.as_service("PUT", "/directory/teams/1", json={"name": "x"}),
        await api.as_service("GET", "/directory/teams/1"),
        await api.as_service("GET", "/directory/users/1"),
        *[await api.call("GET", path) for path in ("/healthz", "/readyz", "/openapi.json", "/docs")],
        *[await api.call("GET", f"/docs/{name}") for name in ("start.js", "swagger-ui.css", "swagger-ui-bundle.js")],
    ]
    assert [str(answer.url) for answer in answers if not answer.is_success or not sealed(answer)] == []
    assert sealed(await api.as_user(1, "GET", "/notifications"), "private, no-cache")
    assert sealed(await api.as_user(1, "GET", "/notifications?page=0"))
    assert sealed(await api.call("GET", "/notifications"))
    await at_rest(api)


@pytest.mark.parametrize(
    ("given", "decent"),
    [
        ("abc", True),
        ("01a20a38-954e-73e5-b596-8292ec15def2", True),
        ("a" * 64, True),
        ("", False),
        ("a" * 65, False),
        ("a b", False),
        ('a"b', False),
        ("a\tb", False),
        ("<script>", False),
        ("\u00e9".encode().decode("latin-1"), False),
        ("\xb2\xb3", False),
        ("\x1b[31m", False),
    ],
)
async def test_valid_request_id_is_kept_and_any_other_replaced(api: Api, given: str, decent: bool) -> None:  # noqa: FBT001 - a case of the table
    answer = await raw(api, f"GET /healthz HTTP/1.1\nX-Request-Id: {given}\n")
    if answer.status_code == 400:
        assert given == "\x1b[31m"  # invalid in a header: the server itself rejects it
        return
    assert answer.headers.get_list("x-request-id") == [answer.headers["x-request-id"]]
    assert (answer.headers["x-request-id"] == given) is decent
    assert answer.headers["x-request-id"]


async def test_request_ids_are_unique(api: Api) -> None:
    ids = {(await api.call("GET", path)).headers["x-request-id"] for path in ["/healthz", "/nothing"] * 10}
    assert len(ids) == 20


async def test_internal_error_has_logged_request_id_and_hides_the_cause(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret of the house")

    await api.people(1)
    monkeypatch.setattr("tocsin.pages.Pages.of", broken)
    with structlog.testing.capture_logs([with_ids]) as lines:
        answer = await api.as_user(1, "GET", "/notifications")
    [bug] = [line for line in lines if line["log_level"] == "error"]
    assert bug["request_id"] == answer.headers["x-request-id"]
    assert codes_of(answer) == (500, [("error", None)])
    assert answer.json()["errors"][0]["id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text
    assert "RuntimeError" not in answer.text
    assert sealed(answer)
    monkeypatch.undo()
    assert (await api.as_user(1, "GET", "/notifications")).status_code == 200


@pytest.mark.one_cell("/readyz is 200 while one cell works")
async def test_database_outage_is_503_with_retry_after(idle: Api) -> None:
    await idle.people(1)
    await idle.app_state.database.close()
    answers = [
        await idle.as_user(1, "GET", "/notifications"),
        await idle.as_user(1, "POST", "/notifications", json={"message": "x", "notify": {"users": [1]}}),
        await idle.as_user(1, "PUT", "/notifications/read"),
        await idle.as_service("PUT", "/directory/teams/1", json={"name": "x"}),
        await idle.call("GET", "/readyz"),
    ]
    assert [codes_of(answer) for answer in answers] == [(503, [("unavailable", None)])] * len(answers)
    assert all(int(answer.headers["retry-after"]) >= 1 and sealed(answer) for answer in answers)
    assert (await idle.call("GET", "/healthz")).status_code == 200


async def test_client_disconnect_during_body_leaves_no_state_and_no_error(api: Api) -> None:
    await api.people(1)
    token = mint_user(SECRET, 1, HOUR)
    with structlog.testing.capture_logs() as lines:
        for path in ("POST /notifications", "PUT /directory/users/9"):
            by = token if "notifications" in path else mint_service(SECRET, "crm", ["directory:write"], HOUR)
            _, writer = await asyncio.open_connection("127.0.0.1", api.http.base_url.port)
            head = f"{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {by}\r\nContent-Type: application/json\r\n"
            writer.write(f'{head}Content-Length: 9999\r\n\r\n{{"message": "x", "notify": {{"users": [1]}}}}'.encode())
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        await reaches(lambda: sum(line["event"] == "request" for line in lines), 2)
    assert {line["log_level"] for line in lines} == {"info"}
    assert {line["status"] for line in lines if line["event"] == "request"} == {0}
    counted = b'tocsin_http_requests_total{method="POST",route="/notifications",status="0"} 1.0'
    assert counted in await api.app_state.metrics.text(api.app_state.database)
    assert await api.app_state.database.value("select count(*) from events") == 0
    assert (await api.as_user(1, "GET", "/notifications")).json()["pagination"]["total"] == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/notifications/%00"),
        ("PUT", "/notifications/x%00/read"),
        ("DELETE", "/events/by-key/%00"),
        ("DELETE", "/directory/users/1%00/devices/x"),
        ("GET", "/%00"),
    ],
)
async def test_path_with_nul_is_404(idle: Api, method: str, path: str) -> None:
    await idle.people(1)
    for answer in (
        await idle.as_user(1, method, path, headers={"Idempotency-Key": "a"}),
        await idle.as_service(method, path, "events:write", "directory:write"),
    ):
        assert codes_of(answer) == (404, [("not_found", None)])
    asked = await idle.as_service("GET", "/operations/devices?ending=%00abcde", "operations")
    assert codes_of(asked) == (422, [("validation.string_between", "ending")])


async def test_internal_error_in_any_route_is_a_problem_and_one_log_line(idle: Api) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret of the house")

    await idle.people(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tocsin.preferences.get", broken)
        patch.setattr("tocsin.db.migrate.is_current", broken)
        for path in ("/notifications/preferences", "/readyz"):
            with structlog.testing.capture_logs([with_ids]) as lines:
                answer = await idle.as_user(1, "GET", path)
            assert codes_of(answer) == (500, [("error", None)])
            assert answer.json()["errors"][0]["id"] == answer.headers["x-request-id"]
            assert sealed(answer)
            [bug] = [line for line in lines if line["log_level"] == "error"]
            assert (bug["event"], bug["request_id"]) == (
                "request failed with an internal error",
                answer.headers["x-request-id"],
            )
    assert b'status="500"' in await idle.app_state.metrics.text(idle.app_state.database)


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/notifications", "/notifications/kinds", "/openapi.json"]
)
async def test_head_is_get_without_a_body(idle: Api, path: str) -> None:
    await idle.people(1)
    ask = idle.as_user if path.startswith("/notifications") else None
    for method in ("GET", "HEAD"):
        answer = await (ask(1, method, path) if ask else idle.as_service(method, path, "operations"))
        assert answer.status_code == 200, (method, answer.text)
        assert answer.headers["content-type"]
    assert answer.content == b""


async def test_head_opens_no_stream(idle: Api) -> None:
    await idle.people(1)
    answer = await idle.as_user(1, "HEAD", "/notifications/stream")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert idle.app_state.streams.count == 0


@pytest.mark.parametrize(
    ("path", "takes"),
    [
        ("/notifications/kinds", {"GET", "HEAD"}),
        ("/notifications/devices", {"GET", "HEAD", "POST"}),
        ("/notifications/preferences", {"GET", "HEAD", "PATCH"}),
        (f"/notifications/{UNKNOWN}", {"GET", "HEAD", "DELETE"}),
    ],
)
async def test_allow_header_lists_the_methods_of_the_path(api: Api, path: str, takes: set[str]) -> None:
    answer = await api.call("PUT", path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == takes


async def test_other_errors_of_the_framework_are_malformed_requests() -> None:
    answer = await on_http_exception(Request({"type": "http"}), HTTPException(400, "The body cannot be parsed."))
    assert answer.status_code == 400
    assert json.loads(bytes(answer.body))["errors"] == [{"message": "The body cannot be parsed.", "code": "malformed"}]
