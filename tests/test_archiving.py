"""A failing archive of the log is reported in all places, loses nothing, and recovers by itself."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import structlog

from tests.support.backups import Archiving, archiving
from tests.support.database import value
from tests.support.places import short_path
from tests.support.waiting import until
from tocsin import archiving as archive_of_log
from tocsin.cli.doctor.database import check_database
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.disk_guard import DiskGuard
from tocsin.errors import Refusal
from tocsin.metrics import Metrics
from tocsin.postgres.archive import Archive
from tocsin.postgres.supervisor import Embedded
from tocsin.readiness import Readiness
from tocsin.settings import read_settings

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[Archiving]:
    with short_path() as place:
        async with archiving(place) as served:
            yield served


async def found_by_doctor(served: Archiving) -> dict[str, tuple[str, str]]:
    settings = read_settings({}, Path("/nonexistent"), data_dir=served.place / "data")
    return {each.what: (each.level, each.finding) async for each in check_database(settings)}


async def test_failing_archive_is_reported_and_loses_nothing(
    served: Archiving, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_of_log, "INTERVAL", 0.1)
    kept, url = await served.back_up(), served.server.url
    database, folder = Database(url, 2), served.place / "archive"
    await database.open()
    await served.archived()
    assert (await Readiness(database, DiskGuard(None)).answer())["problems"] == []
    assert (await found_by_doctor(served))["archive"][0] == "ok"
    folder.rename(served.place / "unmounted")
    await served.note(1)
    oldest = await value(url, "select pg_walfile_name(pg_current_wal_lsn())")
    await value(url, "select pg_switch_wal()")
    await served.note(2)
    await until(lambda: is_failing(database), 90)
    [problem] = (await Readiness(database, DiskGuard(None)).answer())["problems"]
    assert problem.startswith("log archiving fails since ")
    assert problem.endswith(f"1 segments (16 MiB) wait, the oldest is {oldest}")
    assert (await found_by_doctor(served))["archive"] == ("FAIL", problem)
    metrics = (await Metrics().text(database)).decode()
    assert "tocsin_archive_failing 1.0" in metrics
    assert "tocsin_archive_waiting 1.0" in metrics
    assert await served.back_up("while it fails")
    (served.place / "unmounted").rename(folder)
    await served.archived()
    assert (await Readiness(database, DiskGuard(None)).answer())["problems"] == []
    await database.close()
    assert await served.restore(kept, place / "data") == [1, 2]


async def is_failing(database: Database) -> bool:
    found = await archive_of_log.state(database)
    return found is not None and found.failing


async def test_database_without_archive_has_no_state(database: Database) -> None:
    assert await archive_of_log.state(database) is None


def test_command_that_hangs_is_a_problem_when_segments_wait() -> None:
    assert archive_of_log.Archiving(failing=False, waiting=1, oldest="x", since=None).problem is None
    late = archive_of_log.Archiving(failing=False, waiting=8, oldest="000000010000000000000004", since=None)
    assert late.problem == (
        "log archiving is behind: 8 segments (128 MiB) wait, the oldest is 000000010000000000000004"
    )


async def test_command_of_the_operator_gets_path_and_name(place: Path) -> None:
    (place / "kept").mkdir()
    (place / "kept").chmod(0o777)
    archive = Archive(None, f"cp '%p' {place}/kept/it\\'s-%f")
    async with Embedded(place / "data", archive) as server:
        await value(server.url, "select pg_switch_wal()")
        await until(lambda: list((place / "kept").glob("it's-0000*")))


async def test_archive_that_cannot_be_written_is_refused_at_start(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(Refusal, match=r"cannot write the archive|Not a directory"):
        await Embedded(place / "data", Archive(place / "file")).start()
    assert not (place / "data/postgres").exists()


async def test_failures_of_the_archive_are_logged_and_their_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = archive_of_log.Archiving(failing=True, waiting=3, oldest="0A", since=None)
    assert await logged(database, monkeypatch, [failing, None]) == ["log archiving failed", "log archiving works again"]


async def test_watch_of_the_archive_logs_an_unexpected_error_and_goes_on(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = archive_of_log.Archiving(failing=True, waiting=3, oldest="0A", since=None)
    found = await logged(database, monkeypatch, [ValueError("a segment of another name"), failing])
    assert found == ["work failed; it will be retried", "log archiving failed", "work recovered"]


async def logged(
    database: Database, monkeypatch: pytest.MonkeyPatch, states: list[archive_of_log.Archiving | Exception | None]
) -> list[str]:
    """Return what is logged when the archive has these states, one after the other, or asking for one fails."""
    coming = iter(states)

    async def state(_: Database) -> archive_of_log.Archiving | None:
        found = next(coming, KeyboardInterrupt())
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(archive_of_log, "state", state)
    monkeypatch.setattr(archive_of_log, "INTERVAL", 0)
    with structlog.testing.capture_logs() as lines, pytest.raises(KeyboardInterrupt):
        await archive_of_log.watch(database)
    return [line["event"] for line in lines]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"archive_dir": "/a", "archive_command": "cp %p /a/%f"}, "exclude each other"),
        ({"archive_dir": "/a", "database_url": "postgresql://x@db.example/x"}, "for the embedded PostgreSQL"),
    ],
)
def test_archive_settings_that_contradict_are_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        _ = read_settings({}, Path("/nonexistent"), **settings).archive


@pytest.mark.parametrize(
    "settings",
    [{"archive_dir": "/a$b"}, {"archive_dir": "/a'b"}, {"archive_command": "true"}, {"archive_command": "a\n%p"}],
)
def test_unusable_archive_settings_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(Refusal, match="TOCSIN_ARCHIVE_"):
        read_settings({}, Path("/nonexistent"), **settings)


async def test_state_is_unknown_to_a_role_that_may_not_ask(dba: Connection) -> None:
    assert await archive_of_log.state(dba) is None, "the server of the tests does not archive"
    undone = dba.transaction()
    await undone.start()
    try:
        await dba.execute("create role curious; grant usage on schema tocsin to curious")
        await dba.execute("revoke execute on function pg_current_wal_lsn() from public")
        await dba.execute("set local role curious")
        assert await archive_of_log.state(dba) is None
        with pytest.raises(asyncpg.InFailedSQLTransactionError):  # the statement was refused, not left out
            await dba.fetch("select 1")
    finally:
        await undone.rollback()
