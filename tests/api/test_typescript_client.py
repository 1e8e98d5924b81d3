"""A TypeScript client that is generated from the OpenAPI document compiles and works."""

import json
from pathlib import Path

import pytest

from tests.support.events import custom
from tests.support.node import installed
from tests.support.programs import run
from tests.support.service import HOUR, SECRET, Api
from tocsin.auth.minting import mint_service, mint_user

OURS = Path(__file__).parent / "typescript"


@pytest.fixture
async def program(tmp_path: Path) -> Path:
    """A folder with the program's sources and what it needs."""
    return await installed(OURS, tmp_path / "client")


@pytest.mark.processes
async def test_typescript_client_compiles_posts_event_and_lists_inbox(api: Api, program: Path) -> None:
    await api.people(1, 4)
    ids = [await api.post(custom(1, body=f"Hello {number}")) for number in range(4)]
    url, tools = str(api.http.base_url), program / "node_modules/.bin"
    status, told = await run(program, f"{tools}/openapi-typescript", f"{url}/openapi.json", "--output", "api.d.ts")
    assert status == 0, told
    status, told = await run(program, f"{tools}/tsc")
    assert status == 0, told
    service = mint_service(SECRET, "crm", ("events:write",), HOUR)
    status, told = await run(program, "node", "made/inbox.js", url, service, mint_user(SECRET, 1, HOUR))
    assert status == 0, told
    seen = json.loads(told)
    posted = seen["posted"]
    assert [entry["id"] for entry in seen["listed"]] == [posted, *reversed(ids)]
    assert [entry["message"] for entry in seen["listed"][1:]] == [f"Hello {number}" for number in (3, 2, 1, 0)]
    assert seen["newest"] == {"id": posted, "read": True, "case": 6}
    assert (seen["refused"], seen["ready"]) == (["not_found"], "ready")
    assert (await api.inbox(1))["pagination"]["unread"] == 4
