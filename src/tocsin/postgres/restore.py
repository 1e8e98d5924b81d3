"""Restores of a backup into an empty data folder, and of the archive after it, up to its end or to a time.

The database is recovered completely in a draft folder, and gets its name last. Until then, a file in the data folder
marks that a restore has not ended, and no server starts there.
"""

import asyncio
import contextlib
import os
import pwd
import re
import secrets
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog

from tocsin.db.connections import connect
from tocsin.db.errors import DRIVER_ERRORS
from tocsin.errors import Refusal
from tocsin.postgres.archive import Archive, first_gap, segments
from tocsin.postgres.backup import DATABASE, SECRETS, Backup
from tocsin.postgres.binaries import programs_for, remove_drafts
from tocsin.postgres.data_dir import MAJOR, RESTORING, claim, log_since, own, write_configuration
from tocsin.postgres.manifest import manifest_of, verify
from tocsin.postgres.process import end, has_ended, last_words, run
from tocsin.postgres.segments import is_segment, name_of, number_at, number_of, position_of, timeline_of
from tocsin.postgres.supervisor import Launched, launch
from tocsin.postgres.timelines import Timeline
from tocsin.secret_files import keep, sync

PORT = 5433
"""The number of the socket of a server that recovers: others that use the data folder do not find it."""

SPARE_BYTES = 256 * 2**20
"""Free bytes that a restore needs beside the size of the backup."""

LOG_INTERVAL = 10.0
"""Seconds between two log lines about the progress of a recovery."""

NOT_REACHED = "before configured recovery target was reached"
"""What PostgreSQL says if the archive ends before the wanted time."""

_LAST = re.compile(r"last completed transaction was at log time (\S+ \S+)")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to restore: a backup, the log after it by a command, and the time to stop at; None: the end of the log.

    The archive had `timeline` at that time; None: it had the first, or the one that the backup begins.
    """

    backup: Backup
    archive: Archive | None
    fetch_command: str | None
    to_time: datetime | None
    timeline: Timeline | None = None

    @property
    def number(self) -> int:
        """The number of the timeline to follow."""
        return max(self.timeline.number if self.timeline else 1, timeline_of(self.backup.first_segment))


def choose(backups: list[Backup], to_time: datetime | None, timeline: Timeline | None = None) -> Backup:
    """Return the latest backup from which a time of a timeline can be reached. Raises `Refusal` if there is none."""
    if not backups:
        raise Refusal("There is no complete backup in this folder.")
    fitting = [backup for backup in backups if to_time is None or backup.ended_at <= to_time]
    if not fitting:
        raise Refusal(
            f"{to_time:%Y-%m-%d %H:%M:%S%z} is before the end of the first backup: choose"
            f" {backups[0].ended_at:%Y-%m-%d %H:%M:%S.%f%z} or later."
        )
    if timeline is None:
        return fitting[-1]
    before = [backup for backup in fitting if _is_before(backup, timeline)]
    if not before:
        raise Refusal(
            f"{fitting[-1].folder} is not in the past of what the archive has for that time, because an earlier restore"
            " went back to a time before it. Choose an older backup, or --to-time before"
            f" {timeline.began:%Y-%m-%d %H:%M:%S}."
        )
    return before[-1]


def _is_before(backup: Backup, timeline: Timeline) -> bool:
    needed = manifest_of(backup.folder / DATABASE).log
    return all(
        part.timeline > timeline.number  # it is not archived yet
        or timeline.has(part.timeline, position_of(part.end))
        for part in needed
    )


async def restore(wanted: Wanted, folder: Path, finish: Callable[[str], Awaitable[None]]) -> None:
    """Restore a backup into a data folder, and call `finish` with the url of the recovered database.

    Raises `Refusal` if the backup is damaged, the folder has a database, or the recovery fails; the folder is as before
    then.
    """
    _refuse_database(folder)
    _refuse_another_major(wanted.backup)
    user, lock = await claim(folder)
    try:
        _refuse_database(folder)
        _refuse_other_secrets(wanted.backup, folder)
        programs = await programs_for(user, folder)
        await verify(programs, wanted.backup.folder / DATABASE)
        last = await _check_archive(wanted, user)
        _refuse_lack_of_space(wanted.backup, folder)

        async def finish_complete(url: str) -> None:
            await _refuse_early_end(url, last)
            await finish(url)

        await _restore(wanted, folder, user, programs, finish_complete)
    finally:
        os.close(lock)


async def _restore(
    wanted: Wanted, folder: Path, user: pwd.struct_passwd, programs: Path, finish: Callable[[str], Awaitable[None]]
) -> None:
    marker = folder / RESTORING
    marker.touch(mode=0o600)
    sync(folder)
    await remove_drafts(folder)
    draft = folder / f"postgres.new-{secrets.token_hex(4)}"
    try:
        own(draft, user)
        await _copied(wanted.backup.folder / DATABASE, draft, user)
        write_configuration(folder, user, None, draft)
        await _recover(wanted, folder, draft, user, programs, finish)
        for secret in (wanted.backup.folder / SECRETS).iterdir():
            keep(folder / secret.name, secret.read_bytes())
        draft.rename(folder / "postgres")
        sync(folder)
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)
        marker.unlink(missing_ok=True)
        raise
    marker.unlink()
    sync(folder)


def _refuse_database(folder: Path) -> None:
    if (folder / "postgres").exists():
        raise Refusal(
            f"The data folder {folder} has a database, which a restore does not overwrite: set TOCSIN_DATA_DIR to an"
            f" empty folder, or move {folder / 'postgres'} away."
        )


def _refuse_another_major(backup: Backup) -> None:
    if backup.postgres != MAJOR:
        raise Refusal(
            f"The backup {backup.folder} was made by PostgreSQL {backup.postgres}, and this Tocsin has PostgreSQL"
            f" {MAJOR}: restore it with the release that made it, and upgrade then."
        )


def _refuse_other_secrets(backup: Backup, folder: Path) -> None:
    for secret in (backup.folder / SECRETS).iterdir():
        with contextlib.suppress(FileNotFoundError):
            if (folder / secret.name).read_bytes() != secret.read_bytes():
                raise Refusal(
                    f"The data folder {folder} has another {secret.name} than the backup: delete it there, or delete"
                    f" {secret} to keep it."
                )


async def _check_archive(wanted: Wanted, user: pwd.struct_passwd) -> str | None:
    """Return the last segment that the recovery has to reach, if it is known.

    Raises `Refusal` if the archive cannot be read, or lacks a segment: a recovery ends there silently.
    """
    if wanted.archive is None or wanted.archive.folder is None:
        return None
    try:
        names = segments(wanted.archive.folder)
    except OSError as error:
        raise Refusal(f"The archive {wanted.archive.folder} cannot be read: {error.strerror}.") from None
    await wanted.archive.refuse_unreadable(user)
    if wanted.to_time:  # PostgreSQL reports one that it does not reach
        return None
    backup = wanted.backup
    in_backup = (path.name for path in (backup.folder / DATABASE / "pg_wal").iterdir() if is_segment(path.name))
    if gap := first_gap({*names, *in_backup}, backup.first_segment):
        raise Refusal(
            f"The archive {wanted.archive.folder} lacks the segment {gap}: restore to a time before it with --to-time,"
            " from a backup after it, or with --restore-command false to leave the archive out."
        )
    return max((name for name in names if timeline_of(name) == wanted.number), default=None)


async def _refuse_early_end(url: str, last: str | None) -> None:
    """Raise `Refusal` if the recovery ended before a segment: at one that is damaged, or of another database."""
    connection = await connect(url, 10)
    try:
        reached = "select pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp()"
        [[position, moment]] = await connection.fetch(reached)
    finally:
        await connection.close()
    if last and number_at(position) < number_of(last):
        until = f"before {moment:%Y-%m-%d %H:%M:%S.%f%z}" if moment else "before that"
        raise Refusal(
            f"The archive cannot be read after the segment {name_of(timeline_of(last), number_at(position))}, although"
            f" it has segments up to {last}: the next one is damaged, or of another database. Put the right one there,"
            f" or restore to a time {until} with --to-time."
        )


def _refuse_lack_of_space(backup: Backup, folder: Path) -> None:
    free, needed = shutil.disk_usage(folder).free, backup.size + SPARE_BYTES
    if free < needed:
        raise Refusal(
            f"The disk of {folder} has {free // 2**20} MiB free, and the restore needs {needed // 2**20} MiB: free"
            " space, or set TOCSIN_DATA_DIR to another disk."
        )


class _GivenUpError(Exception):
    pass


async def _copied(source: Path, draft: Path, user: pwd.struct_passwd) -> None:
    """Copy the database; if that is given up, return when nothing more is written."""
    given_up = threading.Event()

    def copy_file(file: str, target: str) -> None:
        if given_up.is_set():
            raise _GivenUpError
        shutil.copy2(file, target)

    copying = asyncio.ensure_future(asyncio.to_thread(_copy, source, draft, user, copy_file))
    try:
        await asyncio.shield(copying)
    finally:
        given_up.set()
        await asyncio.wait([copying])


def _copy(source: Path, draft: Path, user: pwd.struct_passwd, copy_file: Callable[[str, str], None]) -> None:
    shutil.copytree(source, draft, symlinks=True, copy_function=copy_file, dirs_exist_ok=True)
    # Settings of the previous server by ALTER SYSTEM, or as a standby, do not apply.
    for name in ("postgresql.auto.conf", "standby.signal", "postmaster.pid"):
        (draft / name).unlink(missing_ok=True)
    (draft / "recovery.signal").touch(mode=0o600)
    if os.geteuid() == 0:
        for path in (draft, *draft.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


async def _recover(  # noqa: PLR0913, PLR0917 - what a recovery consists of
    wanted: Wanted,
    folder: Path,
    draft: Path,
    user: pwd.struct_passwd,
    programs: Path,
    finish: Callable[[str], Awaitable[None]],
) -> None:
    """Run the server on the draft until it has recovered and ended cleanly."""
    launched = await launch(programs, folder, draft, user, *_options(wanted), port=PORT)
    try:
        await _recovered(launched, wanted)
        log.info("recovered the database", seconds=round(time.time() - launched.began))
        await finish(launched.url)
    finally:
        await end(launched.process)
    status, output = launched.process.returncode, log_since(folder, launched.began)
    if not status:
        status, output = await run((programs / "initdb", "--sync-only", "-D", draft), user)
    if status:
        raise Refusal(f"The restored database could not be written: {last_words(output)}.")


def _options(wanted: Wanted) -> list[str]:
    # The log of the new timeline is archived by the server that is started later, with its own archive.
    options = [f"restore_command={wanted.fetch_command or 'false'}", "archive_mode=on", "archive_command="]
    if wanted.archive and wanted.archive.folder:
        options += [f"recovery_target_timeline={wanted.number}"]
    if wanted.to_time:
        options += [f"recovery_target_time={wanted.to_time.isoformat(' ')}", "recovery_target_action=promote"]
    return options


async def _recovered(launched: Launched, wanted: Wanted) -> None:
    """Wait until the server has recovered. It answers queries before, as a standby does."""
    logged = time.monotonic()
    try:
        await launched.answers()
    except Refusal as refusal:
        raise _explained(wanted, launched, str(refusal)) from None
    while not await has_ended(launched.process, 0.2):
        with contextlib.suppress(*DRIVER_ERRORS):
            position = await _replayed(launched.url)
            if position is None:
                return
            if time.monotonic() - logged > LOG_INTERVAL:
                logged = time.monotonic()
                log.info("recovering the database", replayed_to=position.isoformat())
    raise _explained(wanted, launched, last_words(log_since(launched.folder, launched.began)))


async def _replayed(url: str) -> datetime | None:
    """Return the time of the last transaction that was recovered; None if the recovery has ended."""
    connection = await connect(url, 10)
    try:
        found: datetime | None = await connection.fetchval(
            "select case when pg_is_in_recovery() then coalesce(pg_last_xact_replay_timestamp(), now()) end"
        )
        return found
    finally:
        await connection.close()


def _explained(wanted: Wanted, launched: Launched, said: str) -> Refusal:
    """Return the `Refusal` for a recovery that failed."""
    if wanted.to_time and NOT_REACHED in said:
        last = _LAST.search(log_since(launched.folder, launched.began))
        earlier = f"a time before {last[1]}, when its last transaction ended" if last else "an earlier time"
        return Refusal(
            f"The archive ends before {wanted.to_time.isoformat(' ')}: choose {earlier}, or omit --to-time to restore"
            " to its end."
        )
    return Refusal(f"The recovery failed: {said.rstrip('.')}.")
