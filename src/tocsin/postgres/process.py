"""The programs of PostgreSQL as our children: run as the server's user, never outliving us, ended with patience."""

import asyncio
import contextlib
import ctypes
import os
import pwd
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog

from tocsin.errors import Refusal

STOP_SIGNALS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))
"""How a server is asked to end (fast, at once, by force) and the seconds that each way is given."""

SHARED_MEMORY = "give the container more of /dev/shm, such as --shm-size 256m"
"""What to do where PostgreSQL gets no shared memory, which it tells like a full disk."""

_ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_READ_BYTES = 1 << 16
_COMPLAINT = re.compile(r"\b(?:FATAL|PANIC|ERROR|DETAIL|error): +(?!the database system is starting up).*")

log = structlog.get_logger(__name__)


async def run(command: Sequence[str | Path], user: pwd.struct_passwd, words: bytes = b"") -> tuple[int, str]:
    """Run a program as the server's user, who gets `words` to read, and return its status and output."""
    with memory(words) as given, memory() as output:
        process = spawn(command, user, output, given)
        try:
            await has_ended(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return process.returncode, read_end(output)


def spawn(
    command: Sequence[str | Path], user: pwd.struct_passwd, output: int, given: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a program that dies with us: in a session of its own, so that a Ctrl+C reaches us alone."""
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        groups = os.getgrouplist(user.pw_name, user.pw_gid)
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}
    return subprocess.Popen(  # noqa: S603 - our own commands
        command,
        stdin=given,
        stdout=output,
        stderr=output,
        cwd="/",
        env=_ENVIRONMENT,
        start_new_session=True,
        preexec_fn=_death_with(os.getpid()),  # noqa: PLW1509 - one system call, and nothing else can make it
        **identity,
    )


def _death_with(parent: int) -> Callable[[], None]:
    """Return what the child calls once it is the server's user: to change the user would undo it."""
    prctl = _LIBC.prctl

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return die_with_parent


async def has_ended(process: subprocess.Popen[bytes], within: float | None = None) -> bool:
    """Wait up to `within` seconds for the end of a child, without looking again and again."""
    if process.poll() is not None:
        return True
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    handle = os.pidfd_open(process.pid)
    loop.add_reader(handle, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), within)
        process.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(handle)
        os.close(handle)
    return True


async def end(process: subprocess.Popen[bytes]) -> None:
    """End a child as fast as is clean, and by force if it must be."""
    for kind, seconds in STOP_SIGNALS:
        if process.poll() is None:
            process.send_signal(kind)
        if await has_ended(process, seconds):
            return


# What a former supervisor may have left


async def end_leftovers(database: Path) -> None:
    """End every process of a server of this database that has lost its supervisor; `Refusal` where one stays.

    Only with the folder's lock in hand, or it would be the server of another supervisor.
    """
    running = _servers_of(database)
    master = _recorded(database) & running
    # Processes that have lost their postmaster can't end cleanly: at SIGINT one would write a last checkpoint.
    for kind, seconds in STOP_SIGNALS if master else STOP_SIGNALS[1:]:
        if not running:
            return
        log.warning("stopping a PostgreSQL server without supervisor", processes=sorted(running), signal=kind.name)
        _signal(running if kind is signal.SIGKILL else running & master or running, kind)
        running = await _survivors(database, seconds)
    if running:
        raise Refusal(f"An earlier PostgreSQL in {database} cannot be stopped; see process {min(running)}.")


def _servers_of(database: Path) -> set[int]:
    """Return the living processes of the server of this very folder, in which each of them stands (no zombie does)."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").samefile(database) and (process / "comm").read_text() == "postgres\n":
                found.add(int(process.name))
    return found


def _recorded(database: Path) -> set[int]:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return {int((database / "postmaster.pid").read_text("ascii").split()[0])}
    return set()


def _signal(processes: set[int], kind: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, kind)


async def _survivors(database: Path, seconds: float) -> set[int]:
    end = time.monotonic() + seconds
    while (running := _servers_of(database)) and time.monotonic() < end:  # noqa: ASYNC110 - the kernel tells of no event
        await asyncio.sleep(0.05)
    return running


# What they say


@contextlib.contextmanager
def memory(words: bytes = b"") -> Iterator[int]:
    """Lend an open file, with these words in it, that is on no disk: that may be full."""
    file = os.memfd_create("tocsin")
    try:
        os.pwrite(file, words, 0)
        yield file
    finally:
        os.close(file)


def read_end(file: int) -> str:
    """Return the end of an open file as text."""
    return os.pread(file, _READ_BYTES, max(0, os.fstat(file).st_size - _READ_BYTES)).decode(errors="replace")


def last_words(*texts: str) -> str:
    """Return the last complaints of all texts as part of a sentence, or where there are none their last lines."""
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    complaints = [found[0] for line in lines if (found := _COMPLAINT.search(line))]
    said = "; ".join(line.strip().rstrip(".,") for line in (complaints or lines)[-3:]) or "nothing"
    return f"{said}; {SHARED_MEMORY}" if "shared memory segment" in said else said
