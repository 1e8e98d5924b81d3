"""Fixtures: one PostgreSQL server, a new database for each test, and the service on a real socket."""

import gc
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog
from playwright.async_api import Browser, async_playwright, expect
from xdist.remote import Producer  # type: ignore[import-untyped]

from tests.support import places, second_cell, selection
from tests.support.built_in import CATALOGUE
from tests.support.database import end_sessions, left_behind, make_database, url_for, wipe
from tests.support.places import short_path
from tests.support.servers import free_port
from tests.support.service import Api, serving
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection, connect
from tocsin.db.migrate import migrate
from tocsin.db.pool import Database
from tocsin.postgres.supervisor import Embedded
from tocsin.push.channels.vapid import Vapid
from tocsin.rate_limits import RateLimits
from tocsin_phones import Phones

hypothesis.settings.register_profile("fast", max_examples=10, deadline=None)  # timings never decide a test
hypothesis.settings.register_profile("test", deadline=None)
hypothesis.settings.register_profile("chaos", deadline=None)
hypothesis.settings.register_profile("soak", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("test")

expect.set_options(timeout=60_000)  # a busy machine needs longer to load a page

# The default renderer shows all variables of a traceback, which takes longer than what failed.
*_others, _ = structlog.get_config()["processors"]
structlog.configure([*_others, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-schema", action="store_true", help="write schema.sql anew from the migrations")
    parser.addoption(
        "--second-cell", action="store_true", help="services of tests have two cells; tests are in the second"
    )
    parser.addoption(
        "--strict-skips", action="store_true", help="fail if a test is skipped for a reason not on the list"
    )


def pytest_configure(config: pytest.Config) -> None:
    second_cell.is_wanted = config.getoption("--second-cell")
    if hasattr(config, "workerinput"):
        return
    places.remove_abandoned()
    if config.getoption("--strict-skips"):
        config.pluginmanager.register(selection.StrictSkips())


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two workers per processor, for `-n auto`: many tests wait for processes, timeouts and browsers."""
    return 2 * len(os.sched_getaffinity(0))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> selection.ByModule:
    return selection.ByModule(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if second_cell.is_wanted:
        items[:] = [item for item in items if item.get_closest_marker("one_cell") is None]
    for item in items:
        selection.mark(item)
    items.sort(key=selection.weight)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A short path that the server's user can enter."""
    with short_path() as path:
        yield path


@pytest.fixture(scope="session")
async def server(folder: Path) -> AsyncIterator[Embedded]:
    async with Embedded(folder / "data") as embedded:
        connection = await connect(embedded.url)
        await connection.execute("create database template_of_tests")
        await connection.close()
        await migrate(url_for(embedded, "template_of_tests"))
        yield embedded
        end_sessions()


@pytest.fixture(scope="session")
async def quiet_database(server: Embedded) -> str:
    url = await make_database(server, "quiet")
    await left_behind(url)
    return url


@pytest.fixture
async def url(quiet_database: str) -> AsyncIterator[str]:
    """A database with an empty schema and no worker."""
    await wipe(quiet_database, is_served=False)
    yield quiet_database
    assert await left_behind(quiet_database) == []


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url, 6)
    await database.open()
    yield database
    await database.close()


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return CATALOGUE


@pytest.fixture(scope="session")
async def busy_service(server: Embedded, catalogue: Catalogue) -> AsyncIterator[Api]:
    async with serving(await make_database(server, "busy"), catalogue) as api:
        yield api


@pytest.fixture
async def api(busy_service: Api, server: Embedded) -> AsyncIterator[Api]:
    """The service with its worker, and nothing in it."""
    url = url_for(server, "busy")
    await left_behind(url)
    await wipe(url)
    for app_state in filter(None, (busy_service.app_state, busy_service.first)):
        await second_cell.forget_limits(app_state)
    yield busy_service
    assert await left_behind(url) == []


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rate limits, for tests that call more often than a user may."""
    monkeypatch.setattr(RateLimits, "of", lambda *_: None)


@pytest.fixture
async def phones() -> AsyncIterator[Phones]:
    async with Phones() as phones:
        yield phones


@pytest.fixture
async def pushing(url: str, catalogue: Catalogue, phones: Phones, tmp_path: Path) -> AsyncIterator[Api]:
    """The service, with fake phones at the other end of it."""
    Vapid.make(tmp_path / "vapid.pem")
    environment = {**phones.credentials(tmp_path), "TOCSIN_VAPID_KEY_FILE": str(tmp_path / "vapid.pem")}
    async with serving(url, catalogue, environment=environment) as api:
        await api.people(1, 2)
        yield api


@pytest.fixture
async def idle(url: str, catalogue: Catalogue) -> AsyncIterator[Api]:
    """The service without a worker: what is accepted stays in the queue."""
    async with serving(url, catalogue, with_worker=False) as api:
        yield api


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """Debian's Chromium, without requests to the outside."""
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*quiet, "--disable-component-update", "--disable-sync"]
        )
        yield browser
        await browser.close()


@pytest.fixture
async def dba(url: str) -> AsyncIterator[Connection]:
    """A database session besides those of the service."""
    connection = await connect(url)
    yield connection
    await connection.close()


@pytest.fixture
def nothing_left_to_collect() -> Iterator[None]:
    """Collect the garbage of a test after all else of it has ended, so that no other test reports it."""
    yield
    gc.collect()


@pytest.fixture
def port() -> int:
    """A free port of the loopback."""
    return free_port()


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path that the server's user can pass through."""
    with short_path() as path:
        yield path
