"""The programs of PostgreSQL as child processes: run as the server's user, and ended with this process."""

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
"""The signals that end a server (fast, immediate, forced) and the seconds to wait after each."""

SHARED_MEMORY = "give the container more of /dev/shm, such as --shm-size 256m"
"""What to do if PostgreSQL gets no shared memory, which it reports like a full disk."""

_ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_READ_BYTES = 1 << 16
_TOO_EARLY = (
    "the database system is (?:starting up|not yet accepting)|Consistent recovery state has not been yet reached"
)
_COMPLAINT = re.compile(rf"(?:\b(?:FATAL|PANIC|ERROR|DETAIL|error): ++(?!{_TOO_EARLY})|^gzip: ).*")

log = structlog.get_logger(__name__)


async def run(command: Sequence[str | Path], user: pwd.struct_passwd, words: bytes = b"") -> tuple[int, str]:
    """Run a program as the server's user with `words` as its input; return its exit status and output.

    If a signal ended it, such as that of a system without memory, its output says so.
    """
    with memory(words) as given, memory() as output:
        process = spawn(command, user, output, given)
        try:
            await has_ended(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said = read_end(output)
        if process.returncode < 0:
            said += f"\n{Path(command[0]).name} was ended by signal {-process.returncode}\n"
        return process.returncode, said


def this_user() -> pwd.struct_passwd:
    """Return the user who runs this process. Raises `Refusal` if it has no name."""
    try:
        return pwd.getpwuid(os.geteuid())
    except KeyError:
        raise Refusal(
            f"PostgreSQL needs a user with a name, and user {os.geteuid()} has none: start as a user of /etc/passwd"
            " (in a container, add a line there for it, or run as another user), or set TOCSIN_DATABASE_URL."
        ) from None


def spawn(
    command: Sequence[str | Path],
    user: pwd.struct_passwd,
    output: int,
    given: int = subprocess.DEVNULL,
    errors: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program that ends with this process, in its own session, so that Ctrl+C does not reach it.

    Its errors are part of the output, unless `errors` is another open file.
    """
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        groups = os.getgrouplist(user.pw_name, user.pw_gid)
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}
    return subprocess.Popen(  # noqa: S603 - the commands are constants
        command,
        stdin=given,
        stdout=output,
        stderr=output if errors is None else errors,
        cwd="/",
        env=_ENVIRONMENT,
        start_new_session=True,
        preexec_fn=_death_with(os.getpid()),  # noqa: PLW1509 - one system call, and nothing else can make it
        **identity,
    )


def _death_with(parent: int) -> Callable[[], None]:
    """Return what the child calls after it changed its user, because that change would reset it."""
    prctl = _LIBC.prctl

    def die_with_parent() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell ignores it for commands in the background
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return die_with_parent


async def has_ended(process: subprocess.Popen[bytes], within: float | None = None) -> bool:
    """Wait up to `within` seconds for the end of a child, without polling; return whether it has ended."""
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
    """End a child cleanly, and by force if it does not end."""
    for kind, seconds in STOP_SIGNALS:
        if process.poll() is None:
            process.send_signal(kind)
        if await has_ended(process, seconds):
            return


# Processes of an earlier supervisor


async def end_leftovers(database: Path) -> None:
    """End all processes of a server of this database without supervisor. Raises `Refusal` if one does not end.

    The caller must hold the lock of the folder; otherwise the server may belong to another supervisor.
    """
    running = _servers_of(database)
    master = _recorded(database) & running
    # Processes without postmaster cannot end cleanly: at SIGINT one would write a last checkpoint.
    for kind, seconds in STOP_SIGNALS if master else STOP_SIGNALS[1:]:
        if not running:
            return
        log.warning("stopping a PostgreSQL server without supervisor", processes=sorted(running), signal=kind.name)
        _signal(running if kind is signal.SIGKILL else running & master or running, kind)
        running = await _survivors(database, seconds)
    if running:
        raise Refusal(f"An earlier PostgreSQL in {database} cannot be stopped; see process {min(running)}.")


def _servers_of(database: Path) -> set[int]:
    """Return the running processes of the server of this folder, which is their working directory."""
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
    while (running := _servers_of(database)) and time.monotonic() < end:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.05)
    return running


# Output


@contextlib.contextmanager
def memory(words: bytes = b"") -> Iterator[int]:
    """Yield an open file in memory that contains `words`; the disk may be full."""
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
    """Return the last errors in all texts as part of a sentence, or else their last lines."""
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    complaints = [found[0] for line in lines if (found := _COMPLAINT.search(line))]
    said = "; ".join(line.strip().rstrip(".,") for line in (complaints or lines)[-3:]) or "nothing"
    return f"{said}; {SHARED_MEMORY}" if "shared memory segment" in said else said
