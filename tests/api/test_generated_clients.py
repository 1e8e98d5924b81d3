"""Clients in Python, Java and TypeScript from common generators post events, list an inbox and read errors."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import installed
from tests.support.programs import locked_environment, run
from tests.support.service import HOUR, SECRET, Api
from tocsin.api.schemas import names_of
from tocsin.auth.minting import mint_service, mint_user

OURS = Path(__file__).parent / "generators"

SHORT_LIVED = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Options of Java for a program that ends before the second compiler pays."""

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


CLIENTS: dict[str, dict[str, Any]] = {  # by folder: the generator and its options
    "python": {"generatorName": "python"},
    "java": {"generatorName": "java"},
    "java-native": {
        "generatorName": "java",
        "library": "native",
        "additionalProperties": {"openApiNullable": "false"},
    },
    "typescript-fetch": {"generatorName": "typescript-fetch"},
    "go": {"generatorName": "go"},
}


@pytest.fixture(scope="module")
async def clients(busy_service: Api, tools: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """All clients of openapi-generator: one process makes them, because it takes longer to start than to make one."""
    if not shutil.which("java"):
        pytest.skip("java is not installed")
    folder = tmp_path_factory.mktemp("clients")
    document = await document_in(busy_service, folder)
    for name, options in CLIENTS.items():
        wanted = {**options, "inputSpec": document, "outputDir": str(folder / name)}
        (folder / f"{name}.json").write_text(json.dumps(wanted))
    command = (str(tools / "openapi-generator-cli"), "batch", "--fail-fast", *(f"{name}.json" for name in CLIENTS))
    status, told = await run(folder, *command, JDK_JAVA_OPTIONS=SHORT_LIVED)
    assert status == 0, told
    yield folder
    shutil.rmtree(folder)


async def test_openapi_generator_client_posts_event_of_each_kind(api: Api, tools: Path, clients: Path) -> None:
    await result_of(api, tools, "by_openapi_generator.py", clients / "python")


async def test_openapi_python_client_posts_event_of_each_kind(api: Api, tools: Path, tmp_path: Path) -> None:
    path = await document_in(api, tmp_path)
    command = (str(tools / "openapi-python-client"), "generate", "--path", path, "--meta", "none")
    status, told = await run(tmp_path, *command, "--output-path", str(tmp_path / "made"))
    assert status == 0, told
    assert "duplicate" not in told, told
    await result_of(api, tools, "by_openapi_python_client.py", tmp_path)


async def prints_note(api: Api, folder: Path, *command: str) -> None:
    """Run a program, and check that it posted a note, listed the inbox and read an error."""
    await api.people(1, 4)
    id_ = "0190b6a5-7b7e-7c3e-8d5f-000000000003"
    service, user = mint_service(SECRET, "crm", ("events:write",), HOUR), mint_user(SECRET, 1, HOUR)
    status, told = await run(folder, *command, str(api.http.base_url).rstrip("/"), service, user, id_)
    assert status == 0, told
    assert json.loads(told) == {"posted": id_, "listed": [id_], "refused": ["notify.users.0"]}


async def test_java_client_posts_note_with_all_optional_fields(
    api: Api, tools: Path, clients: Path, tmp_path: Path
) -> None:
    """The generator's own jar has the libraries that its clients need, except one annotation."""
    if not shutil.which("javac"):
        pytest.skip("java's compiler is not installed")
    [jar] = tools.parent.glob("lib/*/site-packages/openapi_generator_cli/*.jar")
    annotation = tmp_path / "Generated.java"
    annotation.write_text(
        'package javax.annotation; public @interface Generated { String[] value(); String date() default "";'
        ' String comments() default ""; }'
    )
    sources = [str(path) for path in (clients / "java-native/src/main").rglob("*.java")]
    own = (str(annotation), str(OURS / "Note.java"))
    status, told = await run(
        tmp_path,
        "javac",
        *(f"-J{option}" for option in SHORT_LIVED.split()),
        "-nowarn",
        "-proc:none",
        "-d",
        "classes",
        "-cp",
        str(jar),
        *own,
        *sources,
    )
    assert status == 0, told
    await prints_note(api, tmp_path, "java", *SHORT_LIVED.split(), "-cp", f"classes:{jar}", "Note")


async def test_typescript_fetch_client_posts_note_with_all_optional_fields(
    api: Api, clients: Path, tmp_path: Path
) -> None:
    shutil.copytree(clients / "typescript-fetch", tmp_path / "client")
    modules = await installed(OURS.parent / "typescript", tmp_path / "npm")
    for name in ("note.ts", "tsconfig.json"):
        shutil.copy(OURS / name, tmp_path)
    status, told = await run(tmp_path, str(modules / "node_modules/.bin/tsc"))
    assert status == 0, told
    await prints_note(api, tmp_path, "node", "made/note.js")


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
def test_generated_client_has_all_fields_of_events_and_errors(clients: Path, generator: str) -> None:
    made = clients / generator
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
