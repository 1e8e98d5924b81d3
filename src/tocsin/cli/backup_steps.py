"""What `tocsin backup`, `restore` and `upgrade` do."""

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

from tocsin import inbox
from tocsin.attribute_docs import docstring_of
from tocsin.cli.terminal import say, writing
from tocsin.db import migrate
from tocsin.db.connections import connect
from tocsin.errors import Refusal
from tocsin.postgres import archive
from tocsin.postgres.backup import SECRET_NAMES, Backup, Source, back_up, backups_in, remove_old, stream
from tocsin.postgres.binaries import installed
from tocsin.postgres.restore import Wanted, choose
from tocsin.postgres.restore import restore as restore_backup
from tocsin.postgres.segments import number_of
from tocsin.postgres.timelines import timeline_at
from tocsin.postgres.upgrade import upgrade as upgrade_database
from tocsin.settings import PREFIX, Settings
from tocsin.store import embedded_server, patiently

EXTERNAL = (
    f"{PREFIX}DATABASE_URL is set: back up and restore your own PostgreSQL with its own tools, such as pgBackRest or"
    " Barman (docs/operations/back-up.md)."
)


async def make_backup(settings: Settings, folder: Path | None, keep: int | None) -> None:
    """Back up into a folder, or to standard output; then remove all but `keep` backups. Print the result."""
    _refuse_external(settings)
    async with _source(settings) as source:
        if folder is None:
            with writing():
                await stream(source, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            made = None
        else:
            made = await back_up(source, folder)
    _report(settings, made)
    if made and keep is not None:
        _remove_old(settings, made, keep)


async def restore(settings: Settings, folder: Path | None, moment: datetime | None, command: str | None) -> None:
    """Restore a backup, and the archived log up to a moment, which `command` fetches if it is given."""
    _refuse_external(settings)
    if folder is None:
        raise Refusal("Give the folder of a backup, or of several.")
    fetch = command or _fetch_command(settings)
    archived = None if command else settings.archive
    timeline = timeline_at(archived.folder, moment) if archived and archived.folder else None
    chosen = choose(backups_in(folder), moment, timeline)
    if moment and fetch is None:
        raise Refusal(f"--to-time needs the archived log: set {PREFIX}ARCHIVE_DIR, or give --restore-command.")
    say(f"Restoring {chosen.folder} into {settings.data_dir}.", err=True)
    if fetch is None:
        say(
            f"Without {PREFIX}ARCHIVE_DIR, what came after {chosen.ended_at:%Y-%m-%d %H:%M:%S} UTC is left out.",
            err=True,
        )
    wanted = Wanted(chosen, archived, fetch, moment, timeline)
    await restore_backup(wanted, settings.data_dir.resolve(), _finish)
    say("Restored. Start `tocsin serve`, and make a new backup.", err=True)


async def finish_external(settings: Settings, folder: Path | None) -> None:
    """Finish the restore of the configured PostgreSQL. Raises `Refusal` if none is configured, or for a folder."""
    if folder or settings.own_database_url is None:
        raise Refusal(f"--external is for {PREFIX}DATABASE_URL, and takes no folder.")
    await _finish(settings.own_database_url)
    say("Clients load their lists again.", err=True)


async def upgrade(settings: Settings) -> None:
    """Upgrade the embedded database, and print the folder of the old one."""
    if settings.database_url is not None:
        raise Refusal(f"{PREFIX}DATABASE_URL is set: upgrade your own PostgreSQL with its own tools.")
    kept = await upgrade_database(settings.data_dir.resolve(), _migrate)
    say(f"Upgraded. The old database is kept in {kept}: delete it when the service has run well.", err=True)


async def _finish(url: str) -> None:
    """Migrate the schema, and let clients load their lists: what they saw last may be lost."""
    await migrate.migrate(url)
    connection = await connect(url)
    try:
        await inbox.outdate_cursors(connection)
    finally:
        await connection.close()


def _refuse_external(settings: Settings) -> None:
    if settings.database_url is not None:
        raise Refusal(EXTERNAL)


@asynccontextmanager
async def _source(settings: Settings) -> AsyncIterator[Source]:
    """Yield the running server, or start it for the duration of the block."""
    async with embedded_server(settings) as url:
        await patiently(lambda: _connect(url))  # the server may be starting
        yield Source(url, settings.data_dir, installed() / "bin")


async def _connect(url: str) -> None:
    await (await connect(url)).close()


def _fetch_command(settings: Settings) -> str | None:
    """Return the command that fetches the archived log. Raises `Refusal` if only the operator knows it."""
    if settings.archive_command:
        raise Refusal(
            f"With {PREFIX}ARCHIVE_COMMAND, give --restore-command, such as 'cp /mnt/archive/%f %p'; 'false' restores"
            " the backup without the archived log."
        )
    return settings.archive.fetch_command if settings.archive else None


def _report(settings: Settings, made: Backup | None) -> None:
    """Print what was made, and which files the settings name that are not in it."""
    if made:
        say(str(made.folder))
        say(f"{made.size // 2**20} MiB of files, verified.", err=True)
    for line in _not_included(settings):
        say(line, err=True)


def _not_included(settings: Settings) -> Iterator[str]:
    for name in Settings.model_fields:
        value = getattr(settings, name)
        paths = value if isinstance(value, tuple) else (value,)
        for path in paths:
            is_file = isinstance(path, Path) and name not in {"data_dir", "archive_dir"}
            if is_file and not _is_in_backup(settings, path):
                yield f"Not in the backup: {path} ({PREFIX}{name.upper()}, {docstring_of(Settings, name)})."


def _is_in_backup(settings: Settings, path: Path) -> bool:
    return path.resolve().parent == settings.data_dir.resolve() and path.name in SECRET_NAMES


def _remove_old(settings: Settings, made: Backup, keep: int) -> None:
    kept = remove_old(made, keep)
    removed = 0
    if settings.archive_dir:
        removed = archive.prune(
            settings.archive_dir, min(kept, key=lambda each: number_of(each.first_segment)).first_segment
        )
    say(f"Backups kept: {len(kept)}; files of the archive removed: {removed}.", err=True)


async def _migrate(url: str) -> None:
    await migrate.migrate(url)
