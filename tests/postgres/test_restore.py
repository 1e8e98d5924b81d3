"""A restore returns what was committed, whole or up to a time, or leaves the data folder as it was."""

import asyncio
import gzip
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.backups import Archiving, archived, archiving, noted, nothing, wanted
from tests.support.commands import TOCSIN, refusal
from tests.support.commands import run as run_command
from tests.support.database import value
from tests.support.events import custom, post
from tests.support.places import short_path
from tests.support.service import SECRET, Api
from tests.support.waiting import until
from tests.support.workers import work
from tocsin import invariants
from tocsin.cli.arguments import parse_moment
from tocsin.cli.doctor.database import check_database
from tocsin.errors import Refusal
from tocsin.postgres.archive import Archive, first_gap, segments
from tocsin.postgres.backup import Backup
from tocsin.postgres.restore import choose, restore
from tocsin.postgres.supervisor import Embedded
from tocsin.postgres.timelines import timeline_at
from tocsin.settings import Settings, read_settings

pytestmark = pytest.mark.processes

IDENTIFIER = slice(24, 32)
"""The bytes of a segment that say of which database it is."""


@dataclass(frozen=True)
class History:
    """A server with rows 1 to 5: two backups, after the first and the third, and the times after each row."""

    served: Archiving
    first: Backup
    second: Backup
    times: list[datetime]


@pytest.fixture(scope="module")
async def history() -> AsyncIterator[History]:
    with short_path() as place:
        async with archiving(place) as served:
            (place / "data/jwt-secret").write_text("a secret")
            times = [await served.note(1)]
            first = await served.back_up()
            times += [await served.note(2), await served.note(3)]
            await served.archived()
            second = await served.back_up()
            times += [await served.note(4), await served.note(5)]
            await served.archived()
            yield History(served, first, second, times)


@pytest.fixture
def archive_copy(history: History, place: Path) -> Path:
    """A copy of the archive, to be changed, without a segment that the server is adding."""
    archive, copy = history.served.place / "archive", place / "archive"
    shutil.copytree(archive, copy, ignore=shutil.ignore_patterns("*.new"))
    subprocess.run(["chown", "-R", "--reference", archive, copy], check=True)
    return copy


def settings_of(place: Path) -> Settings:
    return read_settings({}, Path("/nonexistent"), data_dir=place / "data")


def untouched(data: Path) -> bool:
    """Whether nothing of a restore is left, so that another server can be started."""
    return {path.name for path in data.iterdir()} <= {"tocsin.lock", "log", "run", "binaries"}


async def test_restore_returns_all_that_was_archived(history: History, place: Path) -> None:
    assert await history.served.restore(history.first, place / "data") == [1, 2, 3, 4, 5]
    assert (place / "data/jwt-secret").read_text() == "a secret"
    assert not list((place / "data").glob("postgres.new-*"))


async def test_restore_without_archive_returns_the_backup(history: History, place: Path) -> None:
    assert await history.served.restore(history.second, place / "data", command="false") == [1, 2, 3]


@pytest.mark.parametrize("rows", [2, 3, 4])
async def test_restore_to_a_time_returns_what_was_committed_before(history: History, place: Path, rows: int) -> None:
    moment = history.times[rows - 1]
    chosen = choose([history.first, history.second], moment)
    assert chosen == (history.second if rows == 4 else history.first)
    assert await history.served.restore(chosen, place / "data", moment) == list(range(1, rows + 1))


async def test_restored_server_archives_a_timeline_of_its_own(
    history: History, place: Path, archive_copy: Path
) -> None:
    await restore(wanted(history.first, history.served.archive), place / "data", nothing)
    archive = type(history.served.archive)(archive_copy)
    async with Embedded(place / "data", archive) as restored:
        await until(lambda: value(restored.url, "select archived_count > 0 from pg_stat_archiver"))
        assert (place / "archive/00000002.history.gz").exists()
        [found] = [each async for each in check_database(settings_of(place)) if each.what == "archive"]
        assert found.level == "ok", found
        await value(restored.url, "insert into noted values (6) returning 1")
        await archived(restored.url)
    await restore(wanted(history.first, archive), place / "again", nothing)
    async with Embedded(place / "again") as again:
        assert await noted(again.url) == [1, 2, 3, 4, 5, 6]


def test_time_before_the_first_backup_is_refused_with_the_earliest(history: History) -> None:
    with pytest.raises(Refusal, match="is before the end of the first backup: choose ") as refused:
        choose([history.first, history.second], history.times[0])
    earliest = str(refused.value).partition("choose ")[2].removesuffix(" or later.")
    assert parse_moment(earliest) == history.first.ended_at


def test_folder_without_a_backup_is_refused() -> None:
    with pytest.raises(Refusal, match="no complete backup"):
        choose([], None)


async def test_time_after_the_archive_is_refused_with_its_end(history: History, place: Path) -> None:
    with pytest.raises(Refusal, match="The archive ends before ") as refused:
        await history.served.restore(history.second, place / "data", datetime.now(UTC) + timedelta(days=1))
    assert untouched(place / "data")
    last = str(refused.value).partition("choose a time before ")[2].partition(", when")[0]
    end = parse_moment(last)
    assert history.second.ended_at < end < datetime.now(UTC)
    await history.served.restore(history.second, place / "data", end - timedelta(microseconds=1))


async def test_database_is_not_overwritten(history: History) -> None:
    with pytest.raises(Refusal, match="has a database, which a restore does not overwrite"):
        await history.served.restore(history.first, history.served.place / "data")
    assert await noted(history.served.server.url) == [1, 2, 3, 4, 5]


async def test_another_secret_is_not_overwritten(history: History, place: Path) -> None:
    (place / "data").mkdir()
    (place / "data/jwt-secret").write_text("another")
    with pytest.raises(Refusal, match="has another jwt-secret than the backup"):
        await history.served.restore(history.first, place / "data")
    assert (place / "data/jwt-secret").read_text() == "another"


async def test_damaged_backup_is_not_restored(history: History, place: Path) -> None:
    subprocess.run(["cp", "-a", history.first.folder, place / "copy"], check=True)
    (place / "copy/database/PG_VERSION").write_text("17\n")
    with pytest.raises(Refusal, match="is damaged: PG_VERSION is changed"):
        await history.served.restore(Backup.read(place / "copy"), place / "data")
    assert untouched(place / "data")


async def test_backup_of_another_major_version_is_refused(history: History, place: Path) -> None:
    older = Backup(history.first.folder, "17", history.first.ended_at, history.first.first_segment, 1)
    with pytest.raises(Refusal, match="was made by PostgreSQL 17, and this Tocsin has PostgreSQL 18"):
        await history.served.restore(older, place / "data")


async def test_disk_without_space_for_the_backup_is_refused(history: History, place: Path) -> None:
    large = Backup(history.first.folder, "18", history.first.ended_at, history.first.first_segment, 2**60)
    with pytest.raises(Refusal, match="MiB free, and the restore needs"):
        await history.served.restore(large, place / "data")
    assert untouched(place / "data")


async def test_archive_without_a_segment_is_refused(history: History, place: Path, archive_copy: Path) -> None:
    names = [name for name in segments(archive_copy) if name >= history.first.first_segment]
    assert first_gap(names, history.first.first_segment) is None
    (archive_copy / f"{names[1]}.gz").unlink()
    archive = type(history.served.archive)(archive_copy)
    with pytest.raises(Refusal, match=f"lacks the segment {names[1]}: "):
        await restore(wanted(history.first, archive), place / "data", nothing)
    assert untouched(place / "data")


async def test_archive_that_begins_after_the_backup_is_refused(
    history: History, place: Path, archive_copy: Path
) -> None:
    [first, missing, *_] = [name for name in segments(archive_copy) if name >= history.first.first_segment]
    for name in (first, missing):
        (archive_copy / f"{name}.gz").unlink()
    with pytest.raises(Refusal, match=f"lacks the segment {missing}: "):
        await restore(wanted(history.first, Archive(archive_copy)), place / "data", nothing)
    assert untouched(place / "data")


async def test_segment_of_another_database_is_no_end_of_the_archive(
    history: History, place: Path, archive_copy: Path
) -> None:
    [first, other, *_, last] = [name for name in segments(archive_copy) if name >= history.first.first_segment]
    content = bytearray(gzip.decompress((archive_copy / f"{other}.gz").read_bytes()))
    content[IDENTIFIER] = bytes(8)
    (archive_copy / f"{other}.gz").write_bytes(gzip.compress(content))
    with pytest.raises(
        Refusal, match=f"cannot be read after the segment {first}, although it has segments up to {last}"
    ):
        await restore(wanted(history.first, Archive(archive_copy)), place / "data", nothing)
    assert untouched(place / "data")


async def test_time_is_one_of_the_archive_as_it_was_then(history: History, place: Path, archive_copy: Path) -> None:
    archive, backups = Archive(archive_copy), [history.first, history.second]
    await restore(wanted(history.first, archive, history.times[1]), place / "data", nothing)
    async with Embedded(place / "data", archive) as restored:
        await value(restored.url, "insert into noted values (6) returning 1")
        await archived(restored.url)
    served = Archiving(place, history.served.server, archive)
    latest, former = timeline_at(archive_copy, None), timeline_at(archive_copy, history.times[3])
    assert choose(backups, history.times[3], former) == history.second
    assert await served.restore(history.first, place / "former", history.times[3]) == [1, 2, 3, 4]
    assert choose(backups, None, latest) == history.first
    assert await served.restore(history.first, place / "latest") == [1, 2, 6]
    with pytest.raises(Refusal, match=r"is not in the past of what the archive has .* Choose an older backup"):
        choose([history.second], None, latest)


async def test_damaged_segment_is_no_end_of_the_archive(history: History, place: Path, archive_copy: Path) -> None:
    names = [name for name in segments(archive_copy) if name > history.first.first_segment]
    (archive_copy / f"{names[0]}.gz").write_bytes(b"garbage")
    archive = type(history.served.archive)(archive_copy)
    said = rf"The recovery failed: .*gzip: \S+: not in gzip format; FATAL: .*{names[0]}"
    with pytest.raises(Refusal, match=said):
        await restore(wanted(history.first, archive), place / "data", nothing)
    assert untouched(place / "data")


async def test_error_after_the_recovery_leaves_the_folder_as_it_was(history: History, place: Path) -> None:
    async def fail(url: str) -> None:
        raise OSError(url)

    with pytest.raises(OSError, match="postgresql://"):
        await restore(wanted(history.first, history.served.archive), place / "data", fail)
    assert untouched(place / "data")


async def end_while_it_fetches(history: History, place: Path, number: signal.Signals) -> None:
    """Begin a restore whose command to fetch takes long, and send it a signal."""
    (waits := place / "waits").mkdir()
    command = await asyncio.create_subprocess_exec(
        *(TOCSIN, "restore", history.first.folder, "--restore-command", f"touch {waits}/%f; sleep 60"),
        env={"TOCSIN_DATA_DIR": str(place / "data")},
        cwd=place,
    )
    waits.chmod(0o777)
    await until(lambda: list(waits.iterdir()))
    command.send_signal(number)
    assert await command.wait() == -number


async def test_restore_that_is_killed_never_starts_and_can_be_repeated(history: History, place: Path) -> None:
    await end_while_it_fetches(history, place, signal.SIGKILL)
    assert list((place / "data").glob("postgres.new-*"))
    with pytest.raises(Refusal, match=r"A restore into \S+ did not end"):
        await Embedded(place / "data").start()
    assert not (place / "data/postgres").exists()
    assert await history.served.restore(history.first, place / "data") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["stopped", "terminal closed"])
async def test_restore_that_is_stopped_leaves_the_folder_as_it_was(
    history: History, place: Path, number: signal.Signals
) -> None:
    await end_while_it_fetches(history, place, number)
    assert untouched(place / "data")


async def test_restore_that_is_given_up_copies_nothing_more(
    history: History, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []

    def copy_slowly(file: str, target: str) -> None:
        copied.append(file)
        time.sleep(0.01)
        shutil.copyfile(file, target)

    monkeypatch.setattr(shutil, "copy2", copy_slowly)
    restoring = asyncio.create_task(history.served.restore(history.first, place / "data"))
    await until(lambda: copied)
    restoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restoring
    before = len(copied)
    await asyncio.sleep(0.1)
    assert len(copied) == before
    assert untouched(place / "data")


def test_time_without_an_archive_is_refused(history: History, place: Path) -> None:
    said = refusal(
        *("restore", str(history.first.folder), "--to-time", "2999-01-01 00:00:00"),
        cwd=place,
        TOCSIN_DATA_DIR=str(place / "data"),
    )
    assert "--to-time needs the archived log" in said


def test_archive_by_command_needs_the_command_that_fetches(history: History, place: Path) -> None:
    said = refusal(
        *("restore", str(history.first.folder)),
        cwd=place,
        TOCSIN_DATA_DIR=str(place / "data"),
        TOCSIN_ARCHIVE_COMMAND="cp %p /mnt/%f",
    )
    assert "give --restore-command" in said


@pytest.mark.parametrize("text", ["yesterday", "10:00", "2026-11-28", "2026-13-01 10:00"])
def test_text_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(Refusal, match="is not a time"):
        parse_moment(text)


def test_times_are_in_utc_unless_they_have_an_offset() -> None:
    assert parse_moment("2026-11-28 18:05") == datetime(2026, 11, 28, 18, 5, tzinfo=UTC)
    assert parse_moment("2026-11-28T18:05:01.5+01:00") == datetime(2026, 11, 28, 17, 5, 1, 500000, tzinfo=UTC)


async def test_clients_load_their_lists_again_after_a_restore(idle: Api, url: str, tmp_path: Path) -> None:
    await idle.people(1)
    await post(idle, custom(1))
    await work(idle)
    before = await idle.as_user(1, "GET", "/notifications")
    cursor = (await idle.as_user(1, "GET", "/notifications/changes")).json()["cursor"]
    done = run_command("restore", "--external", cwd=tmp_path, TOCSIN_DATABASE_URL=url, TOCSIN_JWT_SECRET=SECRET)
    assert done.returncode == 0, done.stderr
    changes = await idle.as_user(1, "GET", f"/notifications/changes?since={cursor}")
    assert changes.json()["resync"] is True
    same = await idle.as_user(1, "GET", "/notifications", headers={"If-None-Match": before.headers["ETag"]})
    assert same.status_code == 200
    assert same.json()["data"] == before.json()["data"]
    cursor = (await idle.as_user(1, "GET", "/notifications/changes")).json()["cursor"]
    new = (await post(idle, custom(1))).json()["id"]
    await work(idle)
    changes = await idle.as_user(1, "GET", f"/notifications/changes?since={cursor}")
    assert new in changes.text
    assert "resync" not in changes.json()
    connection = await invariants.open_session(url)
    assert [found async for found in invariants.check_rows(connection) if found] == []
    await connection.close()
