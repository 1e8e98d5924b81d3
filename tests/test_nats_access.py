"""NATS with TLS, credentials and several servers."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.nats_access import Authority, operator_configuration
from tests.support.servers import free_port, nats
from tests.support.waiting import until
from tocsin.db.pool import Database
from tocsin.errors import Refusal
from tocsin.nats_access import Access
from tocsin.nats_bus import ByNats, failure_of
from tocsin.pubsub import PubSub

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("nothing_left_to_collect"),
]
"""After a failed TLS handshake, the client of NATS leaves sockets to the garbage collection."""


@contextlib.asynccontextmanager
async def two_processes(database: Database, access: Access) -> AsyncIterator[tuple[PubSub, PubSub, set[int]]]:
    """Yield the pubsub of two processes, and the users whose changes the second one heard."""
    buses = [ByNats(access) for _ in range(2)]
    here, there = (PubSub("", database, bus) for bus in buses)
    heard = set[int]()
    there.on_change(lambda ids: heard.update(ids or ()))

    async def stream() -> None:
        while True:
            there.want_changes()
            await asyncio.sleep(1)

    running = [asyncio.create_task(each) for each in (here.receive(), there.receive(), stream())]
    try:
        yield here, there, heard
    finally:
        for task in running:
            task.cancel()
        await here.close()
        for bus in buses:
            await bus.close()


def hears(publish: PubSub, heard: set[int], user_id: int) -> Callable[[], bool]:
    """Return a function that publishes a change until it was heard."""

    def is_heard() -> bool:
        publish.publish_changes([user_id])
        return user_id in heard

    return is_heard


async def test_messages_go_on_when_a_server_of_a_cluster_with_tls_is_lost(database: Database, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    tls = f'cert_file: "{certificate}", key_file: "{key}", ca_file: "{authority.certificate}", verify: true'
    routes = [free_port() for _ in range(3)]
    listed = ", ".join(f'"nats://127.0.0.1:{route}"' for route in routes)
    ports = {free_port(): route for route in routes}
    async with contextlib.AsyncExitStack() as stack:
        servers = {}
        for port, route in ports.items():
            (folder := tmp_path / str(port)).mkdir()
            configuration = folder / "nats.conf"
            configuration.write_text(
                f"tls {{ {tls} }}\ncluster {{ name: tests, listen: 127.0.0.1:{route}, routes: [{listed}] }}"
            )
            servers[port] = await stack.enter_async_context(nats(port, folder, "-c", str(configuration)))
        urls = ",".join(f"tls://127.0.0.1:{port}" for port in ports)
        access = Access(urls, authority.certificate, *authority.issue("client"))
        here, there, heard = await stack.enter_async_context(two_processes(database, access))
        there.watch(7)
        await until(hears(here, heard, 7))
        for _ in range(2):
            port = there._bus._client.connected_url.port  # type: ignore[attr-defined] # noqa: SLF001 - the server to kill
            servers[port].kill()
            await servers[port].wait()
            heard.clear()
            await until(hears(here, heard, 7))
        await until(lambda: not here.problem and not there.problem)  # a message can come before the word of the client


async def test_problem_names_why_tls_fails(database: Database, port: int, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    certificate, key = authority.issue("server")
    configuration = tmp_path / "nats.conf"
    configuration.write_text(
        f'tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{authority.certificate}", verify: true }}'
    )
    url = f"tls://127.0.0.1:{port}"
    async with nats(port, tmp_path, "-c", str(configuration)):
        async with two_processes(database, Access(url, other.certificate)) as (here, _, _):
            await until(lambda: "certificate verify failed" in here.problem)
        assert "certificate verify failed" in await failure_of(Access(url, other.certificate))
        assert await failure_of(Access(url, authority.certificate)), "without a certificate of the client"
        assert not await failure_of(Access(url, authority.certificate, *authority.issue("client")))
    gc.collect()


async def test_credentials_of_a_user_are_read_at_each_connection(database: Database, port: int, tmp_path: Path) -> None:
    configuration, credentials = operator_configuration()
    file, server = tmp_path / "tocsin.creds", tmp_path / "nats.conf"
    server.write_text(configuration)
    file.write_text(operator_configuration()[1])
    access = Access(f"nats://127.0.0.1:{port}", credentials_file=file)
    async with nats(port, tmp_path, "-c", str(server)), two_processes(database, access) as (here, there, heard):
        there.watch(7)
        await until(lambda: "Authorization Violation" in here.problem)
        file.write_text("")
        await until(lambda: "has no credentials of NATS" in here.problem)
        file.write_text(credentials)
        await until(hears(here, heard, 7))
        await until(lambda: not here.problem)  # the other one may have connected, and looked, before


@pytest.mark.parametrize(
    ("configuration", "login"),
    [('authorization { token: "geheim" }', "geheim@"), ('authorization { user: a, password: "b" }', "a:b@")],
)
async def test_a_token_or_a_password_is_part_of_the_url(
    port: int, tmp_path: Path, configuration: str, login: str
) -> None:
    (tmp_path / "nats.conf").write_text(configuration)
    async with nats(port, tmp_path, "-c", str(tmp_path / "nats.conf")):
        assert not await failure_of(Access(f"nats://{login}127.0.0.1:{port}"))
        reason = await failure_of(Access(f"nats://x{login}127.0.0.1:{port}"))
        assert "Authorization Violation" in reason
        assert login not in reason


def test_unusable_files_are_refused_at_the_start(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("-----BEGIN NATS USER JWT-----\n")
    url = "tls://a:1"
    for access in (
        Access(url, ca_file=wrong),
        Access(url, ca_file=tmp_path / "missing"),
        Access(url, cert_file=wrong),
        Access(url, credentials_file=wrong),
        Access(url, credentials_file=tmp_path / "missing"),
        Access(url, credentials_file=tmp_path),
    ):
        with pytest.raises(Refusal, match=r"NATS"):
            access.check()


async def test_a_process_hears_only_the_changes_of_users_it_watches(
    database: Database, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin.nats_bus.LINGER", 0)
    async with (
        nats(port, tmp_path),
        two_processes(database, Access(f"nats://127.0.0.1:{port}")) as (here, there, heard),
    ):
        there.watch(7)
        await until(lambda: 7 in heard)  # without a message: one may have been lost before
        heard.clear()
        here.publish_changes([8, 9])
        await until(hears(here, heard, 7))
        assert heard == {7}
        there.unwatch(7)
        there.watch(8)

        async def are_others_unheard() -> bool:
            heard.clear()
            here.publish_changes([7])
            await until(hears(here, heard, 8))
            return heard == {8}

        await until(are_others_unheard)  # the server may still remove the other subject
        here.publish_changes(range(1, 300))
        await until(lambda: len(heard) == 299)  # so many go to all processes


async def test_changes_are_heard_from_processes_of_the_previous_release(
    database: Database, port: int, tmp_path: Path
) -> None:
    async with (
        nats(port, tmp_path),
        two_processes(database, Access(f"nats://127.0.0.1:{port}")) as (here, there, heard),
    ):
        there.watch(7)
        await until(hears(here, heard, 7))
        heard.clear()
        client = here._bus._client  # type: ignore[attr-defined] # noqa: SLF001 - to send what it sends
        await client.publish("tocsin.work", b"settled @7")
        await until(lambda: heard == {7})


async def test_watched_users_count_as_changed_after_a_reconnection(
    database: Database, port: int, tmp_path: Path
) -> None:
    async with two_processes(database, Access(f"nats://127.0.0.1:{port}")) as (here, there, heard):
        there.watch(7)
        for _ in range(2):
            async with nats(port, tmp_path):
                await until(lambda: 7 in heard)
                heard.clear()
                await until(hears(here, heard, 7))
            await until(lambda: bool(there.problem))
            there.watch(8)
            heard.clear()
