"""Several hosts in the url of the database."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.support.servers import OwnServer, own_server
from tests.support.waiting import until
from tocsin import bus
from tocsin.db import connections
from tocsin.db.connections import connect
from tocsin.db.pool import Database
from tocsin.db.url import target_of


@pytest.fixture(scope="module")
async def own() -> AsyncIterator[OwnServer]:
    async with own_server() as server:
        yield server


class Hung:
    """A server that accepts connections and never answers, as one whose machine or network is lost."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        while await reader.read(1000):
            pass
        writer.close()


class Relay:
    """Passes connections on to a server until it hangs."""

    def __init__(self, port: int) -> None:
        self.port, self.hangs = port, False

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.hangs:
            await reader.read()
        there, towards = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.gather(self._pass(reader, towards), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(10_000):
            if not self.hangs:
                writer.write(content)
        writer.close()


def url_of(own: OwnServer, hung: asyncio.Server, attributes: str) -> str:
    """Return a url that names a hung server first."""
    parts, port = urlsplit(own.url(target_session_attrs=attributes)), hung.sockets[0].getsockname()[1]
    credentials, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{credentials}@127.0.0.1:{port},{host}").geturl()


async def test_host_that_does_not_answer_hides_no_other_and_is_asked_once(
    own: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 3)
    hung = Hung()
    async with await asyncio.start_server(hung, "127.0.0.1", 0) as listening:
        url = url_of(own, listening, "primary")
        for _ in range(3):
            connection = await connect(url)
            assert await connection.fetchval("select 1") == 1
            await connection.close()
    assert hung.asked == 1


async def test_lost_host_is_reported_rather_than_one_of_another_kind(
    own: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(asyncpg.TargetServerAttributeNotMatched):
        await connect(own.url(target_session_attrs="standby"))
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 0.5)
    async with await asyncio.start_server(Hung(), "127.0.0.1", 0) as listening:
        with pytest.raises(TimeoutError):
            await connect(url_of(own, listening, "standby"))


async def test_listener_leaves_a_server_that_no_longer_answers(own: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(bus, "CHECK_TIMEOUT", 3)
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 3)
    relay, heard = Relay(own.port), asyncio.Event()
    database = Database(own.url(), 1)
    await database.open()
    async with await asyncio.start_server(relay, "127.0.0.1", 0) as listening:
        by_notify = bus.ByNotify(url_of(own, listening, "primary"), database)

        async def is_heard() -> bool:
            await by_notify.send(["word"], [])
            return heard.is_set()

        listener = asyncio.create_task(by_notify.listen(lambda _: heard.set()))
        await until(is_heard)
        relay.hangs = True
        await asyncio.sleep(0.2)  # what is on its way arrives
        heard.clear()
        await until(is_heard)  # on the other host
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
    await database.close()


@pytest.mark.parametrize(
    ("url", "dsns"),
    [
        ("postgresql://u:p@a,b:5433/d?ssl=on", ["postgresql://u:p@a/d", "postgresql://u:p@b:5433/d"]),
        ("postgresql://u@a,b/d?port=1,2", ["postgresql://u@a/d?port=1", "postgresql://u@b/d?port=2"]),
        ("postgresql://a,b/d?port=1", ["postgresql://a/d?port=1", "postgresql://b/d?port=1"]),
        ("postgresql://u@[::1]:5,c/d", ["postgresql://u@[::1]:5/d", "postgresql://u@c/d"]),
        ("postgresql:///d?host=a,b&user=x", ["postgresql:/d?host=a&user=x", "postgresql:/d?host=b&user=x"]),
        ("postgresql:///d", ["postgresql:/d"]),
        ("postgresql://a,b/d?port=1,2,3", ["postgresql://a,b/d?port=1%2C2%2C3"]),
    ],
)
def test_url_is_split_into_its_hosts(url: str, dsns: list[str]) -> None:
    assert list(target_of(url).dsns) == dsns
