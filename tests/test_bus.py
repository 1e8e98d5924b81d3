"""NATS between processes: it makes wakeups faster, and nothing is lost without it."""

import asyncio
import signal
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.database import url_for
from tests.support.events import custom
from tests.support.servers import nats
from tests.support.service import Api, serving, settings_for
from tests.support.streams import watching
from tests.support.waiting import bounded, reaches, until
from tocsin import nats_bus, presence
from tocsin import pubsub as pubsub_module
from tocsin.background import in_background
from tocsin.bus import Polling
from tocsin.catalogue import Catalogue
from tocsin.db.connections import connect
from tocsin.db.pool import Database
from tocsin.db.url import schema_of
from tocsin.disk_guard import DiskGuard
from tocsin.errors import Refusal
from tocsin.nats_access import Access
from tocsin.nats_bus import ByNats
from tocsin.postgres.supervisor import Embedded
from tocsin.presence import Doing
from tocsin.pubsub import PubSub
from tocsin.readiness import Readiness
from tocsin.settings import read_settings


async def receives(bell: PubSub, name: str, publish: PubSub) -> None:
    """Publish until another process receives it."""
    heard = bell.listen_for(name)

    def is_heard() -> bool:
        publish.publish(name)
        return heard.is_set()

    await until(is_heard)


async def wanted(what: Doing, sender: PubSub, want: Callable[[], object]) -> None:
    """Say that something is wanted until the sender has heard it."""

    def is_heard() -> bool:
        want()
        return sender.others(what) > 0

    await until(is_heard)


def _receives_a_change(publish: PubSub, there: PubSub, changed: list[int]) -> bool:
    there.want_changes()  # as streams do again and again: what is said while there is no server is lost
    publish.publish_changes([7])
    return 7 in changed


async def test_nats_carries_wakeups_and_changes_and_reconnects(api: Api, port: int, tmp_path: Path) -> None:
    url, database = "", api.app_state.database
    wires = [ByNats(Access(f"nats://127.0.0.1:{port}")) for _ in range(2)]
    here, there = (PubSub(url, database, bus) for bus in wires)
    changed: list[int] = []
    there.on_change(lambda ids: changed.extend(ids or ()))
    there.watch(7)
    ears = asyncio.create_task(there.receive())
    here.publish("direct")  # without a server nothing fails
    try:
        for _ in range(2):  # it goes, and comes back
            async with nats(port, tmp_path):
                await receives(there, "direct", here)
                await until(partial(_receives_a_change, here, there, changed))
                changed.clear()
            here.publish("direct")
            here.publish_changes(range(10_000))
    finally:
        ears.cancel()
        await here.close()
        for bus in wires:
            await bus.close()


async def test_bus_without_its_server_reports_that_messages_are_delayed(
    database: Database, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_bus, "PING_INTERVAL", 0.1)
    bus = ByNats(Access(f"nats://127.0.0.1:{port}"))
    pubsub = PubSub("", database, bus)
    receiving = asyncio.create_task(pubsub.receive())
    away = "messages of other processes are delayed: NATS cannot be reached"
    found = Readiness(database, DiskGuard(None), pubsub)
    try:
        ready, [problem] = await found.now()
        assert ready
        assert problem.startswith(away)
        async with nats(port, tmp_path) as server:
            await until(lambda: not pubsub.problem)
            server.send_signal(signal.SIGSTOP)
            await until(lambda: pubsub.problem.startswith(away))
            server.send_signal(signal.SIGCONT)
            await until(lambda: not pubsub.problem)
    finally:
        receiving.cancel()
        await bus.close()


async def test_changes_and_final_states_are_sent_only_while_they_are_wanted(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "LIFETIME", 0.5)
    monkeypatch.setattr(presence, "SAY_INTERVAL", 0)
    here, there = PubSub(url, database), PubSub(url, database)
    texts: list[str] = []
    changed: list[Collection[int] | None] = []
    there.on_change(changed.append)
    async with AsyncExitStack() as stack:
        listener = await connect(url)
        stack.push_async_callback(listener.close)
        await listener.add_listener(f"{schema_of(url)}_work", lambda *said: texts.append(str(said[-1])))
        for pubsub in (here, there):
            stack.push_async_callback(pubsub.close)
            await stack.enter_async_context(in_background(pubsub.receive()))

        def publish() -> None:
            here.publish_changes([7])
            for topic in ("settled", "direct"):
                here.publish(topic)

        async def is_withheld() -> bool:
            texts.clear()
            publish()
            await until(lambda: texts)
            return texts == ["direct"]

        await until(is_withheld)
        settled = there.listen_for("settled")

        def is_received() -> bool:
            there.want_changes()
            there.listen_for("settled")
            publish()
            return {7} in changed and settled.is_set()

        await until(is_received)
        await until(is_withheld)


async def test_stream_that_begins_looks_again_when_others_know_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub_module, "HEARD_WITHIN", 0)
    pubsub = PubSub("", database, Polling())
    changed: list[Collection[int] | None] = []
    pubsub.on_change(changed.append)
    pubsub.watch(7)
    pubsub.watch(8)
    await until(lambda: changed)
    assert changed == [None]
    await pubsub.close()


async def test_bus_reports_that_it_cannot_listen_for_notifications(database: Database, port: int) -> None:
    pubsub = PubSub(f"postgresql://tocsin@127.0.0.1:{port}/tocsin", database)
    receiving = asyncio.create_task(pubsub.receive())
    away = "messages of other processes are delayed: the database cannot be reached"
    await until(lambda: pubsub.problem)
    assert pubsub.problem == away
    receiving.cancel()


async def test_process_that_cannot_listen_sends_all_changes_and_final_states(
    url: str, database: Database, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "LIFETIME", 0)
    pubsub = PubSub(f"postgresql://tocsin@127.0.0.1:{port}/tocsin", database)
    words = set[str]()
    async with AsyncExitStack() as stack:
        listener = await connect(url)
        stack.push_async_callback(listener.close)
        channel = f"{schema_of(url)}_work"
        await listener.add_listener(channel, lambda *said: words.update(str(said[-1]).split()))
        await stack.enter_async_context(in_background(pubsub.receive()))
        await until(lambda: pubsub.problem)
        pubsub.publish_changes([7])
        pubsub.publish("settled")
        await until(lambda: words == {"@7", "settled"})
        await pubsub.close()


async def test_nats_disconnect_is_followed_by_reconnect(api: Api, port: int, tmp_path: Path) -> None:
    limits = tmp_path / "nats.conf"
    limits.write_text("max_subscriptions: 1")
    wires = [ByNats(Access(f"nats://127.0.0.1:{port}")) for _ in range(2)]
    here, there = (PubSub("", api.app_state.database, bus) for bus in wires)
    ears = asyncio.create_task(there.receive())
    try:
        async with nats(port, tmp_path, "-c", str(limits)):
            await receives(there, "direct", here)
            for bus in wires:
                client = bus._client  # noqa: SLF001 - to make the server report an error
                for _ in range(2):
                    await client.subscribe("elsewhere")
                await until(lambda client=client: client.is_closed)  # type: ignore[misc]
            await receives(there, "direct", here)
    finally:
        ears.cancel()
        await here.close()
        for bus in wires:
            await bus.close()


async def test_nats_outage_is_logged_once_with_its_reason(
    api: Api, port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wires = [ByNats(Access(f"nats://tocsin:secret@127.0.0.1:{port}")) for _ in range(2)]
    here, there = (PubSub("", api.app_state.database, bus) for bus in wires)
    users = tmp_path / "nats.conf"
    users.write_text('authorization { users = [{ user: "tocsin", password: "another" }] }')
    async with nats(port, tmp_path, "-c", str(users)) as process:
        ears = asyncio.create_task(there.receive())
        said = ""
        async with bounded():
            while "NATS connection failed; it will be retried" not in said:
                said += capsys.readouterr().out
                await asyncio.sleep(0.02)
        users.write_text('authorization { users = [{ user: "tocsin", password: "secret" }] }')
        process.send_signal(signal.SIGHUP)
        await receives(there, "direct", here)
        ears.cancel()
        await here.close()
        for bus in wires:
            await bus.close()
        assert "NATS disconnected" not in capsys.readouterr().out, "this side closed the connection"
    [line] = [line for line in said.splitlines() if "NATS connection failed; it will be retried" in line]
    assert "Authorization" in line
    assert "secret" not in line


async def test_messages_of_a_cell_wake_no_process_of_another_one(database: Database, port: int, tmp_path: Path) -> None:
    async with nats(port, tmp_path), AsyncExitStack() as stack:
        access = Access(f"nats://127.0.0.1:{port}")
        cells = {"main": "", "another": "", "north": "north", "beside": "north"}
        buses = {name: PubSub("", database, ByNats(access, cell)) for name, cell in cells.items()}
        changed: list[tuple[str, set[int]]] = []
        for name, bus in buses.items():
            stack.push_async_callback(bus.close)
            bus.on_change(lambda ids, name=name: changed.append((name, set(ids or ()))))  # type: ignore[misc]
            bus.watch(7)
            bus.watch(8)
            await stack.enter_async_context(in_background(bus.receive()))
        main, another, north, beside = buses.values()
        await receives(main, "direct", another)
        await receives(beside, "direct", north)
        for sender, receiver in ((another, main), (north, beside)):
            await wanted("changes", sender, receiver.want_changes)
        woken = main.listen_for("bulk")
        changed.clear()
        north.publish("bulk")
        for users in ([7], range(1000, 1200)):
            north.publish_changes(users)
            await until(lambda users=users: ("beside", set(users)) in changed)  # type: ignore[misc]
        another.publish_changes([8])
        await until(lambda: ("main", {8}) in changed)
        assert [users for name, users in changed if name == "main"] == [{8}]
        assert not woken.is_set()


async def test_many_changes_become_one_nats_message(api: Api, port: int, tmp_path: Path) -> None:
    async with nats(port, tmp_path):
        wires = [ByNats(Access(f"nats://127.0.0.1:{port}")) for _ in range(2)]
        here, there = (PubSub("", api.app_state.database, bus) for bus in wires)
        told: list[object] = []
        there.on_change(told.append)
        ears = asyncio.create_task(there.receive())
        await receives(there, "direct", here)
        here.publish_changes(range(1, 3000))
        here.publish_changes([5])
        await until(lambda: told)
        assert told == [None]
        here.publish_changes(range(1, 1500))
        await reaches(lambda: len({id_ for ids in told if isinstance(ids, set) for id_ in ids}), 1499)
        ears.cancel()
        for bus in wires:
            await bus.close()


async def test_readers_of_other_processes_are_notified_without_nats(
    api: Api, server: Embedded, catalogue: Catalogue, port: int
) -> None:
    await api.people(1, 2)
    more: dict[str, Any] = {"nats_url": f"nats://127.0.0.1:{port}"}
    async with (
        serving(url_for(server, "busy"), catalogue, with_worker=False, **more) as elsewhere,
        watching(elsewhere) as watch,
    ):
        id_ = await api.post(custom(1))
        [shown] = await watch.until_received("notification")
        assert shown["id"] == id_


def test_url_without_a_nats_server_is_rejected() -> None:
    for url in ("127.0.0.1:4222", "http://x:1", "nats://", "nats://a, b"):
        with pytest.raises(Refusal, match="TOCSIN_NATS_URL is not usable"):
            read_settings({"TOCSIN_NATS_URL": url}, Path("/nonexistent"))
    assert settings_for(nats_url="nats://a:1,tls://u:p@b:2").nats_url
