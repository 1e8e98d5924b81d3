"""Structure of the tests: shared code is in tests/support, and fixtures are in a conftest.py."""

import ast
import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest
import structlog

from tests.support.database import blocked, wipe
from tests.support.logs import own_logs
from tests.support.places import remove_abandoned, short_path
from tests.support.programs import run
from tests.support.sources import parsed
from tests.support.waiting import until
from tocsin.db.connections import Connection, connect

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


async def test_database_is_emptied_beside_a_request_that_was_given_up(url: str, dba: Connection) -> None:
    await dba.execute("insert into users values (1, 1, 'John', 'Doe', null, null, 'UTC')")
    await dba.execute("insert into heads (user_id, locale, active) values (1, 'en', true)")
    request = await connect(url)
    async with request.transaction():
        await request.execute("set local deadlock_timeout = '1min'")  # PostgreSQL ends the other one
        await request.execute("select from users where id = 1 for update")
        emptying = asyncio.create_task(wipe(url))
        await until(lambda: blocked(dba))
        await request.execute("update heads set locale = 'da' where user_id = 1")
    await emptying
    await request.close()
    assert await dba.fetchval("select count(*) from users") == 0


async def test_own_logs_of_a_test_are_not_those_of_a_service_that_tests_share() -> None:
    log, begun, ended = structlog.get_logger(), asyncio.Event(), asyncio.Event()

    async def serve() -> None:
        await begun.wait()
        log.info("of the service")
        ended.set()

    async def help_the_test() -> None:
        log.info("of a task of the test")

    serving = asyncio.create_task(serve())
    with own_logs() as lines:
        begun.set()
        await ended.wait()
        await asyncio.create_task(help_the_test())
    await serving
    assert [line["event"] for line in lines] == ["of a task of the test"]
