"""The three distributions: each builds, is complete, and works alone in an empty environment."""

import re
import shutil
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.programs import UV
from tests.support.programs import run as run_program

ROOT = Path(__file__).parents[2]
PACKAGES = {"tocsin": ROOT, "tocsin_client": ROOT / "packages/client", "tocsin_phones": ROOT / "packages/phones"}

pytestmark = pytest.mark.processes

run = partial(run_program, seconds=300)


async def succeed(folder: Path, *command: str) -> str:
    status, told = await run(folder, *command)
    assert status == 0, told
    return told


@pytest.fixture(scope="module")
async def wheels(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("wheels")
    found = {}
    for name, package in PACKAGES.items():
        await succeed(
            package, sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)
        )
        [found[name]] = folder.glob(f"{name}-*.whl")
    yield found
    shutil.rmtree(folder)


async def installed(folder: Path, *what: str) -> Path:
    """Make a virtual environment that holds this and what it needs, in the versions of the lock file."""
    if not UV.exists():
        pytest.skip("uv is not where make puts it")
    await succeed(folder, str(UV), "venv", "--quiet", "--no-python-downloads", "--python", sys.executable, "made")
    python, lock = str(folder / "made/bin/python"), str(ROOT / "requirements.lock")
    status, told = await run(
        folder, str(UV), "pip", "install", "--quiet", "--python", python, "--constraints", lock, *what
    )
    if status and "error sending request" in told:
        pytest.skip("uv reaches no registry")
    assert status == 0, told
    return folder / "made/bin"


@pytest.mark.parametrize("name", PACKAGES)
async def test_wheels_are_complete(wheels: dict[str, Path], name: str, tmp_path: Path) -> None:
    wheel = str(wheels[name])
    await succeed(tmp_path, sys.executable, "-m", "twine", "check", "--strict", wheel)
    await succeed(tmp_path, str(Path(sys.executable).with_name("check-wheel-contents")), wheel)


async def test_service_runs_without_optional_packages(wheels: dict[str, Path], tmp_path: Path) -> None:
    programs = await installed(tmp_path, str(wheels["tocsin"]))
    assert (await succeed(tmp_path, str(programs / "tocsin"), "--version")).strip()
    for module in ("tocsin_phones", "tocsin_client", "h2"):
        assert (await run(tmp_path, str(programs / "python"), "-c", f"import {module}"))[0]
    for command in (("demo",), ("phones", "--folder", "phones")):
        status, told = await run(tmp_path, str(programs / "tocsin"), *command)
        assert status
        assert 'pip install "tocsin[demo]"' in told


async def test_client_needs_no_other_package(wheels: dict[str, Path], tmp_path: Path) -> None:
    programs = await installed(tmp_path, str(wheels["tocsin_client"]))
    await succeed(tmp_path, str(programs / "python"), "-c", "from tocsin_client import Client")
    listed = await succeed(tmp_path, str(UV), "pip", "list", "--quiet", "--python", str(programs / "python"))
    assert [line.split()[0] for line in listed.splitlines()[2:]] == ["tocsin-client"]


async def test_phones_package_works_as_a_fixture_of_other_projects(wheels: dict[str, Path], tmp_path: Path) -> None:
    programs = await installed(tmp_path, f"{wheels['tocsin_phones']}[pytest]")
    assert "--folder" in await succeed(tmp_path, str(programs / "tocsin-phones"), "--help")
    (tmp_path / "test_sender.py").write_text(
        "from urllib.request import urlopen\n\n\n"
        "def test_it_is_there(tocsin_phones):\n"
        "    assert tocsin_phones.environment['TOCSIN_APNS_KEY_ID']\n"
        "    assert urlopen(f'{tocsin_phones.url}/pushes').status == 200\n"
    )
    told = await succeed(tmp_path, str(programs / "python"), "-m", "pytest", "-q", "test_sender.py")
    assert "1 passed" in told


@pytest.mark.parametrize("page", ["packages/client/README.md", "packages/phones/README.md", "web/README.md"])
def test_unpublished_package_is_installed_from_a_clone(page: str) -> None:
    named = re.findall(r"(?:pip|npm) install (\S+)", (ROOT / page).read_text("utf-8"))
    assert named
    assert all(name.strip('"').startswith("./") for name in named)
