"""The manifest of a base backup: which files it has, with their sums, and which part of the log it needs.

This is what `pg_verifybackup` checks; that program of the wheel does not run.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tocsin.errors import Refusal
from tocsin.postgres.process import last_words, run, this_user
from tocsin.postgres.segments import name_of, number_at

NAME = "backup_manifest"

ALGORITHM = "SHA256"
"""The algorithm of the sums that backups are made with."""

MAX_SHOWN = 3
"""Maximum differences that an error names."""

_END = b'"Manifest-Checksum"'
_UNLISTED = frozenset({NAME, "postgresql.auto.conf", "recovery.signal", "standby.signal"})
"""Files that may differ from the manifest, as for `pg_verifybackup`. Those in `pg_wal` may too: the log is read."""


@dataclass(frozen=True, slots=True)
class Range:
    """A part of the log: from a position to another, such as 0/2000028."""

    timeline: int
    start: str
    end: str

    @property
    def segments(self) -> list[str]:
        """The names of the segments that contain it."""
        numbers = range(number_at(self.start), number_at(self.end) + 1)
        return [name_of(self.timeline, number) for number in numbers]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The sums of the files, and the parts of the log."""

    sums: Mapping[str, str]
    log: tuple[Range, ...]

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Read a manifest. Raises `ValueError` if it is damaged."""
        found = json.loads(content)
        if hashlib.sha256(content[: content.rindex(_END)]).hexdigest() != found["Manifest-Checksum"]:
            raise ValueError("its own checksum differs")
        sums = {each["Path"]: each["Checksum"] for each in found["Files"] if each["Checksum-Algorithm"] == ALGORITHM}
        if len(sums) != len(found["Files"]):
            raise ValueError(f"not all of its sums are {ALGORITHM}")
        return cls(sums, tuple(Range(of["Timeline"], of["Start-LSN"], of["End-LSN"]) for of in found["WAL-Ranges"]))

    def differences(self, found: Mapping[str, str]) -> list[str]:
        """Return what differs between the files and the manifest, from the sums of all files by their paths."""
        listed = _checked(found)
        differs = [
            f"{path} is {'changed' if path in listed else 'missing'}"
            for path, wanted in _checked(self.sums).items()
            if listed.get(path) != wanted
        ]
        differs += [f"{path} is not in the manifest" for path in listed.keys() - self.sums.keys()]
        segments = [name for of in self.log for name in of.segments]
        return sorted(differs) + [f"pg_wal/{name} is missing" for name in segments if f"pg_wal/{name}" not in found]


def manifest_of(folder: Path) -> Manifest:
    """Read the manifest of a base backup. Raises `Refusal`."""
    try:
        return Manifest.parse((folder / NAME).read_bytes())
    except (OSError, ValueError, KeyError) as error:
        raise damaged(folder, [f"{NAME}: {getattr(error, 'strerror', None) or error}"]) from None


async def verify(programs: Path, folder: Path) -> None:
    """Check every file of a base backup against its manifest, and read the log that it needs. Raises `Refusal`."""
    manifest = manifest_of(folder)
    if differences := manifest.differences(await asyncio.to_thread(_sums_of, folder)):
        raise damaged(folder, differences)
    for part in manifest.log:
        where = ("--timeline", str(part.timeline), "--start", part.start, "--end", part.end)
        status, output = await run(
            (programs / "pg_waldump", "--quiet", "--path", folder / "pg_wal", *where), this_user()
        )
        if status:
            raise damaged(folder, [f"its log cannot be read: {last_words(output)}"])


def damaged(place: Path | str, differences: list[str]) -> Refusal:
    """Return the `Refusal` for a backup with differences."""
    more = f" and {len(differences) - MAX_SHOWN} more" if len(differences) > MAX_SHOWN else ""
    return Refusal(f"The backup {place} is damaged: {'; '.join(differences[:MAX_SHOWN])}{more}.")


def _checked(sums: Mapping[str, str]) -> dict[str, str]:
    return {path: each for path, each in sums.items() if path not in _UNLISTED and not path.startswith("pg_wal/")}


def _sums_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): _sum_of(path) for path in folder.rglob("*") if path.is_file()}


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
