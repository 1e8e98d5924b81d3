"""Graceful shutdown."""

import asyncio
import signal

import httpx
import pytest

from tests.support.processes import Program, data_folder
from tests.support.service import HOUR, SECRET
from tests.support.waiting import bounded, until
from tocsin.auth.minting import mint_service


@pytest.mark.processes
async def test_graceful_shutdown_loses_nothing_and_is_bounded() -> None:
    async with data_folder() as data, Program(data, "serve") as program:
        host, port = program.address
        token = mint_service(SECRET, "crm", ["events:write", "directory:write"], HOUR)
        by = {"Authorization": f"Bearer {token}"}
        event = {"type": "custom", "data": {"user": 1}, "params": {"body": "x"}, "notify": {"users": [1]}}
        limits = httpx.Limits(max_connections=60)
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=by, limits=limits, timeout=20) as http:
            person = {"first_name": "A", "last_name": "B"}
            assert (await http.put("/directory/users/1", json=person)).status_code == 204
            _, half = await asyncio.open_connection(host, port)
            half.write(b"POST /events HTTP/1.1\r\nHo")
            reader, hanging = await asyncio.open_connection(host, port)
            head = f"POST /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            hanging.write(f"{head}Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{{".encode())
            idle_reader, idle = await asyncio.open_connection(host, port)
            idle.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            await idle_reader.readuntil(b'{"status":"ok"}')
            posts = [asyncio.create_task(http.post("/events", json=event)) for _ in range(50)]
            await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
            process = program._process  # noqa: SLF001 - its helper only kills
            assert process is not None
            process.send_signal(signal.SIGTERM)
            async with bounded():
                assert await idle_reader.read() == b""
                refusal = await reader.read()
                await process.wait()
            assert refusal.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after" in refusal
            answers = await asyncio.gather(*posts, return_exceptions=True)
        # A request that was not accepted was rejected as a whole and never reached the service.
        accepted = {answer.json()["id"] for answer in answers if isinstance(answer, httpx.Response)}
        assert accepted
        assert {type(answer) for answer in answers} <= {httpx.Response, httpx.ConnectError, httpx.ReadError}
        assert not [line for line in program.complaints() if "Traceback" in line]
        await program.start()
        host, port = program.address
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=by, timeout=20) as http:
            for id_ in accepted:
                assert (await http.get(f"/events/{id_}?wait=30")).json()["state"] == "delivered"
        for writer in (half, hanging, idle):
            writer.close()
        await until(lambda: program.alive, 1)
