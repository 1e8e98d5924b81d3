"""Backups and restores of a server that archives its log."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support.database import value
from tests.support.waiting import until
from tocsin.db.migrate import migrate
from tocsin.postgres.archive import Archive
from tocsin.postgres.backup import Backup, Source, back_up
from tocsin.postgres.binaries import installed
from tocsin.postgres.restore import Wanted, restore
from tocsin.postgres.supervisor import Embedded
from tocsin.postgres.timelines import timeline_at

PROGRAMS = installed() / "bin"


@dataclass(frozen=True)
class Archiving:
    """A running server with an archive, and a folder for backups."""

    place: Path
    server: Embedded
    archive: Archive

    @property
    def source(self) -> Source:
        return Source(self.server.url, self.place / "data", PROGRAMS)

    async def back_up(self, folder: str = "backups") -> Backup:
        return await back_up(self.source, self.place / folder)

    async def note(self, number: int) -> datetime:
        """Commit a row, and return the time after it."""
        await value(self.server.url, "insert into noted values ($1) returning number", number)
        after: datetime = await value(self.server.url, "select clock_timestamp()")
        return after

    async def archived(self) -> None:
        """Wait until all that was committed is in the archive."""
        await archived(self.server.url)

    async def restore(self, backup: Backup, data: Path, to_time: datetime | None = None, **more: Any) -> list[int]:
        """Restore into a data folder, start a server there, and return the rows that it has."""
        archive = None if "command" in more else self.archive
        await restore(wanted(backup, archive, to_time, **more), data, nothing)
        async with Embedded(data) as restored:
            return await noted(restored.url)


@asynccontextmanager
async def archiving(place: Path) -> AsyncIterator[Archiving]:
    archive = Archive(place / "archive")
    async with Embedded(place / "data", archive) as server:
        await migrate(server.url)
        await value(server.url, "create table noted (number int)")
        yield Archiving(place, server, archive)


def wanted(backup: Backup, archive: Archive | None, to_time: datetime | None = None, command: str = "false") -> Wanted:
    """Return what `tocsin restore` wants of a backup, with this archive or this command."""
    if archive is None or archive.folder is None:
        return Wanted(backup, None, command, to_time)
    return Wanted(backup, archive, archive.fetch_command, to_time, timeline_at(archive.folder, to_time))


async def nothing(url: str) -> None:
    """Do nothing at the end of a restore."""
    assert url


async def noted(url: str) -> list[int]:
    found: list[int] = await value(url, "select coalesce(array_agg(number order by number), '{}') from noted")
    return found


async def archived(url: str) -> None:
    """End the current segment of the log, and wait until it is archived."""
    await value(url, "select pg_logical_emit_message(true, 'tocsin', 'so that the segment is not empty')")
    wanted = await value(url, "select pg_walfile_name(pg_current_wal_lsn())")
    await value(url, "select pg_switch_wal()")
    await until(lambda: _has_archived(url, wanted))


async def _has_archived(url: str, wanted: str) -> bool:
    last: str | None = await value(url, "select substr(last_archived_wal, 1, 24) from pg_stat_archiver")
    return last is not None and last >= wanted
