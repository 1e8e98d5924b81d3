"""The operations port: metrics and operator endpoints on a separate port."""

import asyncio
import contextlib
import signal
import socket
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.support.processes import Program, data_folder
from tests.support.servers import free_port
from tests.support.service import HOUR, SECRET
from tests.support.waiting import LONGEST_WAIT, bounded, until
from tocsin.auth.minting import mint_service

pytestmark = pytest.mark.processes


async def test_operations_port_serves_metrics_of_every_process() -> None:
    ports = free_port(), free_port()
    service_port, worker_port = ({"TOCSIN_OPERATIONS_PORT": str(port)} for port in ports)
    async with (
        data_folder() as data,
        Program(data, "serve", variables=service_port) as service,
        Program(data, "worker", variables=worker_port),
        httpx.AsyncClient(timeout=LONGEST_WAIT) as http,
    ):
        host, port = service.address
        main, own, worker = (f"http://{host}:{each}" for each in (port, *ports))
        token = {"Authorization": f"Bearer {mint_service(SECRET, 'ops', ['operations'], HOUR)}"}
        for url in (own, worker):
            answer = await http.get(f"{url}/metrics")
            assert (answer.status_code, "tocsin_jobs_due" in answer.text) == (200, True)
            assert (await http.get(f"{url}/healthz")).status_code == 200
            assert (await http.get(f"{url}/readyz")).json()["status"] == "ready"
            for path in ("/notifications", "/directory/users", "/events", "/openapi.json"):
                found = await http.get(url + path)
                assert (found.status_code, found.json()["errors"][0]["code"]) == (404, "not_found")
        assert (await http.get(f"{main}/metrics", headers=token)).status_code == 404
        assert (await http.get(f"{main}/healthz")).status_code == 200
        assert (await http.get(f"{own}/operations/lanes")).status_code == 401
        assert (await http.delete(f"{own}/events/{uuid4()}")).status_code == 401
        for url in (main, own):
            assert (await http.delete(f"{url}/events/{uuid4()}", headers=token)).status_code == 404
            assert (await http.get(f"{url}/operations/lanes", headers=token)).status_code == 200
        assert (await http.get(f"{worker}/operations/lanes", headers=token)).status_code == 404
        for path in ("/console", "/console/console.js"):
            statuses = [(await http.get(url + path)).status_code for url in (own, main, worker)]
            assert statuses == [200, 404, 404], path
        await service.kill()


async def test_operations_port_answers_while_the_main_accept_queue_is_full() -> None:
    port = free_port()
    async with (
        data_folder() as data,
        Program(data, "serve", variables={"TOCSIN_OPERATIONS_PORT": str(port)}) as service,
    ):
        with contextlib.ExitStack() as stack:
            service.signal(signal.SIGSTOP)  # as if it were busy
            before = overflows()
            for _ in range(QUEUE):
                knocking = stack.enter_context(socket.socket())
                knocking.setblocking(False)  # noqa: FBT003 - the name of the method says it
                knocking.connect_ex(service.address)
            await until(lambda: overflows() > before)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http, bounded():
                answers = [asyncio.create_task(http.get(path)) for path in ("/healthz", "/readyz", "/metrics")]
                await asyncio.sleep(0)
                service.signal(signal.SIGCONT)
                assert [answer.status_code for answer in await asyncio.gather(*answers)] == [200] * 3


QUEUE = 5_000
"""Connections that no accept queue has room for: the kernel bounds it by `net.core.somaxconn`, 4,096 by default."""


def overflows() -> int:
    """Return how often a connection found an accept queue full, in this network."""
    names, values = (
        line.split() for line in Path("/proc/net/netstat").read_text().splitlines() if line.startswith("TcpExt:")
    )
    return int(dict(zip(names, values, strict=True))["ListenOverflows"])
