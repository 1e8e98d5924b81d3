"""Backups are complete and verified, and are never there in part."""

import asyncio
import io
import json
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.backups import PROGRAMS, Archiving, archiving
from tests.support.commands import TOCSIN, refusal
from tests.support.commands import run as run_command
from tests.support.places import short_path
from tests.support.waiting import until
from tocsin.errors import Refusal
from tocsin.postgres import archive
from tocsin.postgres.backup import Backup, back_up, backups_in, remove_old, stream
from tocsin.postgres.manifest import Manifest, verify
from tocsin.postgres.restore import choose
from tocsin.postgres.supervisor import Embedded, is_served

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[Archiving]:
    with short_path() as place:
        async with archiving(place) as served:
            (place / "data/jwt-secret").write_text("a secret")
            await served.note(1)
            yield served


@pytest.fixture(scope="module")
async def kept(served: Archiving) -> Backup:
    return await served.back_up()


@pytest.fixture
def copy(kept: Backup, tmp_path: Path) -> Path:
    """A copy of a backup, to be damaged."""
    subprocess.run(["cp", "-a", kept.folder, tmp_path / "copy"], check=True)
    return tmp_path / "copy"


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".draft")]


async def test_backup_has_database_log_secrets_and_note(kept: Backup) -> None:
    assert {path.name for path in kept.folder.iterdir()} == {"database", "secrets", "backup.json"}
    assert (kept.folder / "secrets/jwt-secret").read_text() == "a secret"
    assert (kept.folder / "database/pg_wal" / kept.first_segment).exists()
    assert kept.folder.stat().st_mode & 0o777 == 0o700
    assert hidden(kept.folder.parent) == []
    await verify(PROGRAMS, kept.folder / "database")


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest(database: Path) -> Path:
    return max((database / "base").rglob("*"), key=lambda path: path.stat().st_size)


def segment(database: Path) -> Path:
    return next(path for path in sorted((database / "pg_wal").iterdir()) if path.is_file())


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a changed bit": (lambda database: flip(largest(database)), r"base/\S+ is changed"),
    "a missing file": (lambda database: largest(database).unlink(), r"base/\S+ is missing"),
    "a further file": (lambda database: (database / "base/9").write_text("9"), "base/9 is not in the manifest"),
    "a shortened file": (lambda database: largest(database).write_bytes(b""), r"base/\S+ is changed"),
    "a changed manifest": (lambda database: flip(database / "backup_manifest"), "backup_manifest: "),
    "no manifest": (lambda database: (database / "backup_manifest").unlink(), "backup_manifest: "),
    "a missing log": (lambda database: segment(database).unlink(), r"pg_wal/\w+ is missing"),
    "a changed log": (lambda database: segment(database).write_bytes(bytes(1 << 24)), "its log cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_backup_is_refused(copy: Path, damage: str) -> None:
    make, said = DAMAGES[damage]
    make(copy / "database")
    with pytest.raises(Refusal, match=f"is damaged: {said}"):
        await verify(PROGRAMS, copy / "database")


NOTES: dict[str, tuple[str, str]] = {
    "no time": (r'"ended_at": .*,', ""),
    "a garbled segment": ("0000000100000000", "00000001000000G0"),
    "an endless size": (r'"size": \d+', '"size": 1e400'),
    "no end": (r",[^,]*\Z", ""),
}


@pytest.mark.parametrize("damage", NOTES)
def test_backup_whose_note_cannot_be_read_is_refused(copy: Path, damage: str) -> None:
    note = copy / "backup.json"
    note.write_text(re.sub(*NOTES[damage], note.read_text()))
    with pytest.raises(Refusal, match=r"is not a backup: .* Move it away, or name another backup\.$"):
        choose(backups_in(copy), datetime.now(UTC))


async def test_streamed_backup_is_complete(served: Archiving, tmp_path: Path) -> None:
    with (tmp_path / "backup.tar").open("wb") as file:
        await stream(served.source, file)
    (tmp_path / "copy").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "backup.tar", "-C", tmp_path / "copy"], check=True)
    [found] = backups_in(tmp_path / "copy")
    await verify(PROGRAMS, found.folder / "database")
    assert (found.folder / "secrets/jwt-secret").read_text() == "a secret"


class Closing(io.BytesIO):
    """A stream whose reader ends after some bytes."""

    def write(self, content: Any) -> int:
        if self.tell() > 1 << 20:
            raise BrokenPipeError
        return super().write(content)


async def test_streamed_backup_ends_with_its_reader(served: Archiving) -> None:
    with pytest.raises(BrokenPipeError):
        await stream(served.source, Closing())


def test_manifest_with_another_sum_of_itself_is_refused(kept: Backup) -> None:
    content = (kept.folder / "database/backup_manifest").read_bytes()
    assert Manifest.parse(content).sums["PG_VERSION"]
    with pytest.raises(ValueError, match="its own checksum differs"):
        Manifest.parse(content.replace(b'"Size": 3,', b'"Size": 4,'))


async def test_old_backups_and_their_log_are_removed(served: Archiving) -> None:
    made = []
    for _ in range(3):
        made.append(await served.back_up("kept"))
        await served.archived()
    kept = remove_old(made[-1], 2)
    assert kept == made[1:]
    assert backups_in(served.place / "kept") == made[1:]
    assert served.archive.folder
    before = archive.segments(served.archive.folder)
    assert made[0].first_segment in before
    archive.prune(served.archive.folder, kept[0].first_segment)
    after = archive.segments(served.archive.folder)
    assert after == [name for name in before if name >= kept[0].first_segment]
    assert kept[0].first_segment in after


@pytest.mark.parametrize("keep", [1, 2])
def test_backup_just_made_is_kept_beside_those_of_a_clock_ahead(copy: Path, tmp_path: Path, keep: int) -> None:
    target, names = tmp_path / "kept", ["20260101T000000.000Z", "20260303T000000.000Z", "20260202T000000.000Z"]
    target.mkdir()
    for day, name in zip((1, 3, 2), names, strict=True):
        subprocess.run(["cp", "-a", copy, target / name], check=True)
        note = json.loads((copy / "backup.json").read_text())
        note["ended_at"] = f"2026-0{day}-0{day}T00:00:00+00:00"
        (target / name / "backup.json").write_text(json.dumps(note))
    remove_old(Backup.read(target / names[-1]), keep)
    assert [backup.folder.name for backup in backups_in(target)] == ([names[2], names[1]] if keep == 2 else [names[2]])


async def test_two_backups_into_one_folder_do_not_meet(served: Archiving) -> None:
    results = await asyncio.gather(served.back_up("both"), served.back_up("both"), return_exceptions=True)
    assert [str(each) for each in results if isinstance(each, Refusal)] == [
        f"Another backup to {served.place / 'both'} is running; wait for its end."
    ]
    assert len(backups_in(served.place / "both")) == 1


async def end_while_it_copies(served: Archiving, target: Path, number: signal.Signals, *program: str) -> None:
    """Begin a backup, and send it a signal while it copies the database. One that was faster is repeated."""
    status = 0
    while status == 0:
        shutil.rmtree(target, ignore_errors=True)
        command = await asyncio.create_subprocess_exec(
            *(*program, str(TOCSIN), "backup", str(target)),
            env={"TOCSIN_DATA_DIR": str(served.place / "data")},
            cwd=served.place,
        )
        await until(lambda: command.returncode is not None or any(target.glob(".draft-*/database")))  # noqa: B023 - awaited in this round
        with suppress(ProcessLookupError):
            command.send_signal(number)
        status = await command.wait()
    assert status == -number


async def test_backup_that_is_killed_is_none(served: Archiving) -> None:
    target = served.place / "killed"
    as_in_background = "sh", "-c", 'trap "" INT; exec "$@"', "sh"
    await end_while_it_copies(served, target, signal.SIGKILL, *as_in_background)
    assert backups_in(target) == []
    made = await served.back_up("killed")
    assert backups_in(target) == [made]
    assert hidden(target) == []


async def test_backup_that_is_stopped_leaves_nothing(served: Archiving) -> None:
    target = served.place / "stopped"
    await end_while_it_copies(served, target, signal.SIGTERM)
    assert [path.name for path in target.iterdir()] == [".lock"]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 20 MB."""
    with short_path() as place:
        (place / "disk").mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", place / "disk"], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("no file system can be mounted here")
        try:
            yield place / "disk"
        finally:
            subprocess.run(["umount", "--lazy", place / "disk"], check=True)


async def test_full_disk_of_the_target_leaves_no_backup(served: Archiving, small_disk: Path) -> None:
    free = shutil.disk_usage(small_disk).free
    with pytest.raises(Refusal, match="No space left on device"):
        await back_up(served.source, small_disk)
    assert backups_in(small_disk) == []
    assert hidden(small_disk) == []
    await until(lambda: shutil.disk_usage(small_disk).free == free)


async def test_server_that_does_not_run_is_started_for_the_backup(place: Path) -> None:
    async with Embedded(place / "data"):
        pass
    done = run_command("backup", "backups", cwd=place, TOCSIN_DATA_DIR=str(place / "data"))
    assert done.returncode == 0, done.stderr
    assert backups_in(Path(done.stdout.strip()))
    assert not is_served(place / "data")


def test_backup_names_the_files_that_are_not_in_it(served: Archiving) -> None:
    key = served.place / "apple.p8"
    key.touch()
    done = run_command(
        *("backup", "named"),
        cwd=served.place,
        TOCSIN_DATA_DIR=str(served.place / "data"),
        TOCSIN_APNS_KEY_FILE=str(key),
    )
    assert f"Not in the backup: {key} (TOCSIN_APNS_KEY_FILE" in done.stderr


def test_external_database_is_refused_with_the_page_about_it(tmp_path: Path) -> None:
    for command in (("backup", "x"), ("restore", "x")):
        said = refusal(*command, cwd=tmp_path, TOCSIN_DATABASE_URL="postgresql://tocsin@db.example/tocsin")
        assert "pgBackRest" in said
        assert "docs/operations/back-up.md" in said


def test_folder_without_a_database_is_refused(tmp_path: Path) -> None:
    said = refusal("backup", "x", cwd=tmp_path, TOCSIN_DATA_DIR=str(tmp_path / "data"))
    assert said == f"tocsin: There is no database in {tmp_path / 'data'}; set TOCSIN_DATA_DIR."
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("arguments", [(), ("x", "--stdout"), ("--stdout", "--keep", "1")])
def test_backup_takes_a_folder_or_standard_output(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert "Give a folder" in refusal("backup", *arguments, cwd=tmp_path)
