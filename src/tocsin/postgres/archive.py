"""The archive of the write-ahead log: how the server fills and reads it, and which segments it has."""

import itertools
import os
import pwd
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tocsin.errors import Refusal
from tocsin.postgres.process import run
from tocsin.postgres.segments import name_of, number_of, timeline_of

TIMEOUT = 60
"""Seconds after which a segment is archived although it is not full: the most that a lost disk can cost."""

DAMAGED = 200
"""The exit status for a damaged file: one above 125 ends a recovery with an error. Any other would mean that there is
no such file, which a recovery takes for the end of the archive."""

# A segment may be archived again after a crash: the same content is a success, another is a failure. A file gets its
# name when its content is on disk; `sync` of a file is its fsync.
_STORE = (
    'f="{folder}/%f.gz"; if [ -e "$f" ]; then gzip -dc "$f" | cmp -s - "%p"; else gzip -1c "%p" > "$f.new"'
    ' && sync "$f.new" && mv "$f.new" "$f" && sync "{folder}"; fi'
)
_FETCH = '[ -e "{folder}/%f.gz" ] || exit 1; gzip -dc "{folder}/%f.gz" > "%p" || exit {damaged}'
_CONFIGURATION = """
# Copies of the write-ahead log, for backups and for a restore to any time.
archive_mode = on
archive_command = '{command}'
archive_timeout = {timeout}
"""

_SEGMENT = re.compile(r"([0-9A-F]{24})\.gz")
_OF_A_SEGMENT = re.compile(r"([0-9A-F]{24})\b.*")


@dataclass(frozen=True, slots=True)
class Archive:
    """The archive that the server fills: a folder, or a command with %p and %f."""

    folder: Path | None = None
    command: str | None = None

    @property
    def configuration(self) -> str:
        """The lines of `postgresql.conf`."""
        command = self.command or _STORE.format(folder=self.folder)
        return _CONFIGURATION.format(command=command.replace("\\", "\\\\").replace("'", "''"), timeout=TIMEOUT)

    @property
    def fetch_command(self) -> str | None:
        """The command that fetches a file from the folder, for `restore_command`."""
        return _FETCH.format(folder=self.folder, damaged=DAMAGED) if self.folder else None

    async def prepare(self, user: pwd.struct_passwd) -> None:
        """Create the folder for the server's user. Raises `Refusal` if that user cannot write it."""
        if self.folder is None:
            return
        _make(self.folder, user)
        await self._refuse_closed(user, "-w", "write")

    async def refuse_unreadable(self, user: pwd.struct_passwd) -> None:
        """Raise `Refusal` if the server's user cannot read the folder."""
        await self._refuse_closed(user, "-r", "read")

    async def _refuse_closed(self, user: pwd.struct_passwd, test: str, verb: str) -> None:
        if self.folder is None:
            return
        status, _ = await run(("/bin/sh", "-c", f'[ -x "$1" ] && [ {test} "$1" ]', "sh", self.folder), user)
        if status:
            raise Refusal(
                f"The user {user.pw_name}, as whom PostgreSQL runs, cannot {verb} the archive {self.folder}: give it to"
                f" that user (chown -R {user.pw_name} {self.folder}), or set TOCSIN_ARCHIVE_DIR to another folder."
            )


def _make(folder: Path, user: pwd.struct_passwd) -> None:
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True)
        if os.geteuid() == 0:
            os.chown(folder, user.pw_uid, user.pw_gid)


def segments(folder: Path) -> list[str]:
    """Return the names of the segments in an archive, sorted. Raises `OSError`."""
    return sorted(found[1] for path in folder.iterdir() if (found := _SEGMENT.fullmatch(path.name)))


def first_gap(names: Iterable[str], first: str) -> str | None:
    """Return the first segment that is missing between two others of its timeline, from `first` on."""
    wanted = sorted(name for name in names if number_of(name) >= number_of(first))
    for before, after in itertools.pairwise(wanted):
        if timeline_of(before) == timeline_of(after) and number_of(after) != number_of(before) + 1:
            return name_of(timeline_of(before), number_of(before) + 1)
    return None


def prune(folder: Path, first: str) -> int:
    """Remove the segments before `first`, and the files about them. Return the number of removed files."""
    old = [
        path
        for path in folder.iterdir()
        if (found := _OF_A_SEGMENT.fullmatch(path.name)) and number_of(found[1]) < number_of(first)
    ]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)
