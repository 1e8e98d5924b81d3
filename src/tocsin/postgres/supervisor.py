"""The supervisor of the embedded PostgreSQL 18, a child process: never started twice, and never left running."""

import asyncio
import contextlib
import os
import pwd
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import asyncpg
import structlog

from tocsin.errors import Refusal
from tocsin.postgres.archive import Archive
from tocsin.postgres.binaries import installed, make_database, programs_for
from tocsin.postgres.data_dir import (
    NAME,
    PORT,
    claim,
    is_served,
    log_since,
    prune_logs,
    refuse_unfinished,
    remove_stale_files,
    unused,
    write_configuration,
)
from tocsin.postgres.process import end, end_leftovers, has_ended, last_words, read_end, spawn

__all__ = ["Embedded", "is_served", "launch", "url_of"]

MIN_DELAY, MAX_DELAY, STEADY = 0.1, 5.0, 60.0
"""Seconds before a server that exited is restarted: doubled each time, and reset after it ran for `STEADY` seconds."""

PRUNE_INTERVAL = 3600.0
"""Seconds between two removals of old logs."""

WARNING_INTERVAL = 10.0
"""Seconds between two warnings about a server that does not answer yet."""

UNWRITABLE = (PermissionError, NotADirectoryError, FileExistsError, FileNotFoundError)
"""The errors of a data folder that cannot be created or written."""

MISPLACED = (NotADirectoryError, FileExistsError, IsADirectoryError)
"""The errors of a file in place of a folder, or the reverse."""

DAMAGED = re.compile(
    r"could not locate (?:a valid|required) checkpoint|could not find the database system|incompatible with server"
    r"|incorrect checksum in control file|could not read file \S+pg_control|required WAL directory"
    r"|invalid (?:primary |checkpoint )?checkpoint record|could not access (?:the )?status of transaction"
    r"|references to invalid pages|could not open (?:file|directory) \S+: No such file or directory"
    rf'|database "{NAME}" does not exist'
)
"""What PostgreSQL says at its start if files of the database are lost or damaged."""

_NOT_YET = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
)
"""The errors of a server that is starting or stopping."""

CONNECTIONS = 100
"""Maximum connections by `configuration/postgresql.conf`."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Launched:
    """A server that was started, and its output until it answers."""

    process: subprocess.Popen[bytes]
    folder: Path
    url: str
    output: int
    began: float

    async def answers(self, while_starting: Callable[[], object] | None = None) -> None:
        """Call `while_starting`, and wait until it answers queries. Raises `Refusal` if it exits."""
        try:
            if while_starting:
                while_starting()
            if not await _answered(self.process, self.url):
                words = last_words(log_since(self.folder, self.began), read_end(self.output))
                raise Refusal(f"The embedded PostgreSQL ended with status {self.process.returncode}: {words}.")
        finally:
            os.close(self.output)


class Embedded:
    """PostgreSQL 18 as a child process, with its data in `data_dir` and copies of its log in `archive`.

    If more than the `CONNECTIONS` of its configuration are needed, it has so many `connections`. `while_starting`
    is called while the server starts. At the end of the block, one that is `shared` waits for other commands that use
    it, unless the block is cancelled.

    On Linux it ends with the thread that starts it, which must therefore be the main thread.
    """

    def __init__(
        self,
        data_dir: Path,
        archive: Archive | None = None,
        connections: int = 0,
        while_starting: Callable[[], object] | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self._folder = data_dir.resolve()
        self._archive = archive
        self._while_starting = while_starting
        self._options = (f"max_connections={connections}",) if connections > CONNECTIONS else ()
        self._user: pwd.struct_passwd
        self._programs: Path
        self._shared = shared
        self._locks: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The url of the database, for asyncpg and libpq."""
        return url_of(self._folder)

    @property
    def binaries(self) -> Path:
        """The folder whose `bin` has psql, pgbench and pg_dump. Raises `Refusal` if the wheel is missing."""
        return installed()

    @property
    def postmaster(self) -> int | None:
        """The process id of the server, while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    async def start(self) -> None:
        """Start the server and wait until it answers queries. Crash recovery can take long, so there is no timeout.

        Raises `Refusal` if it cannot be started, and `RuntimeError` outside of the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("The server ends with the thread that starts it: start it from the main thread.")
        with _refusing(self._folder):
            self._user, lock = await claim(self._folder)
            self._locks = [lock]
            try:
                await self._prepare()
                await self._launch()
                prune_logs(self._folder)
            except BaseException:
                await self.stop()
                raise
        self._watch = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """End the server cleanly, and unlock the folder."""
        try:
            if self._watch:
                self._watch.cancel()
                await asyncio.gather(self._watch, return_exceptions=True)
            if self._process:
                await end(self._process)
        finally:
            self._watch = self._process = None
            while self._locks:
                os.close(self._locks.pop(0))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._shared and (error is None or isinstance(error, Exception)):
                self._locks.append(await unused(self._folder))
        finally:
            await self.stop()

    async def _prepare(self) -> None:
        refuse_unfinished(self._folder)
        self._programs = await programs_for(self._user, self._folder)
        if self._archive:
            await self._archive.prepare(self._user)
        if not (self._folder / "postgres").exists():
            log.info("creating the database; this takes some seconds", folder=str(self._folder))
            await make_database(self._programs, self._folder, self._user)
        write_configuration(self._folder, self._user, self._archive)

    async def _launch(self) -> None:
        launched = await launch(self._programs, self._folder, self._folder / "postgres", self._user, *self._options)
        self._process = launched.process
        try:
            await launched.answers(self._while_starting)
        except Refusal as refusal:
            if not DAMAGED.search(str(refusal)):
                raise
            database = self._folder / "postgres"
            raise Refusal(f"{refusal} Move {database} away, and restore a backup by `tocsin restore`.") from None

    async def _supervise(self) -> None:
        """Restart the server until `stop`, after any error."""
        while self._process:
            try:
                await self._restart()
            except Exception:
                log.exception("embedded PostgreSQL supervisor failed; it continues")
                await asyncio.sleep(MAX_DELAY)

    async def _restart(self) -> None:
        delay = MIN_DELAY
        while self._process:
            began = time.monotonic()
            while not await has_ended(self._process, PRUNE_INTERVAL):
                prune_logs(self._folder)
            if time.monotonic() - began > STEADY:
                delay = MIN_DELAY
            log.error("embedded PostgreSQL exited; restarting it", status=self._process.returncode)
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_DELAY)
            try:
                await self._launch()
            except (Refusal, OSError, subprocess.SubprocessError) as error:
                log.error("embedded PostgreSQL failed to restart", reason=str(error))  # noqa: TRY400 - the reason is enough


def url_of(data_dir: Path, port: int = PORT) -> str:
    """Return the url of the server of a data folder, whether or not it runs."""
    return f"postgresql:///{NAME}?host={quote(str(data_dir.resolve() / 'run'), safe='')}&port={port}&user={NAME}"


async def launch(
    programs: Path, folder: Path, database: Path, user: pwd.struct_passwd, *options: str, port: int = PORT
) -> Launched:
    """Start the server of a database in a data folder; it may not answer yet.

    It removes by itself what a killed server of this folder left in shared memory.
    """
    began = time.time()
    await end_leftovers(database)
    remove_stale_files(folder, database, port)
    settings = [part for option in (f"port={port}", *options) for part in ("-c", option)]
    output = os.memfd_create("tocsin")
    try:
        process = spawn((programs / "postgres", "-D", database, *settings), user, output)
    except BaseException:
        os.close(output)
        raise
    return Launched(process, folder, url_of(folder, port), output, began)


async def _answered(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until the server answers; return False if it exits."""
    began, warnings = time.monotonic(), 1
    while process.poll() is None:
        if await _answers(url):
            return True
        waited = time.monotonic() - began
        if waited > WARNING_INTERVAL * warnings:
            warnings += 1
            log.warning("waiting for the embedded PostgreSQL; it may be recovering", seconds=round(waited))
        await asyncio.sleep(min(0.5, 0.01 + waited / 20))
    return False


@contextlib.contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        said = f"The embedded PostgreSQL cannot be started in {folder}: {getattr(error, 'strerror', None) or error}"
        misplaced = error.filename if isinstance(error, MISPLACED) else None
        hint = "; set TOCSIN_DATA_DIR to a folder that can be written" if isinstance(error, UNWRITABLE) else ""
        if misplaced and Path(misplaced).parent == folder:
            hint = f"; move {misplaced} away"
        raise Refusal(f"{said}{hint}.") from error


async def _answers(url: str) -> bool:
    try:
        connection = await asyncpg.connect(url, timeout=5, command_timeout=5)
        try:
            await connection.fetchval("select 1")
            await connection.close(timeout=5)
        finally:
            connection.terminate()
    except _NOT_YET:
        return False
    except asyncpg.PostgresError as error:
        said = " ".join(str(error).split("\n")).rstrip(".")
        raise Refusal(f"The embedded PostgreSQL does not accept connections: {said}.") from error
    return True
