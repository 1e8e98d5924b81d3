"""The data folder of the embedded PostgreSQL: locked by one process, closed to all but the server's user.

The folder itself, with the secrets, belongs to the user who runs Tocsin. If that is root, the server's user can enter
it but change nothing. It contains `postgres` (the database), `run` (the socket), `log`, `tocsin.lock` (locked while it
is served) and, if the server's user cannot run the programs of the wheel, `binaries` (a copy).
"""

import asyncio
import contextlib
import fcntl
import os
import pwd
import secrets
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import structlog

from tocsin.errors import Refusal
from tocsin.postgres.archive import Archive
from tocsin.postgres.process import read_end, run, this_user
from tocsin.secret_files import sync

MAJOR = "18"
"""The major version of PostgreSQL that the data folder must have."""

BUNDLED = {"16": "pginstall", MAJOR: "pginstall18"}
"""The major versions of the wheel with their folders: data of an older one can be upgraded."""

BEFORE_UPGRADE = "postgres.before-upgrade"
"""The database of the older major version, until the upgraded one has started."""

NAME = "tocsin"
"""The name of the database and of its superuser."""

PORT = 5432
"""The number in the name of the socket."""

RESTORING = "restoring"
"""The file that marks a data folder whose restore has not ended."""

MAX_SOCKET_PATH = 106
"""Maximum bytes of the path of a unix socket that all clients support."""

KEPT_LOGS = 10
"""Log files of the server that are kept."""

SERVER_USERS = ("tocsin", "postgres", "nobody")
"""The users for the server if Tocsin runs as root, which PostgreSQL refuses; the first that exists."""

_HARMLESS = frozenset(
    {
        *("lost+found", ".snapshot", ".gitkeep", ".keep", ".DS_Store", ".nfs"),
        *("jwt-secret", "vapid.pem", "demo", "made-by-demo"),
    }
)
"""What an empty folder may contain: files of file systems, secrets made before the first start, and the demo's."""

_LOCK = "tocsin.lock"
_LOCK_INTERVAL = 0.05
_SOCKET = ".s.PGSQL."
log = structlog.get_logger(__name__)

_NOT_IN_PATHS = ",\"'\\"


def is_served(data_dir: Path) -> bool:
    """Return whether a process serves this folder. Raises `OSError` if it cannot be read."""
    try:
        lock = os.open(data_dir.resolve() / _LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not _locks(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


@contextlib.asynccontextmanager
async def in_use(data_dir: Path) -> AsyncIterator[bool]:
    """Yield whether a process serves this folder. If that is a command, it continues to the end of the block.

    The lock is on the folder itself: `tocsin.lock` belongs to the process that serves it.
    """
    try:
        folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        while not _locks(folder, fcntl.LOCK_SH):  # noqa: ASYNC110 - a command is stopping its server, without an event
            await asyncio.sleep(_LOCK_INTERVAL)
        if not (served := is_served(data_dir)):
            fcntl.flock(folder, fcntl.LOCK_UN)
        yield served
    finally:
        os.close(folder)


async def unused(data_dir: Path) -> int:
    """Wait until no other command uses the folder; return an open file that keeps them waiting until it is closed."""
    folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        waits = False
        while not _locks(folder, fcntl.LOCK_EX):
            if not waits:
                log.info("waiting for the end of other commands that use the database")
            waits = True
            await asyncio.sleep(_LOCK_INTERVAL)
    except BaseException:
        os.close(folder)
        raise
    return folder


async def claim(folder: Path, *, to_upgrade: bool = False) -> tuple[pwd.struct_passwd, int]:
    """Lock the folder; return the server's user and the lock, an open file with the id of this process.

    Raises `Refusal` if the database is of another major version, unless it is claimed to upgrade it.
    """
    refuse_unusable_path(folder)
    user = _user_of_server(folder)
    _adopt(folder)
    # Links are not followed: root writes into a folder of the server's user.
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        await _hold(lock, folder)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        _close(folder, user)
        await _refuse_closed_parents(folder, user)
        undo_upgrade(folder)
        if not to_upgrade:
            _refuse_another_major(folder / "postgres")
    except BaseException:
        os.close(lock)
        raise
    return user, lock


def refuse_unusable_path(folder: Path) -> None:
    """Raise `Refusal` for a folder whose path PostgreSQL or its clients do not accept."""
    path = str(folder)
    if not path.isprintable() or set(path) & set(_NOT_IN_PATHS):
        raise Refusal(
            f"The data folder {path!r} has a character that PostgreSQL does not accept in a path (one of"
            f" {_NOT_IN_PATHS} or unprintable); set TOCSIN_DATA_DIR to another."
        )
    length = len(os.fsencode(folder / "run" / f"{_SOCKET}{PORT}"))
    if length > MAX_SOCKET_PATH:
        raise Refusal(
            f"The path of the data folder {path} is {length - MAX_SOCKET_PATH} bytes too long for a unix socket; set"
            " TOCSIN_DATA_DIR to a shorter one."
        )


def _user_of_server(folder: Path) -> pwd.struct_passwd:
    """Return the current user; for root the owner of the database, else the first existing user of `SERVER_USERS`."""
    if os.geteuid() != 0:
        return this_user()
    users = [user for name in SERVER_USERS if (user := _user_called(name)) and user.pw_uid != 0]
    if not users:
        raise Refusal("PostgreSQL does not run as root: create a user for it with `useradd --system tocsin`.")
    database = folder / "postgres"
    owner = database.stat().st_uid if database.exists() else None
    found = next((user for user in users if user.pw_uid == owner), users[0])
    if found.pw_name == "nobody":
        log.warning(
            "PostgreSQL runs as the user nobody; other programs of that user can read its files",
            hint="create a user for it before the first start: useradd --system tocsin",
        )
    return found


def _user_called(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _adopt(folder: Path) -> None:
    """Raise `Refusal` for a folder of another user or program, before anything is changed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = folder.stat().st_uid
    if owner != os.geteuid():
        us = _name_of(os.geteuid())
        inside = f"to a folder in it such as {folder / 'data'}" if os.access(folder, os.W_OK) else "to another"
        chown = "chown -R" if os.geteuid() else "chown"  # the database in it does not become root's
        raise Refusal(
            f"The data folder {folder} belongs to {_name_of(owner)} and Tocsin runs as {us}; set TOCSIN_DATA_DIR"
            f" {inside}, or give it to {us} if it is Tocsin's: {chown} {us} {folder}."
        )
    names = {path.name for path in folder.iterdir()} - _HARMLESS
    if names and _LOCK not in names:
        raise Refusal(
            f"The data folder {folder} contains files of another program; set TOCSIN_DATA_DIR to an empty one."
        )


async def _hold(lock: int, folder: Path) -> None:
    for _ in range(10):  # `is_served` locks it briefly
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
    """Test as the server's user: mode bits are not enough, because of access lists and capabilities."""
    tries = 'for folder; do [ -x "$folder" ] || { printf %s "$folder"; exit 1; }; done'
    status, closed = await run(("/bin/sh", "-c", tries, "sh", *reversed(folder.parents)), user)
    if status:
        raise Refusal(
            f"The folder {closed} is closed to the user {user.pw_name} that PostgreSQL runs as; grant that user"
            f" execute permission (chmod a+x {closed}), or set TOCSIN_DATA_DIR to another."
        )


def _refuse_another_major(database: Path) -> None:
    if not database.exists():
        return
    major = major_of(database)
    if major != MAJOR:
        remedy = "back it up and run `tocsin upgrade`" if major in BUNDLED else "use a Tocsin that has both"
        raise Refusal(
            f"The data folder {database} was made by PostgreSQL {major}, and this Tocsin has PostgreSQL"
            f" {MAJOR}: {remedy}."
        )


def major_of(database: Path) -> str:
    """Return the major version of a database. Raises `Refusal` if it is damaged."""
    try:
        return (database / "PG_VERSION").read_text("ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise Refusal(
            f"The data folder {database} is damaged: it has no PG_VERSION. Move it away, and restore a backup by"
            " `tocsin restore`."
        ) from None


def undo_upgrade(folder: Path) -> None:
    """Put the database of before an upgrade back, if it was interrupted before the upgraded one was confirmed."""
    before = folder / BEFORE_UPGRADE
    if before.exists():
        log.warning("undoing an upgrade of PostgreSQL that did not end", folder=str(folder))
        if (folder / "postgres").exists():
            (folder / "postgres").rename(folder / f"postgres.new-{secrets.token_hex(4)}")  # removed with other drafts
        before.rename(folder / "postgres")
        sync(folder)


def write_configuration(
    folder: Path, user: pwd.struct_passwd, archive: Archive | None = None, database: Path | None = None
) -> None:
    """Create the folders of the socket and the log, and write the configuration of the database, or of a draft."""
    database = database or folder / "postgres"
    _refuse_another_owner(database, user)
    temporary = database / "base/pgsql_tmp"  # PostgreSQL makes it when it needs it, which fails on a full disk
    for ours in (folder / "run", folder / "log", database, temporary):  # an operator or a volume may change their modes
        own(ours, user)
    configuration = _configuration("postgresql.conf").format(run=folder / "run", log=folder / "log", port=PORT)
    configuration += archive.configuration if archive else ""
    _write(database / "postgresql.conf", configuration, user)
    _write(database / "pg_hba.conf", _configuration("pg_hba.conf"), user)
    _write(database / "pg_ident.conf", _configuration("pg_ident.conf").format(user=_name_of(os.geteuid())), user)


def refuse_missing(folder: Path) -> None:
    """Raise `Refusal` if there is no database in this folder, nor one that its start puts back or refuses."""
    if not any((folder / name).exists() for name in ("postgres", BEFORE_UPGRADE, RESTORING)):
        raise Refusal(f"There is no database in {folder}; set TOCSIN_DATA_DIR.")


def refuse_unfinished(folder: Path) -> None:
    """Raise `Refusal` if a restore into this folder did not end. It puts the database in its place last."""
    if (folder / "postgres").exists():
        (folder / RESTORING).unlink(missing_ok=True)
    elif (folder / RESTORING).exists():
        raise Refusal(
            f"A restore into {folder} did not end: run `tocsin restore` again, or delete the file {folder / RESTORING}"
            " to start with an empty database."
        )


def _configuration(name: str) -> str:
    """Return the text of a file of the configuration, with the names of values in braces."""
    return (files("tocsin.postgres") / "configuration" / name).read_text("utf-8")


def remove_stale_files(folder: Path, database: Path, port: int = PORT) -> None:
    """Remove the files of a server that did not end cleanly. None of its processes may run.

    PostgreSQL itself mistakes any running process with a recorded id for the server.
    """
    socket = folder / "run" / f"{_SOCKET}{port}"
    for trace in (database / "postmaster.pid", socket, socket.with_name(f"{socket.name}.lock")):
        trace.unlink(missing_ok=True)


def _refuse_another_owner(database: Path, user: pwd.struct_passwd) -> None:
    owner = (database / "PG_VERSION").stat().st_uid
    if owner != user.pw_uid:
        raise Refusal(
            f"The database {database} belongs to {_name_of(owner)} and PostgreSQL runs as {user.pw_name}; give it back:"
            f" chown -R {user.pw_name} {database}."
        )


def _close(folder: Path, user: pwd.struct_passwd) -> None:
    """Set owner and mode of the data folder; for root, let the server's user enter it."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.geteuid() == 0:
            os.fchown(opened, 0, user.pw_gid)
        os.fchmod(opened, 0o710 if os.geteuid() == 0 else 0o700)
    finally:
        os.close(opened)


def own(folder: Path, user: pwd.struct_passwd) -> None:
    """Create a folder that only the server's user (and root) can enter."""
    folder.mkdir(mode=0o700, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchmod(opened, 0o700)
        if os.geteuid() == 0:
            os.fchown(opened, user.pw_uid, user.pw_gid)
    finally:
        os.close(opened)


def _write(path: Path, text: str, user: pwd.struct_passwd) -> None:
    """Write a file atomically, replacing an existing one."""
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


# The logs


def log_since(folder: Path, when: float) -> str:
    """Return the end of the newest log file, if it was written after `when` (seconds since 1970)."""
    path = max(_logs(folder), key=lambda path: path.stat().st_mtime, default=None)
    if path is None or path.stat().st_mtime < when:
        return ""
    with path.open("rb") as file:
        return read_end(file.fileno())


def prune_logs(folder: Path) -> None:
    """Remove all but the newest `KEPT_LOGS` log files."""
    for path in _logs(folder)[:-KEPT_LOGS]:
        path.unlink(missing_ok=True)


def _logs(folder: Path) -> list[Path]:
    """Return the log files, the oldest first by the time in their names."""
    return sorted((folder / "log").glob("postgresql-*.log"))
