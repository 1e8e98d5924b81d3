"""Python clients from the two common OpenAPI generators post events, list an inbox and read errors."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import locked_environment, run
from tests.support.service import HOUR, SECRET, Api
from tocsin.api.schemas import names_of
from tocsin.auth.minting import mint_service, mint_user

OURS = Path(__file__).parent / "generators"

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
async def tools(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """A virtual environment with the generators."""
    folder = tmp_path_factory.mktemp("generators")
    yield await locked_environment(folder, OURS / "requirements.lock")
    shutil.rmtree(folder)


async def result_of(api: Api, tools: Path, program: str, folder: Path) -> dict[str, Any]:
    """Run a program with a generated client in `folder`, and return what it saw."""
    await api.people(1, 4)
    samples = api.app_state.catalogue.samples
    given = {
        "url": str(api.http.base_url).rstrip("/"),
        "service": mint_service(SECRET, "crm", ("events:write", "directory:write"), HOUR),
        "user": mint_user(SECRET, 1, HOUR),
        "events": [{**sample["event"], "notify": {"users": [1]}} for sample in samples.values()],
        "names": [f"{names_of(api.app_state.catalogue)[kind]}Event" for kind in samples],
        "note": samples["note"]["event"],
        "id": "0190b6a5-7b7e-7c3e-8d5f-000000000001",
    }
    running = await asyncio.create_subprocess_exec(
        tools / "python",
        OURS / program,
        env={"PYTHONPATH": str(folder)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(running.communicate(json.dumps(given).encode()), 120)
    assert running.returncode == 0, err.decode()
    found: dict[str, Any] = json.loads(out)
    assert len(found["posted"]) == len(samples) + 1
    assert found["posted"][-1] == given["id"]
    assert set(found["listed"]) == set(found["posted"])
    assert found["refused"] == ["notify.users.0"]
    return found


async def document_in(api: Api, folder: Path) -> str:
    path = folder / "openapi.json"
    path.write_text((await api.call("GET", "/openapi.json")).text)
    return str(path)


async def test_openapi_generator_client_posts_event_of_each_kind(api: Api, tools: Path, tmp_path: Path) -> None:
    if not shutil.which("java"):
        pytest.skip("java is not installed")
    path = await document_in(api, tmp_path)
    command = (
        str(tools / "openapi-generator-cli"),
        "generate",
        "-i",
        path,
        "-g",
        "python",
        "-o",
        str(tmp_path / "made"),
    )
    status, told = await run(tmp_path, *command)
    assert status == 0, told
    await result_of(api, tools, "by_openapi_generator.py", tmp_path / "made")


async def test_openapi_python_client_posts_event_of_each_kind(api: Api, tools: Path, tmp_path: Path) -> None:
    path = await document_in(api, tmp_path)
    command = (str(tools / "openapi-python-client"), "generate", "--path", path, "--meta", "none")
    status, told = await run(tmp_path, *command, "--output-path", str(tmp_path / "made"))
    assert status == 0, told
    assert "duplicate" not in told, told
    await result_of(api, tools, "by_openapi_python_client.py", tmp_path)


OF_NOTE = {"type", "notify", "data", "params", "about", "key", "deliver_at", "id"}
OF_NOTIFY = {"users", "teams", "except", "unknown"}

IN_OTHER_LANGUAGES = {  # by generator: the files of its models, what declares a field, and what makes it optional
    "go": ("model_{}.go", r'^\t\w+ +\S+ `json:"(\w+)(,omitempty)?"`', ",omitempty"),
    "java": (
        "src/main/java/org/openapitools/client/model/{}.java",
        r'SERIALIZED_NAME_\w+ = "(\w+)";\n\s+@SerializedName\(\w+\)\n\s+@javax\.annotation\.(\w+)',
        "Nullable",
    ),
    "typescript-fetch": ("models/{}.ts", r"^    (\w+)(\?)?: .*;$", "?"),
}


@pytest.mark.parametrize("generator", IN_OTHER_LANGUAGES)
async def test_generated_client_has_all_fields_of_events_and_errors(
    api: Api, tools: Path, tmp_path: Path, generator: str
) -> None:
    if not shutil.which("java"):
        pytest.skip("java is not installed")
    path, made = await document_in(api, tmp_path), tmp_path / "made"
    command = (str(tools / "openapi-generator-cli"), "generate", "-i", path, "-g", generator, "-o", str(made))
    status, told = await run(tmp_path, *command)
    assert status == 0, told
    place, pattern, optional = IN_OTHER_LANGUAGES[generator]
    models = {}
    for name in ("NoteEvent", "Notify", "ErrorEntry", "Pagination"):
        spelling = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() if generator == "go" else name
        found = re.findall(pattern, (made / place.format(spelling)).read_text("utf-8"), re.MULTILINE)
        models[name] = {re.sub(r"(?=[A-Z])", "_", field).lower(): mark == optional for field, mark in found}
    required = {"type", "notify", "data", "params"}
    assert models["NoteEvent"] == {field: field not in required for field in OF_NOTE}
    assert models["Notify"] == dict.fromkeys(OF_NOTIFY, True)
    assert models["ErrorEntry"] == {"message": False, "code": False, "field": True, "id": True}
    assert models["Pagination"] == dict.fromkeys(("total", "page", "per_page", "urls", "unread"), False)
