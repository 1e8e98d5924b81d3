"""Backups of the embedded database: the files of a running server and the log that they need, verified.

A backup is a folder, named after its time, with `database` (the files, and a manifest with their sums), `secrets` (what
Tocsin made in the data folder) and `backup.json` (what a restore needs to know). It gets its name last, when all of it
is on disk and verified.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Self

import structlog

from tocsin import __version__
from tocsin.db.connections import connect
from tocsin.errors import Refusal
from tocsin.files import content_of
from tocsin.postgres import manifest
from tocsin.postgres.data_dir import MAJOR
from tocsin.postgres.manifest import Manifest, damaged, verify
from tocsin.postgres.process import has_ended, last_words, memory, read_end, run, spawn, this_user
from tocsin.postgres.segments import name_of, number_of, timeline_of
from tocsin.secret_files import sync

NOTE, DATABASE, SECRETS = "backup.json", "database", "secrets"
"""The parts of a backup."""

SECRET_NAMES = ("jwt-secret", "vapid.pem")
"""The secrets that Tocsin makes in the data folder."""

LABEL = "backup_label"

_NAME = re.compile(r"\d{8}T\d{6}\.\d{3}Z")
_DRAFT = ".draft-"
_LOCK = ".lock"
_DAMAGED_PAGE = re.compile(r'WARNING: +checksum verification failed in (file "[^"\n]*", block \d+)')
_START = re.compile(r"^START WAL LOCATION: \S+ \(file ([0-9A-F]{24})\)$", re.MULTILINE)
_COPY = ("--wal-method", "stream")
_FETCH = ("--wal-method", "fetch", "--format", "tar", "--pgdata", "-")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """The running server that is backed up, and its data folder."""

    url: str
    data_dir: Path
    programs: Path


@dataclass(frozen=True, slots=True)
class Backup:
    """A complete backup. A restore needs the log from `first_segment` on, and can reach any time after `ended_at`."""

    folder: Path
    postgres: str
    ended_at: datetime
    first_segment: str
    size: int

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the note of a backup. Raises `Refusal` if it has none that can be read."""
        try:
            note = json.loads(content_of(folder / NOTE))
            ended_at = datetime.fromisoformat(note["ended_at"]).astimezone(UTC)
            first = name_of(timeline_of(note["first_segment"]), number_of(note["first_segment"]))
            return cls(folder, str(note["postgres"]), ended_at, first, int(note["size"]))
        except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or f"{type(error).__name__} {error}"
            raise Refusal(
                f"{folder} is not a backup: its {NOTE} cannot be read: {reason}. Move it away, or name another backup."
            ) from None


def backups_in(folder: Path) -> list[Backup]:
    """Return the complete backups in a folder, the oldest first; or the one that the folder itself is."""
    if (folder / NOTE).exists():
        return [Backup.read(folder)]
    try:
        names = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except OSError as error:
        raise Refusal(f"The backups in {folder} cannot be read: {error.strerror}.") from None
    return sorted((Backup.read(path) for path in names), key=lambda backup: backup.ended_at)


async def back_up(source: Source, target: Path) -> Backup:
    """Make a backup in a folder, and verify it. Raises `Refusal`, and leaves nothing then."""
    with _alone(target):
        draft = _draft_in(target)
        try:
            ended_at = await _fill(source, draft)
            folder = _named(draft, _name(ended_at))
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)
            raise
        return Backup.read(folder)


def _draft_in(target: Path) -> Path:
    for left in target.glob(f"{_DRAFT}*"):  # by a process that was killed, since the folder is locked
        # Its program that receives the log may not have noticed yet. It finds no place for another file then.
        shutil.rmtree(left.rename(left.with_name(f"{_DRAFT}{secrets.token_hex(4)}")))
    draft = target / f"{_DRAFT}{secrets.token_hex(4)}"
    draft.mkdir(mode=0o700)
    return draft


def _named(draft: Path, name: str) -> Path:
    sync(draft)
    folder = draft.rename(draft.with_name(name))
    sync(folder.parent)
    return folder


async def _fill(source: Source, draft: Path) -> datetime:
    database = draft / DATABASE
    command = (*_pg_basebackup(source), *_COPY, "--pgdata", str(database))
    status, output = await run(command, this_user())
    if status:
        raise _failed(output)
    ended_at = await _now(source)
    await verify(source.programs, database)
    size = await asyncio.to_thread(_size_of, database)
    _keep_secrets(source.data_dir, draft / SECRETS)
    _write(draft / NOTE, _note(ended_at, (database / LABEL).read_text("utf-8"), size))
    return ended_at


def remove_old(made: Backup, keep: int) -> list[Backup]:
    """Remove all backups beside the one just made, but for the newest ones, so that `keep` are left. Return these.

    The times of others can be later: the clock was ahead then.
    """
    target = made.folder.parent
    with _alone(target):
        others = [backup for backup in backups_in(target) if backup != made]
        left = max(len(others) - (keep - 1), 0)
        for backup in others[:left]:
            # It loses its name first, so that a backup that is removed in part is none.
            shutil.rmtree(backup.folder.rename(backup.folder.with_name(f"{_DRAFT}{backup.folder.name}")))
        sync(target)
        return [*others[left:], made]


def _pg_basebackup(source: Source) -> tuple[str, ...]:
    program = str(source.programs / "pg_basebackup")
    return (
        program,
        "--dbname",
        source.url,
        "--checkpoint",
        "fast",
        "--manifest-checksums",
        manifest.ALGORITHM,
        "--no-password",
    )


def _failed(output: str) -> Refusal:
    damaged_pages = _DAMAGED_PAGE.findall(output)
    if damaged_pages:
        return Refusal(f"The database is damaged: {len(damaged_pages)} pages, such as {'; '.join(damaged_pages[:3])}.")
    return Refusal(f"The backup failed: {last_words(output)}.")


async def _now(source: Source) -> datetime:
    """Return the time of the database, to which the times of its transactions are compared."""
    connection = await connect(source.url, 10)
    try:
        now: datetime = await connection.fetchval("select clock_timestamp()")
        return now
    finally:
        await connection.close()


def _name(ended_at: datetime) -> str:
    return f"{ended_at.astimezone(UTC):%Y%m%dT%H%M%S}.{ended_at.microsecond // 1000:03}Z"


def _note(ended_at: datetime, label: str, size: int) -> bytes:
    start = _START.search(label)
    if not start:
        raise Refusal("The backup failed: its backup_label does not name the first segment of the log.")
    note: dict[str, Any] = {
        "tocsin": __version__,
        "postgres": MAJOR,
        "ended_at": ended_at.isoformat(),
        "first_segment": start[1],
        "size": size,
    }
    return f"{json.dumps(note, indent=2)}\n".encode()


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _keep_secrets(data_dir: Path, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for name in SECRET_NAMES:
        with contextlib.suppress(FileNotFoundError):
            _write(folder / name, (data_dir / name).read_bytes())
    sync(folder)


def _write(path: Path, content: bytes) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(opened, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(opened)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Create a folder of backups, and lock it. Raises `Refusal` if another process has it, or if it cannot be used."""
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(target / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except PermissionError:
        us = this_user().pw_name
        raise Refusal(
            f"{us} cannot write backups into {target}: name a folder of that user, such as one made by"
            f" `install -d -m 700 -o {us} {target}`."
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal(f"Another backup to {target} is running; wait for its end.") from None
        yield
    finally:
        os.close(lock)


# As one stream


async def stream(source: Source, output: IO[bytes]) -> None:
    """Write a backup as a tar archive, verified while it is written. Raises `Refusal`; the archive has no end then."""
    async with _log_kept(source):
        reading, writing = os.pipe()
        with memory() as errors, os.fdopen(reading, "rb") as given:
            process = spawn((*_pg_basebackup(source), *_FETCH), this_user(), writing, errors=errors)
            os.close(writing)
            try:
                archive = _Archive(_name(await _now(source)), output)
                complete = await asyncio.to_thread(archive.copy, given)
                await has_ended(process)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            if process.returncode or not complete:
                raise _failed(read_end(errors) or "the copy ended early")
    archive.end(source.data_dir, await _now(source))


@contextlib.asynccontextmanager
async def _log_kept(source: Source) -> AsyncIterator[None]:
    """Let the server keep its log until the end of the copy, which contains it only then."""
    connection = await connect(source.url)
    try:
        slot = f"tocsin_backup_{secrets.token_hex(4)}"
        await connection.execute("select pg_create_physical_replication_slot($1, true, true)", slot)
        yield
    finally:
        await connection.close()


class _Archive:
    """A tar archive that is verified against the manifest that it contains."""

    def __init__(self, name: str, output: IO[bytes]) -> None:
        self._name = name
        self._made = tarfile.TarFile(fileobj=_Counted(output), mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]  # it only writes and tells
        self._sums: dict[str, str] = {}
        self._label = self._manifest = b""
        self._size = 0

    def copy(self, given: IO[bytes]) -> bool:
        """Copy the archive of `pg_basebackup`; return whether it has an end."""
        try:
            with tarfile.open(fileobj=given, mode="r|") as files:
                for member in files:
                    path = member.name
                    content = _Summed(files.extractfile(member), keep=path in {manifest.NAME, LABEL})
                    member.name = f"{self._name}/{DATABASE}/{path}"
                    self._made.addfile(member, content)
                    if member.isfile():
                        self._note(path, content)
        except tarfile.ReadError:
            return False
        while given.read(1 << 16):
            pass
        return True

    def _note(self, path: str, content: "_Summed") -> None:
        self._sums[path] = content.sum.hexdigest()
        self._size += content.size
        if path == manifest.NAME:
            self._manifest = bytes(content.kept)
        elif path == LABEL:
            self._label = bytes(content.kept)

    def end(self, data_dir: Path, ended_at: datetime) -> None:
        """Verify what was copied, add the rest and end the archive. Raises `Refusal`."""
        self._verify()
        for name in SECRET_NAMES:
            with contextlib.suppress(FileNotFoundError):
                self._add(f"{SECRETS}/{name}", (data_dir / name).read_bytes())
        self._add(NOTE, _note(ended_at, self._label.decode(), self._size))
        self._made.close()

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(f"{self._name}/{name}")
        member.size, member.mode = len(content), 0o600
        self._made.addfile(member, BytesIO(content))

    def _verify(self) -> None:
        try:
            differences = Manifest.parse(self._manifest).differences(self._sums)
        except (ValueError, KeyError) as error:
            differences = [f"{manifest.NAME}: {error}"]
        if differences:
            raise damaged(self._name, differences)


class _Counted:
    """A file that is only written, and tells how much."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = 0

    def write(self, content: bytes) -> int:
        self._file.write(content)
        self._size += len(content)
        return len(content)

    def tell(self) -> int:
        return self._size


class _Summed:
    """A file whose content is summed while it is read, and kept if `keep` is set."""

    def __init__(self, file: IO[bytes] | None, *, keep: bool) -> None:
        self._file = file
        self._keep = keep
        self.sum = hashlib.sha256()
        self.size = 0
        self.kept = bytearray()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size) if self._file else b""
        self.sum.update(content)
        self.size += len(content)
        if self._keep:
            self.kept += content
        return content
