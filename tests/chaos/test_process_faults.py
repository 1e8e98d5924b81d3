"""Processes survive database errors, as one process and as separate servers and workers."""

import asyncio
import signal
from contextlib import AsyncExitStack
from datetime import timedelta

import httpx
import pytest

from tests.support.database import locked, make_database, waiting_at
from tests.support.processes import Program, data_folder
from tests.support.service import SECRET
from tests.support.waiting import bounded, until
from tocsin.auth.minting import mint_service
from tocsin.db.connections import connect
from tocsin.ids import new_id
from tocsin.postgres.supervisor import Embedded

HOUR = timedelta(hours=1)
EVENT = {"type": "custom", "notify": {"users": [1]}, "params": {"body": "Hello"}}


@pytest.mark.parametrize("apart", [False, True])
async def test_lock_timeout_and_killed_backends_end_no_process(server: Embedded, *, apart: bool) -> None:
    url = await make_database(server, name := f"careful_{new_id().hex}")
    dba, monitor = await connect(url), await connect(url)
    for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
        await dba.execute(f"alter role current_user in database {name} set {setting} = '100ms'")
    await dba.execute("insert into users values (1, 1, 'John', 'Doe', null, null, 'UTC')")
    await dba.execute("insert into heads (user_id, locale, active) values (1, 'en', true)")
    variables = {"TOCSIN_DATABASE_URL": url}
    headers = {"Authorization": f"Bearer {mint_service(SECRET, 'crm', ('events:write',), HOUR, None)}"}
    async with data_folder() as data, AsyncExitStack() as stack:
        arguments = ("serve", "--no-worker") if apart else ("serve",)
        serving = await stack.enter_async_context(Program(data, *arguments, variables=variables))
        programs = [serving]
        if apart:
            programs.append(await stack.enter_async_context(Program(data, "worker", variables=variables)))
        base = "http://{}:{}".format(*serving.address)
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=base, headers=headers, timeout=60))
        async with locked(dba, "inbox"):
            id_ = (await http.post("/events", json=EVENT)).json()["id"]
            [pid] = await until(lambda: waiting_at(monitor, "inbox"))
            await asyncio.sleep(0.3)  # three times the limit of the role
            assert await waiting_at(monitor, "inbox") == [pid]
            await monitor.execute("select pg_terminate_backend($1)", pid)
        assert (await http.get(f"/events/{id_}?wait=30")).json()["state"] == "delivered"
        others = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and pid <> all($2::int[])"
        ours = [connection.get_server_pid() for connection in (dba, monitor)]
        for _ in range(3):
            await monitor.execute(others, name, ours)
            answer = await until(lambda: _accepted(http))
            assert (await http.get(f"/events/{answer}?wait=30")).json()["state"] == "delivered"
        assert all(program.alive for program in programs)
        assert not any("Traceback" in program.log() for program in programs)
    await dba.close()
    await monitor.close()


async def _accepted(http: httpx.AsyncClient) -> str | None:
    answer = await http.post("/events", json=EVENT)
    return answer.json()["id"] if answer.status_code == 202 else None


@pytest.mark.parametrize("command", ["serve", "worker"])
async def test_sigterm_ends_a_start_that_waits_for_the_database(command: str) -> None:
    called = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as silent, data_folder() as data:
        port = silent.sockets[0].getsockname()[1]
        url = f"postgresql://tocsin@127.0.0.1:{port}/tocsin?sslmode=disable"
        program = Program(data, command, variables={"TOCSIN_DATABASE_URL": url})
        starting = asyncio.create_task(program.start())
        try:
            async with bounded():
                await called.wait()
            program.signal(signal.SIGTERM)
            async with bounded():  # it would wait for the database for 60 s
                with pytest.raises(AssertionError):
                    await starting
            assert not program.alive
        finally:
            await program.kill()
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
