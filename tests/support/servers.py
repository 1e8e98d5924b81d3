"""Servers as operators run them: PostgreSQL with roles, PgBouncer, NATS."""

import asyncio
import contextlib
import functools
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from tests.support.places import short_path
from tocsin.postgres.binaries import programs_for
from tocsin.postgres.process import end, memory, spawn

LONGEST_START = 90.0
PASSWORD = "geheim"

PORTS = 1000
"""Ports of each worker of a run."""


@dataclass
class OwnServer:
    """A server with the superuser `dba` and password authentication over TCP."""

    port: int
    folder: Path
    user: pwd.struct_passwd
    command: tuple[str | Path, ...]
    output: int
    process: subprocess.Popen[bytes] = field(init=False)

    async def start(self) -> None:
        """Start it, again if it was killed, and wait until it answers."""
        self.process = spawn(self.command, self.user, self.output)
        await answers(self.url())

    def kill(self) -> None:
        """End it at once, as if its machine were lost."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()

    def url(self, role: str = "dba", database: str = "postgres", password: str = PASSWORD, **more: Any) -> str:
        query = "&".join(f"{name}={value}" for name, value in more.items())
        return f"postgresql://{role}:{password}@127.0.0.1:{self.port}/{database}" + (f"?{query}" if query else "")

    async def run(self, *statements: str, database: str = "postgres") -> None:
        """Run statements as the superuser."""
        connection = await asyncpg.connect(self.url(database=database))
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    async def fresh(self, name: str, *statements: str, owner: str = "dba") -> str:
        """Recreate a database, run statements in it, and return its name."""
        await self.run(f"drop database if exists {name} with (force)", f"create database {name} owner {owner}")
        await self.run(*statements, database=name)
        return name

    async def role(self, name: str, *statements: str) -> str:
        """Recreate a role."""
        await self.run(
            f"do $$ begin if not exists (select from pg_roles where rolname = '{name}') then"
            f" create role {name} login password 'geheim'; end if; end $$",
            *statements,
        )
        return name


@asynccontextmanager
async def own_server(**settings: str) -> AsyncIterator[OwnServer]:
    """Run a server for as long as the block runs."""
    user = pwd.getpwuid(os.geteuid()) if os.geteuid() else _unprivileged_user()
    with short_path() as folder:
        os.chown(folder, user.pw_uid, user.pw_gid)
        programs = await programs_for(user, folder)
        (folder / "password").write_text("geheim")
        (folder / "password").chmod(0o644)
        initdb = (programs / "initdb", "-D", folder / "data", "-U", "dba", "-E", "UTF8", "--locale", "C")
        with memory() as output:
            made = spawn((*initdb, "-A", "scram-sha-256", "--pwfile", folder / "password"), user, output)
            assert await asyncio.to_thread(made.wait, LONGEST_START) == 0
            async with _serving(programs, folder, user, output, {"fsync": "off", **settings}) as server:
                yield server


@asynccontextmanager
async def standby_of(primary: OwnServer) -> AsyncIterator[OwnServer]:
    """Run a standby that follows a server."""
    with short_path() as folder, memory() as output:
        user = primary.user
        os.chown(folder, user.pw_uid, user.pw_gid)
        programs = await programs_for(user, folder)
        copying = (programs / "pg_basebackup", "-D", folder / "data", "-R", "-c", "fast", "-d", primary.url())
        assert await asyncio.to_thread(spawn(copying, user, output).wait, LONGEST_START) == 0
        async with _serving(programs, folder, user, output, {}) as server:
            yield server


@asynccontextmanager
async def _serving(
    programs: Path, folder: Path, user: pwd.struct_passwd, output: int, settings: Mapping[str, str]
) -> AsyncIterator[OwnServer]:
    """Run a server on the data in a folder, on a free port, with further settings."""
    port = free_port()
    given = {
        "port": str(port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(folder),
        **settings,
    }
    options = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
    server = OwnServer(port, folder, user, (programs / "postgres", "-D", folder / "data", *options), output)
    try:
        await server.start()
        yield server
    finally:
        await end(server.process)


@asynccontextmanager
async def pgbouncer(server: OwnServer, pool_mode: str, size: int = 20) -> AsyncIterator[int]:
    """Run PgBouncer before the server, as its package brings it but for mode and size, and yield its port."""
    with short_path() as folder:
        port = free_port()
        os.chown(folder, server.user.pw_uid, server.user.pw_gid)
        (folder / "users.txt").write_text("".join(f'"{role}" "geheim"\n' for role in ("dba", "app")))
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\npool_mode = {pool_mode}\n"
            f"auth_type = scram-sha-256\nauth_file = {folder}/users.txt\nlogfile = {folder}/log\n"
            f"default_pool_size = {size}\n"
        )
        with memory() as output:
            process = spawn((shutil.which("pgbouncer") or "", folder / "pgbouncer.ini"), server.user, output)
            try:
                await listens(port, process)
                yield port
            finally:
                process.kill()
                process.wait()


@functools.cache
def _ports() -> Iterator[int]:
    """The ports of this worker, in an order of its own, again and again."""
    worker = int("".join(filter(str.isdigit, os.environ.get("PYTEST_XDIST_WORKER", "0"))))
    ports = range(20_000 + PORTS * (worker % 12), 20_000 + PORTS * (worker % 12 + 1))
    return itertools.cycle(random.SystemRandom().sample(ports, PORTS))


def free_port() -> int:
    """Return a port of the loopback that is free.

    It is below the ephemeral ports of the kernel, and each worker of a run has a range of its own, so that no other
    program takes it before its server starts. A thousand calls return different ports.
    """
    for port in itertools.islice(_ports(), PORTS):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


async def answers(url: str) -> None:
    async with asyncio.timeout(LONGEST_START):
        while True:
            try:
                return await (await asyncpg.connect(url)).close()
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
                await asyncio.sleep(0.05)


async def listens(port: int, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(LONGEST_START):
        while True:
            assert process.poll() is None
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


def _unprivileged_user() -> pwd.struct_passwd:
    """Return a user that is not root, for PostgreSQL and PgBouncer."""
    return pwd.getpwnam("nobody")


@asynccontextmanager
async def nats(port: int, folder: Path, *more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A NATS server on the loopback."""
    binary = Path(sys.executable).with_name("nats-server")
    assert shutil.which(binary)
    process = await asyncio.create_subprocess_exec(
        binary, "-a", "127.0.0.1", "-p", str(port), "-l", str(folder / "nats.log"), *more
    )
    try:
        async with asyncio.timeout(LONGEST_START):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
