"""Fixtures: two cells on two servers, and in two schemas of one database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.built_in import CATALOGUE
from tests.support.database import make_database
from tests.support.moves import empty, opened
from tests.support.service import Api, serving
from tocsin import copying, moving
from tocsin.db.migrate import migrate
from tocsin.db.pool import Database
from tocsin.db.url import in_schema
from tocsin.postgres.supervisor import Embedded


@pytest.fixture(scope="session")
async def places(server: Embedded, folder: Path) -> AsyncIterator[dict[str, tuple[str, str]]]:
    """The urls of two cells: on two servers, and in two schemas of one database."""
    first = await make_database(server, "cell_a")
    second = in_schema(first, "tocsin_b")
    await migrate(second)
    async with Embedded(folder / "second") as other:
        await migrate(other.url)
        yield {"servers": (first, other.url), "schemas": (first, second)}


@pytest.fixture(params=["servers", "schemas"])
def urls(request: pytest.FixtureRequest, places: dict[str, tuple[str, str]]) -> tuple[str, str]:
    return places[request.param]


@pytest.fixture
async def cells(urls: tuple[str, str]) -> AsyncIterator[tuple[Api, Api]]:
    """Two services with a database each."""
    for url in urls:
        await empty(url)
    async with serving(urls[0], CATALOGUE) as a, serving(urls[1], CATALOGUE) as b:
        yield a, b


@pytest.fixture
async def pools(urls: tuple[str, str]) -> AsyncIterator[tuple[Database, Database]]:
    async with opened(urls) as pair:
        yield pair


@pytest.fixture(autouse=True)
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "CLOSE_DELAY", 0.0)  # no process looks which companies are closed
    monkeypatch.setattr(moving, "PAUSE", 0.1)
    monkeypatch.setattr(copying, "MANY_RECIPIENTS", 2)
