"""The program as an operator starts it: processes that tests kill and that end with the test."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.places import short_path
from tests.support.service import SECRET
from tests.support.waiting import bounded, until
from tocsin.db.connections import connect
from tocsin.postgres.supervisor import url_of

TOCSIN = Path(sys.executable).with_name("tocsin")
LONGEST_START = 120.0

_number = itertools.count(1)


class Program:
    """`tocsin serve` or `tocsin worker` on the data folder `data`, which may be started again and again."""

    def __init__(
        self,
        data: Path,
        *arguments: str,
        variables: Mapping[str, str] | None = None,
        command: Sequence[str | Path] = (TOCSIN,),
    ) -> None:
        self.data = data
        self._command = command
        self._variables = dict(variables or {})
        self._arguments = arguments
        self._logs: list[Path] = []
        self._process: asyncio.subprocess.Process | None = None
        self.greeting: dict[str, Any] = {}

    @property
    def address(self) -> tuple[str, int]:
        """The address on which it listens or last listened."""
        parts = urlsplit(self.greeting["url"])
        return str(parts.hostname), int(parts.port or 0)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The status with which it ended; None while it runs."""
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Wait until it serves or works."""
        self._logs.append(self.data.parent / f"{next(_number)}.log")
        self._process = await _spawn((*self._command, *self._arguments), self.data, self._logs[-1], self._variables)
        async with asyncio.timeout(LONGEST_START):
            while not (greeted := _greeting(self._logs[-1])):
                assert self.alive, self.complaints()
                await asyncio.sleep(0.01)
        self.greeting = greeted

    async def output(self) -> str:
        """Run it to its end; return what it printed."""
        log = self.data.parent / f"{next(_number)}.log"
        self._process = await _spawn((*self._command, *self._arguments), self.data, log, self._variables)
        await self.ended()
        return _read(log)

    async def kill(self) -> None:
        """Send SIGKILL if it runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def stop(self) -> None:
        """Send SIGTERM, and wait until it has ended."""
        self.signal(signal.SIGTERM)
        await self.ended()

    async def ended(self) -> None:
        """Wait until it has ended."""
        assert self._process
        async with bounded():
            await self._process.wait()

    async def ends(self, seconds: float) -> bool:
        """Return whether it ends within this time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.ended()
        return not self.alive

    def change(self, **variables: str | None) -> None:
        """Set or remove variables of its next starts."""
        for name, value in variables.items():
            self._variables.pop(name, None)
            if value is not None:
                self._variables[name] = value

    def signal(self, kind: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process
        self._process.send_signal(kind)

    def log(self) -> str:
        """Its whole log."""
        return "".join(map(_read, self._logs))

    def complaints(self) -> list[str]:
        """Its log since the first start without the usual lines."""
        return [line for log in self._logs for line in _read(log).splitlines() if '"level": "info"' not in line]

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._process is not None:
            sys.stdout.write("\n".join(["tocsin", *self._arguments, *self.complaints()[-30:], ""]))
        if "COVERAGE_PROCESS_CONFIG" in os.environ and self.alive:  # it writes what it ran when it ends by itself
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            await self.ends(30)
        await self.kill()


def children_of(service: Program) -> list[int]:
    """The processes that serve, in the order of their start."""
    listed = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text("ascii").split()
    return sorted(pid for pid in map(int, listed) if b"--sibling" in _command_of(pid))


def _command_of(pid: int) -> bytes:
    """The command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@asynccontextmanager
async def data_folder() -> AsyncIterator[Path]:
    """Yield a short path that the server's user can enter; at the end its processes are stopped and it is deleted."""
    with short_path() as place:
        try:
            yield place / "data"
        finally:
            for served in (place / "data", place / "data" / "demo"):
                await end_postgres(served)


def postgres_of(data: Path) -> list[int]:
    """The ids of all PostgreSQL processes that run in a data folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == data / "postgres":
                found.append(int(process.name))
    return sorted(found)


async def end_postgres(data: Path) -> None:
    """End the server at once, but let it remove its shared memory: nothing starts again in a folder that is deleted."""
    with contextlib.suppress(OSError, TimeoutError):
        postmaster = int((data / "postgres/postmaster.pid").read_text("ascii").split()[0])
        if postmaster in postgres_of(data):
            send(signal.SIGQUIT, {postmaster})
            await until(lambda: not postgres_of(data), 10)
    await kill_postgres(data)


async def kill_postgres(data: Path) -> None:
    """Kill -9 every process of the server, and return when they are gone."""
    dying = set(postgres_of(data))
    send(signal.SIGKILL, dying)
    await until(lambda: not dying & set(postgres_of(data)))


def send(kind: signal.Signals, processes: set[int]) -> None:
    """Send a signal to those that still run."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, kind)


def random_source() -> random.Random:
    """Return a random generator; its seed is printed and can be set with SEED."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    sys.stdout.write(f"SEED={seed}\n")
    return random.Random(seed)  # noqa: S311 - moments and recipients, no secrets


async def _spawn(
    command: Sequence[str | Path], data: Path, log: Path, variables: Mapping[str, str]
) -> asyncio.subprocess.Process:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
    ours = {"DATA_DIR": str(data), "PORT": "0", "JWT_SECRET": SECRET, "LOG_FORMAT": "json"}
    with log.open("w") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=data.parent,
            env={**inherited, **{f"TOCSIN_{name}": value for name, value in ours.items()}, **variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _greeting(log: Path) -> dict[str, Any]:
    for line in _read(log).splitlines():
        if '"event": "serving"' in line or '"event": "worker started"' in line:
            said: dict[str, Any] = json.loads(line)
            return said
    return {}


def _read(log: Path) -> str:
    return log.read_text("utf-8")


async def holds_a_lease(data: Path, worker: Program) -> None:
    """Wait until a worker has work in hand."""
    connection = await connect(url_of(data))
    statement = "select exists (select from jobs where worker_id = $1::uuid)"
    async with bounded():
        while not await connection.fetchval(statement, worker.greeting["worker"]):
            await asyncio.sleep(0)
    await connection.close()
