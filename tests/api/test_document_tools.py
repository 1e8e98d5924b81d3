"""Third-party tools accept the OpenAPI document: linters, and a generated client."""

import json
from pathlib import Path

import pytest

from tests.support.node import installed
from tests.support.programs import run
from tests.support.service import HOUR, SECRET, Api
from tocsin.auth.minting import mint_service, mint_user

OURS = Path(__file__).parent / "npm_tools"

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
async def npm_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tools."""
    return await installed(OURS, tmp_path_factory.mktemp("tools") / "tools")


@pytest.fixture
async def tools(api: Api, npm_tools: Path) -> Path:
    """The same, with the document of the running service."""
    (npm_tools / "openapi.json").write_text((await api.call("GET", "/openapi.json")).text)
    return npm_tools


async def test_redocly_lint_finds_no_errors(tools: Path) -> None:
    lint = ("node_modules/.bin/redocly", "lint", "--extends=recommended", "--format=json", "openapi.json")
    status, told = await run(tools, *lint)
    assert status == 0, told
    totals = json.loads(told[told.index("{") : told.rindex("}") + 1])["totals"]
    assert totals["errors"] == 0


async def test_spectral_lint_finds_no_errors(tools: Path) -> None:
    lint = ("node_modules/.bin/spectral", "lint", "--ruleset=spectral.yaml", "--format=json", "--quiet", "openapi.json")
    status, told = await run(tools, *lint)
    assert status == 0, told
    assert [each for each in json.loads(told or "[]") if each["severity"] == 0] == []


async def test_hey_api_client_posts_note_with_all_optional_fields(api: Api, tools: Path) -> None:
    await api.people(1, 4)
    plugins = ("@hey-api/client-fetch", "@hey-api/typescript", "@hey-api/sdk")
    status, told = await run(
        tools, "node_modules/.bin/openapi-ts", "-i", "openapi.json", "-o", "client", "-p", *plugins
    )
    assert status == 0, told
    status, told = await run(tools, "node_modules/.bin/tsc")
    assert status == 0, told
    id_ = "0190b6a5-7b7e-7c3e-8d5f-000000000002"
    service, user = mint_service(SECRET, "crm", ("events:write",), HOUR), mint_user(SECRET, 1, HOUR)
    status, told = await run(tools, "node", "made/note.js", str(api.http.base_url), service, user, id_)
    assert status == 0, told
    assert json.loads(told) == {
        "posted": id_,
        "skipped": {"users": [], "teams": []},
        "listed": [id_],
        "refused": [["validation.unknown", "notify.users.0"]],
    }
