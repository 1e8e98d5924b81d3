"""Two PostgreSQL servers under Patroni, with etcd, as Debian brings them."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import yaml  # type: ignore[import-untyped]

from tests.support.places import short_path
from tests.support.servers import PASSWORD, free_port, listens
from tests.support.waiting import until
from tocsin.db.errors import DRIVER_ERRORS
from tocsin.postgres.process import end, memory, spawn

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
"""The servers of Debian's packages: Patroni needs programs that the wheel of PostgreSQL does not have."""

IS_INSTALLED = all(map(shutil.which, ("patroni", "etcd"))) and bool(SERVERS)

TTL = 20
"""Seconds without the primary until another server takes over; the least that Patroni accepts."""


@dataclass(frozen=True)
class Member:
    """A server under Patroni."""

    port: int
    data: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"postgresql://dba:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def kill(self) -> None:
        """End Patroni and its server at once, as if their machine were lost."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.data / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)

    async def asked(self, statement: str) -> Any:
        """Return what a statement finds; None if the server cannot be reached."""
        try:
            connection = await asyncpg.connect(self.url, timeout=5)
        except DRIVER_ERRORS:
            return None
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()


@dataclass(frozen=True)
class Members:
    """Two servers, one of which is the primary."""

    members: Sequence[Member]

    def url(self, database: str) -> str:
        """Return the url that leads to the primary, whichever it is."""
        hosts = ",".join(f"127.0.0.1:{member.port}" for member in self.members)
        return f"postgresql://dba:{PASSWORD}@{hosts}/{database}?target_session_attrs=primary"

    async def primary(self) -> Member | None:
        """Return the server that accepts writes."""
        for member in self.members:
            if await member.asked("select pg_is_in_recovery()") is False:
                return member
        return None

    async def is_synchronous(self) -> bool:
        """Return whether the primary waits for the other one."""
        primary = await self.primary()
        return bool(
            primary and await primary.asked("select count(*) from pg_stat_replication where sync_state = 'sync'")
        )


@asynccontextmanager
async def patroni() -> AsyncIterator[Members]:
    """Run two servers, the second a synchronous standby of the first."""
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(short_path())
        os.chown(folder, user.pw_uid, user.pw_gid)
        output = stack.enter_context(memory())
        etcd, peers = free_port(), f"http://127.0.0.1:{free_port()}"
        clients = f"http://127.0.0.1:{etcd}"
        options = {
            "data-dir": folder / "etcd",
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"default={peers}",
        }
        command = [shutil.which("etcd") or "", *(f"--{name}={value}" for name, value in options.items())]
        store = spawn(command, user, output)
        stack.push_async_callback(end, store)
        await listens(etcd, store)
        members = []
        for name in ("one", "two"):
            member = await stack.enter_async_context(_member(name, folder, etcd, user, output))
            members.append(member)
            await until(partial(member.asked, "select true"))
        running = Members(members)
        await until(running.is_synchronous)
        yield running


@asynccontextmanager
async def _member(name: str, folder: Path, etcd: int, user: pwd.struct_passwd, output: int) -> AsyncIterator[Member]:
    port, api, data = free_port(), free_port(), folder / name
    settings = {
        "scope": "tocsin",
        "name": name,
        "restapi": {"listen": f"127.0.0.1:{api}", "connect_address": f"127.0.0.1:{api}"},
        "etcd3": {"host": f"127.0.0.1:{etcd}"},
        "bootstrap": {
            "dcs": {"ttl": TTL, "loop_wait": 2, "retry_timeout": 3, "synchronous_mode": True},
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}],
        },
        "postgresql": {
            "listen": f"127.0.0.1:{port}",
            "connect_address": f"127.0.0.1:{port}",
            "data_dir": str(data),
            "bin_dir": str(SERVERS[-1].parent),
            "pgpass": str(folder / f"{name}.pgpass"),
            "authentication": {
                "superuser": {"username": "dba", "password": PASSWORD},
                "replication": {"username": "replicator", "password": PASSWORD},
            },
            "parameters": {"unix_socket_directories": str(folder)},
            "pg_hba": [
                "local all all trust",
                "host all all 127.0.0.1/32 scram-sha-256",
                "host replication all 127.0.0.1/32 scram-sha-256",
            ],
        },
    }
    (folder / f"{name}.yml").write_text(yaml.safe_dump(settings))
    process = spawn((shutil.which("patroni") or "", folder / f"{name}.yml"), user, output)
    member = Member(port, data, process)
    try:
        yield member
    finally:
        await end(process)
        member.kill()
