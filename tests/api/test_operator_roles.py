"""The roles of operators: what each may do, as the documentation says."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.answers import codes_of
from tests.support.events import custom
from tests.support.service import HOUR, SECRET, Api
from tocsin.auth.claims import ROLES
from tocsin.auth.minting import mint_service

DOCUMENT = Path(__file__).parents[2] / "docs/operations/console.md"
ACTION = re.compile(r"\| [^|]+ \| `(\w+) ([^`]+)`(?: with `(\w+)`)? \| (yes|no) \| (yes|no) \| (yes|no) \|")
QUERIES = {"/operations/users": "?search=first", "/operations/devices": "?ending=abcdef"}


def documented() -> dict[tuple[str, str, str], list[bool]]:
    """Return the table of roles: by method, path and field, whether a viewer, support and an operator may."""
    rows = [row.groups() for row in ACTION.finditer(DOCUMENT.read_text())]
    return {(method, path, field or ""): [word == "yes" for word in words] for method, path, field, *words in rows}


@pytest.fixture
async def event(api: Api) -> str:
    await api.people(1)
    return await api.post(custom(1))


async def ask(
    api: Api, role: Any, action: tuple[str, str, str], event: str, company: int | None = None
) -> httpx.Response:
    method, path, field = action
    whole = path.replace("{event_id}", event).replace("{user_id}", "1").replace("{device_id}", event) + QUERIES.get(
        path, ""
    )
    body = {"events": {"events": [event]}, "lane": {"lane": "apns/default"}, "": None}[field]
    return await api.call(method, whole, mint_service(SECRET, "night", [ROLES[role]], HOUR, company), json=body)


async def test_each_role_may_do_exactly_what_the_documentation_says(api: Api, event: str) -> None:
    wrong = {}
    for action, permitted in documented().items():
        for role, may in zip(("viewer", "support", "operator"), permitted, strict=True):
            answer = await ask(api, role, action, event)
            is_refused = codes_of(answer) == (403, [("unauthorized", None)])
            if is_refused == may or answer.status_code >= 500:
                wrong[role, action] = answer.status_code, answer.text
    assert wrong == {}


async def test_every_route_of_operations_is_in_the_table_of_roles(api: Api) -> None:
    document = (await api.call("GET", "/openapi.json")).json()
    routes = {
        (method.upper(), path)
        for path, found in document["paths"].items()
        for method, operation in found.items()
        if "`operations`" in operation["description"].rpartition("Requires ")[2]
    }
    assert {(method, path) for method, path, _ in documented()} == routes
    for may in documented().values():
        assert may == sorted(may), "each role includes those before it"


@pytest.mark.parametrize("role", ROLES)
async def test_role_with_a_company_sees_nothing_of_another_company(api: Api, event: str, role: Any) -> None:
    for action in documented():
        answer = await ask(api, role, action, event, company=2)
        assert "First1" not in answer.text, action
        if "{" in action[1] and answer.status_code != 403:
            assert answer.status_code == 404, action


async def test_refusal_names_the_least_scope_that_permits_the_action(api: Api, event: str) -> None:
    for role, action, scope in (
        ("viewer", ("GET", "/operations/users", ""), "operations:support"),
        ("viewer", ("GET", "/operations/audit", ""), "operations"),
        ("support", ("POST", "/operations/replay", "lane"), "operations"),
    ):
        answer = await ask(api, role, action, event)
        assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{scope}"'


async def test_service_that_may_only_look_cancels_no_event_of_another_service(api: Api, event: str) -> None:
    token = mint_service(SECRET, "erp", ["events:write", "operations:support"], HOUR)
    assert (await api.call("GET", f"/events/{event}", token)).status_code == 200
    assert (await api.call("DELETE", f"/events/{event}", token)).status_code == 404
