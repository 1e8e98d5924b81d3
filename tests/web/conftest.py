"""Fixtures: a page of a host application with the inbox, and browsers that show it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.support.host_page import Host, Windows, browsing, hosting
from tests.support.node import installed
from tests.support.programs import run
from tests.support.service import serving
from tocsin.catalogue import Catalogue
from tocsin.push.channels.vapid import Vapid
from tocsin_phones import Phones


@pytest.fixture(scope="session")
def leading(folder: Path) -> Catalogue:
    """The catalogue with a link for custom messages."""
    kinds = folder / "leading" / "kinds.toml"
    kinds.parent.mkdir()
    kinds.write_text('[custom]\nlink = "https://crm.example.com/n/{body}"\n')
    return Catalogue.load(kinds.parent)


@pytest.fixture(scope="session")
async def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources of all scripts, with the tools of their lock file."""
    return await installed(Path(__file__).parents[2] / "web", tmp_path_factory.mktemp("sources") / "web")


@pytest.fixture(scope="session")
async def archive(sources: Path) -> Path:
    """The package for npm, as it would be published."""
    status, told = await run(sources, "npm", "pack", "--silent")
    assert status == 0, told
    [archive] = sources.glob("tocsin-inbox-*.tgz")
    return archive


@pytest.fixture
async def host(url: str, leading: Catalogue) -> AsyncIterator[Host]:
    """A page of another origin with the inbox of user 1 in it, and the service behind it."""
    async with hosting() as host, serving(url, leading, cors_origins=(host.origin,)) as api:
        await api.people(1, 2)
        await api.people(4, first_name="Bernita", last_name="Kilback")
        host.serves(api)
        yield host


@pytest.fixture
async def windows(host: Host, chromium: Browser) -> AsyncIterator[Windows]:
    """A browser profile for that page."""
    async with browsing(chromium, host) as windows:
        yield windows


@pytest.fixture
async def pushed(url: str, catalogue: Catalogue, phones: Phones, tmp_path: Path) -> AsyncIterator[Host]:
    """A page with a worker, of a service that pushes to browsers."""
    Vapid.make(tmp_path / "vapid.pem")
    environment = {**phones.credentials(tmp_path), "TOCSIN_VAPID_KEY_FILE": str(tmp_path / "vapid.pem")}
    async with hosting() as host, serving(url, catalogue, environment=environment, cors_origins=(host.origin,)) as api:
        await api.people(1, 2)
        host.serves(api)
        host.embed('worker="/worker.js"')
        host.subscribe = phones.subscribe
        yield host
