"""NATS that is stopped, hangs or cannot be reached: a lost message costs time, and nothing else."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.chaos import ChaosRun, scenario
from tests.support.clusters import embedded_cluster
from tests.support.disks import run as command
from tests.support.servers import free_port, nats
from tocsin.nats_bus import AWAY

HOST, GUEST = "10.231.77.1", "10.231.77.2"
"""The addresses of both ends of a virtual cable on this machine."""


@scenario("nats-stopped", "NATS killed and started again", long=True)
async def test_accepted_events_are_delivered_without_nats(run: ChaosRun, port: int, tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(nats(port, tmp_path))
        async with embedded_cluster(run, {"TOCSIN_NATS_URL": f"nats://127.0.0.1:{port}"}) as cluster:
            async for _ in run.rounds(1):
                async with run.failure():
                    server.kill()
                    await server.wait()
                    await cluster.shows(AWAY)
                    server = await stack.enter_async_context(nats(port, tmp_path))


@scenario("nats-paused", "NATS hangs")
async def test_accepted_events_are_delivered_while_nats_hangs(run: ChaosRun, port: int, tmp_path: Path) -> None:
    variables = {"TOCSIN_NATS_URL": f"nats://127.0.0.1:{port}"}
    async with nats(port, tmp_path) as server, embedded_cluster(run, variables) as cluster:
        async for _ in run.rounds(1):
            async with run.failure():
                server.send_signal(signal.SIGSTOP)
                try:
                    await cluster.shows(AWAY)
                finally:
                    server.send_signal(signal.SIGCONT)


@scenario("nats-partition", "network to NATS cut", long=True)
async def test_accepted_events_are_delivered_while_the_network_to_nats_is_cut(run: ChaosRun, tmp_path: Path) -> None:
    async with (
        network() as (name, cable),
        nats_in(name, tmp_path) as url,
        embedded_cluster(run, {"TOCSIN_NATS_URL": url}) as cluster,
    ):
        async for _ in run.rounds(1):
            async with run.failure():
                await command("ip", "link", "set", cable, "down")
                await cluster.shows(AWAY)
                await command("ip", "link", "set", cable, "up")


@asynccontextmanager
async def network() -> AsyncIterator[tuple[str, str]]:
    """Make a network of its own on this machine; yield its name, and that of the cable that leads there."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("to make a network takes root and ip")
    name = f"tocsin{os.getpid()}"
    cable, inner = f"to{os.getpid()}", f"ti{os.getpid()}"
    await command("ip", "netns", "add", name)
    try:
        await command("ip", "link", "add", cable, "type", "veth", "peer", "name", inner, "netns", name)
        await command("ip", "address", "add", f"{HOST}/30", "dev", cable)
        await command("ip", "link", "set", cable, "up")
        await command("ip", "-n", name, "address", "add", f"{GUEST}/30", "dev", inner)
        await command("ip", "-n", name, "link", "set", inner, "up")
        yield name, cable
    finally:
        await command("ip", "netns", "del", name)


@asynccontextmanager
async def nats_in(network: str, folder: Path) -> AsyncIterator[str]:
    """Run a NATS server in a network; yield its url."""
    binary, port = Path(sys.executable).with_name("nats-server"), free_port()
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", network, binary, "-a", GUEST, "-p", str(port), "-l", str(folder / "nats.log"))
    )
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(GUEST, port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        yield f"nats://{GUEST}:{port}"
    finally:
        process.kill()
        await process.wait()
