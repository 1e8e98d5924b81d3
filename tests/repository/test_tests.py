"""Structure of the tests: shared code is in tests/support, and fixtures are in a conftest.py."""

import ast
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.support.places import remove_abandoned, short_path
from tests.support.programs import run
from tests.support.sources import parsed

TESTS = Path(__file__).parents[1]
MODULES = sorted(TESTS.rglob("*.py"))


def imported(module: Path) -> set[str]:
    """Return the modules of tests that a module imports."""
    nodes = list(ast.walk(parsed(module)))
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in names if name.split(".")[0] == "tests"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(TESTS)))
def test_test_modules_import_shared_parts_only_from_support(module: Path) -> None:
    assert {name for name in imported(module) if not name.startswith("tests.support")} == set()


def test_fixtures_are_in_test_modules_or_a_conftest() -> None:
    for module in (TESTS / "support").glob("*.py"):
        assert "pytest.fixture" not in module.read_text("utf-8"), module


def test_every_test_folder_is_a_package() -> None:
    """Required for test modules of the same name in two folders."""
    assert {path.parent for path in MODULES if not (path.parent / "__init__.py").exists()} <= {
        TESTS / "api/generators"  # programs on generated clients
    }


@pytest.mark.processes
async def test_tests_that_share_a_fixture_of_their_module_run_on_one_worker() -> None:
    """Otherwise each worker makes what they share."""
    module = "tests/push/channels/test_apns.py"
    options = ("-v", "-n", "2", "--no-loadscope-reorder", "-p", "no:cacheprovider", "-k", "truncat or omits")
    status, told = await run(TESTS.parent, sys.executable, "-m", "pytest", *options, module, "tests/test_files.py")
    assert status == 0, told
    workers = re.findall(rf"^\[(gw\d)\].* PASSED {module}::", told, re.MULTILINE)
    assert len(workers) > 2, told
    assert len(set(workers)) == 1


KILLED = """
import os, signal
from tests.support.places import short_path
with short_path() as path:
    print(path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.processes
async def test_folders_of_killed_runs_are_removed_and_those_of_others_kept() -> None:
    status, told = await run(TESTS.parent, sys.executable, "-c", KILLED)
    abandoned = Path(told.strip())
    assert status == -signal.SIGKILL
    (abandoned / "data").mkdir()
    (abandoned / "data/file").touch()
    with short_path() as own:
        remove_abandoned()
        assert own.exists()
    assert not abandoned.exists()
