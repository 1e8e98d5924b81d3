"""The embedded server: its guarantees while it runs, and its recovery."""

# ruff: noqa: ASYNC222 - a test may block: nothing else runs on its loop
import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
import structlog

from tests.support.places import short_path
from tests.support.processes import postgres_of
from tests.support.waiting import bounded, until
from tocsin.errors import Refusal
from tocsin.postgres import supervisor
from tocsin.postgres.process import last_words, run, this_user
from tocsin.postgres.supervisor import Embedded, is_served, url_of

ROOT = os.geteuid() == 0

SERVE = """
import asyncio, pathlib, signal, sys
from tocsin.postgres import process
from tocsin.postgres.supervisor import Embedded

async def main():
    if "orphan" in sys.argv:
        process._death_with = lambda parent: lambda: None
    server = Embedded(pathlib.Path(sys.argv[1]))
    await server.start()
    print(server.postmaster, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

CONNECT = """
import asyncio, os, sys
import asyncpg

async def main(url):
    try:
        connection = await asyncpg.connect(url)
        print(await connection.fetchval("select 'in'"))
        await connection.close()
    except Exception as error:
        print(type(error).__name__)

if len(sys.argv) > 2:
    os.setgroups([])
    os.setgid(int(sys.argv[3]))
    os.setuid(int(sys.argv[2]))
asyncio.run(main(sys.argv[1]))
"""

UNDER_UVLOOP = """
import pathlib, sys
import asyncpg, uvloop
from tocsin.postgres.supervisor import Embedded

async def main():
    async with Embedded(pathlib.Path(sys.argv[1])) as server:
        connection = await asyncpg.connect(server.url)
        print(await connection.fetchval("select 'in'"))
        await connection.close()

uvloop.run(main())
"""


@pytest.fixture(scope="module")
async def data() -> AsyncIterator[Path]:
    """A data folder with one row and no running server; each test leaves it in this state."""
    with short_path() as path:
        async with Embedded(path / "data") as server:
            await ask(server.url, "create table kept as select 42 as answer")
        yield path / "data"


@pytest.fixture
def copy(data: Path, place: Path) -> Path:
    """A copy of the data folder, to be damaged."""
    subprocess.run(["cp", "-a", data, place], check=True)
    return place / "data"


@pytest.fixture
def children() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program that ends with the test at the latest."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str | Path, **more: int) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **more))  # type: ignore[call-overload]
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


async def ask(url: str, query: str) -> object:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def kept(server: Embedded) -> object:
    return await ask(server.url, "select answer from kept")


async def test_first_boot_creates_a_durable_utf8_database(server: Embedded, folder: Path) -> None:
    assert server.url == url_of(folder / "data")
    row = "select (current_user, current_database(), pg_encoding_to_char(encoding), datlocprovider, datlocale)::text"
    assert await ask(server.url, f"{row} from pg_database where datname = current_database()") == (
        "(tocsin,tocsin,UTF8,b,C.UTF-8)"
    )
    for setting in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums", "autovacuum"):
        assert await ask(server.url, f"show {setting}") == "on", setting
    assert await ask(server.url, "show listen_addresses") == ""
    assert await ask(server.url, "show idle_in_transaction_session_timeout") == "30s"
    psql = (server.binaries / "bin/psql", "-XAtc", "show server_version_num", server.url)
    assert subprocess.run(psql, capture_output=True, check=True).stdout.startswith(b"18")


async def test_alter_system_cannot_turn_off_durability(server: Embedded) -> None:
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        with pytest.raises(asyncpg.PostgresError, match="ALTER SYSTEM is not allowed"):
            await ask(server.url, f"alter system set {setting} = off")


async def test_only_the_user_running_tocsin_can_connect(server: Embedded, folder: Path) -> None:
    if not ROOT:
        pytest.skip("only root can become another user")

    async def tried_by(*user: int) -> str:
        command = (sys.executable, "-c", CONNECT, server.url, *map(str, user))
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, text=True)
        return done.stdout.strip()

    owner = (folder / "data/postgres").stat().st_uid
    group = (folder / "data").stat().st_gid
    assert owner != 0
    answers = await asyncio.gather(tried_by(), tried_by(54321, 54321), tried_by(owner, group))
    assert list(answers) == ["in", "PermissionError", "InvalidAuthorizationSpecificationError"]


async def test_no_other_role_can_connect(server: Embedded) -> None:
    await ask(server.url, "create role other login superuser")
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="rejects"):
        await asyncpg.connect(server.url, user="other")
    await ask(server.url, "drop role other")


async def test_server_inherits_no_environment_and_no_terminal(server: Embedded) -> None:
    assert server.postmaster
    environment = Path(f"/proc/{server.postmaster}/environ").read_bytes()
    assert sorted(environment.rstrip(b"\0").split(b"\0")) == [b"LC_ALL=C", b"PATH=" + os.fsencode(os.defpath)]
    assert os.getsid(server.postmaster) == server.postmaster


async def test_programs_of_postgresql_do_not_ignore_interrupts() -> None:
    """A shell starts commands in the background with the interrupt ignored, which programs inherit."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, output = await run(("grep", "SigIgn", "/proc/self/status"), this_user())
    finally:
        signal.signal(signal.SIGINT, before)
    ignored = int(output.split()[1], 16)
    assert not ignored & 1 << signal.SIGINT - 1


async def test_server_starts_only_in_the_main_thread(place: Path) -> None:
    with pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(asyncio.run, Embedded(place / "data").start())
    assert list(place.iterdir()) == []


@pytest.mark.processes
async def test_data_survives_a_restart(data: Path) -> None:
    async with Embedded(data) as server:
        await ask(server.url, "create table written as select 43 as answer")
    assert server.postmaster is None
    await until(lambda: postgres_of(data) == [])
    assert not is_served(data)
    async with Embedded(data) as server:
        assert await ask(server.url, "select answer from written") == 43


@pytest.mark.processes
async def test_other_work_is_done_while_the_server_starts(data: Path) -> None:
    seen: list[int | None] = []
    server = Embedded(data, while_starting=lambda: seen.append(server.postmaster))
    async with server:
        assert seen == [server.postmaster]
        assert seen != [None]
        assert await kept(server) == 42


@pytest.mark.processes
async def test_error_while_the_server_starts_leaves_nothing_running_or_open(data: Path) -> None:
    def fail() -> None:
        raise ImportError("no such module")

    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ImportError, match="no such module"):
        await Embedded(data, while_starting=fail).start()
    await until(lambda: postgres_of(data) == [])
    assert not is_served(data)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.processes
async def test_server_object_can_be_started_again(data: Path) -> None:
    server = Embedded(data)
    for _ in range(2):
        await server.start()
        assert await kept(server) == 42
        await server.stop()
        await server.stop()


@pytest.mark.processes
async def test_killed_postmaster_is_restarted(data: Path) -> None:
    async with Embedded(data) as server:
        await ask(server.url, "create table survives as select 43 as answer")
        with structlog.testing.capture_logs() as lines:
            for _ in range(2):
                first = server.postmaster
                assert first
                os.kill(first, signal.SIGKILL)
                await until(lambda first=first: server.postmaster not in {None, first})  # type: ignore[misc]
                await until_it_answers(server)
        assert await ask(server.url, "select answer from survives") == 43
    assert [line["log_level"] for line in lines if "exited" in line["event"]] == ["error", "error"]


async def until_it_answers(server: Embedded) -> None:
    async with bounded():
        while True:
            try:
                await kept(server)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.01)
            else:
                return


@pytest.mark.processes
async def test_supervision_continues_after_an_error(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PRUNE_INTERVAL", 0.05)
    monkeypatch.setattr(supervisor, "MAX_DELAY", 0.05)
    obstacle = data / "log/postgresql-20000101-000000.log"
    async with Embedded(data) as server:
        with structlog.testing.capture_logs() as lines:
            for day in range(10, 20):
                (data / f"log/postgresql-202001{day}-000000.log").touch()
            obstacle.mkdir()  # the oldest log, and it can't be unlinked
            await until(lambda: len([line for line in lines if "it continues" in line["event"]]) >= 2)
            obstacle.rmdir()
            first = server.postmaster
            assert first
            os.kill(first, signal.SIGKILL)
            await until(lambda: server.postmaster not in {None, first})
        await until_it_answers(server)


@pytest.mark.processes
async def test_orphaned_backend_does_not_block_the_restart(data: Path) -> None:
    async with Embedded(data) as server:
        connection = await asyncpg.connect(server.url)
        backend = connection.get_server_pid()
        busy = asyncio.create_task(connection.execute("do $$ begin loop end loop; end $$"))
        await until(lambda: Path(f"/proc/{backend}/cmdline").read_text().rstrip("\0 ").endswith("DO"))
        first = server.postmaster
        assert first
        os.kill(first, signal.SIGKILL)
        await until(lambda: server.postmaster not in {None, first})
        await until_it_answers(server)
        assert backend not in postgres_of(data)
        with pytest.raises(asyncpg.PostgresConnectionError):
            await busy
        connection.terminate()


@pytest.mark.processes
async def test_server_ends_if_the_parent_is_killed(data: Path, children: Callable[..., subprocess.Popen[str]]) -> None:
    parent = children(sys.executable, "-c", SERVE, data)
    assert parent.stdout
    postmaster = int(await asyncio.to_thread(parent.stdout.readline))
    assert postmaster in postgres_of(data)
    assert is_served(data)
    parent.kill()
    parent.wait()
    await until(lambda: postgres_of(data) == [])
    assert not is_served(data)
    async with Embedded(data) as server:
        assert await kept(server) == 42


@pytest.mark.processes
@pytest.mark.parametrize("postmaster_too", [False, True])
async def test_leftover_server_is_stopped_before_start(
    data: Path, children: Callable[..., subprocess.Popen[str]], *, postmaster_too: bool
) -> None:
    parent = children(sys.executable, "-c", SERVE, data, "orphan")
    assert parent.stdout
    postmaster = int(await asyncio.to_thread(parent.stdout.readline))
    parent.kill()
    parent.wait()
    left = set(postgres_of(data))
    assert postmaster in left
    if postmaster_too:
        os.kill(postmaster, signal.SIGKILL)
    async with Embedded(data) as server:
        assert await kept(server) == 42
        assert server.postmaster in postgres_of(data)
        assert left.isdisjoint(postgres_of(data))


@pytest.mark.processes
@pytest.mark.parametrize("whose", ["of the dead", "of a bystander", "of nobody"])
async def test_stale_pid_file_is_ignored(
    data: Path, children: Callable[..., subprocess.Popen[str]], whose: str
) -> None:
    owner = (data / "postgres").stat().st_uid
    bystander = children("/bin/sleep", "1000", **({"user": owner} if ROOT else {}))
    if whose == "of the dead":
        bystander.kill()
        bystander.wait()
    pid = "" if whose == "of nobody" else f"{bystander.pid}\n{data}/postgres\n1700000000\n5432\n{data}/run\n"
    (data / "postgres/postmaster.pid").write_text(pid)
    (data / "run/.s.PGSQL.5432.lock").write_text(pid)
    async with Embedded(data) as server:
        assert await kept(server) == 42
    assert (bystander.poll() is None) == (whose != "of the dead")


@pytest.mark.processes
async def test_zombie_of_previous_server_is_not_waited_for(
    data: Path, children: Callable[..., subprocess.Popen[str]]
) -> None:
    zombie = children("/bin/true")
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    (data / "postgres/postmaster.pid").write_text(f"{zombie.pid}\n")
    async with Embedded(data) as server:
        assert await kept(server) == 42


@pytest.mark.processes
async def test_data_folder_permissions_are_restored_at_start(data: Path) -> None:
    data.chmod(0o755)
    async with Embedded(data):
        assert data.stat().st_mode & 0o777 == (0o710 if ROOT else 0o700)


@pytest.mark.processes
async def test_newest_ten_logs_are_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_old_logs() -> None:
        for day in range(10, 25):
            (data / f"log/postgresql-202001{day}-000000.log").touch()

    def logs() -> list[str]:
        return sorted(path.name for path in (data / "log").iterdir())

    monkeypatch.setattr(supervisor, "PRUNE_INTERVAL", 0.05)
    for path in (data / "log").iterdir():
        path.unlink()
    make_old_logs()
    async with Embedded(data):
        newest = logs()
        assert len(newest) == 10
        assert newest[:9] == [f"postgresql-202001{day}-000000.log" for day in range(16, 25)]
        make_old_logs()
        await until(lambda: logs() == newest)


@pytest.mark.processes
@pytest.mark.parametrize("victim", ["parent", "initdb"])
async def test_killed_first_boot_can_be_repeated(
    place: Path, children: Callable[..., subprocess.Popen[str]], victim: str
) -> None:
    parent = children(sys.executable, "-c", SERVE, place / "data")
    await until(lambda: list(place.glob("data/postgres.new-*/base/1")))
    os.kill(parent.pid if victim == "parent" else child_of(parent.pid), signal.SIGKILL)
    assert parent.wait() != 0
    assert not (place / "data/postgres").exists()
    assert victim == "initdb" or list(place.glob("data/postgres.new-*"))
    for _ in range(2):
        async with Embedded(place / "data") as server:
            assert await ask(server.url, "select 1") == 1
    assert list(place.glob("data/postgres.new-*")) == []


def child_of(parent: int) -> int:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                return int(path.parent.name)
    raise LookupError(parent)


@pytest.mark.processes
async def test_crash_recovery_of_any_length_is_waited_for(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "WARNING_INTERVAL", 0.5)

    def stop() -> None:
        assert server.postmaster
        os.kill(server.postmaster, signal.SIGSTOP)

    server = Embedded(data, while_starting=stop)
    with structlog.testing.capture_logs() as lines:
        starting = asyncio.create_task(server.start())
        await until(lambda: any("waiting" in line["event"] for line in lines))
        assert not starting.done()
        assert server.postmaster
        os.kill(server.postmaster, signal.SIGCONT)
        await starting
    assert await kept(server) == 42
    await server.stop()


@pytest.mark.processes
async def test_cancelled_start_leaves_no_process(data: Path) -> None:
    def give_up() -> None:
        starting.cancel()

    server = Embedded(data, while_starting=give_up)
    starting = asyncio.create_task(server.start())
    with pytest.raises(asyncio.CancelledError):
        await starting
    await until(lambda: postgres_of(data) == [])
    assert not is_served(data)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("lost", "word"), [("global/pg_control", "control"), ("pg_wal", "pg_wal|checkpoint"), ("base", "base/")]
)
async def test_start_with_a_damaged_database_suggests_a_restore(copy: Path, lost: str, word: str) -> None:
    path = copy / "postgres" / lost
    for file in [path] if path.is_file() else list(path.iterdir()):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    with pytest.raises(
        Refusal,
        match=f"^The embedded PostgreSQL (ended with status|does not accept) .*(FATAL|PANIC|not).*({word}).*"
        rf"\. Move {copy}/postgres away, and restore a backup by `tocsin restore`\.$",
    ):
        await Embedded(copy).start()
    await until(lambda: postgres_of(copy) == [])
    assert not is_served(copy)


@pytest.mark.processes
async def test_idle_server_uses_less_than_50_megabytes(data: Path) -> None:
    async with Embedded(data) as server:
        assert await kept(server) == 42
        sizes = []
        for pid in postgres_of(data):
            with contextlib.suppress(OSError):  # a worker has ended
                sizes.append(Path(f"/proc/{pid}/smaps_rollup").read_text())
        kilobytes = [int(found[1]) for size in sizes if (found := re.search(r"^Pss: +(\d+)", size, re.MULTILINE))]
        assert len(kilobytes) > 3
        assert sum(kilobytes) < 50_000


@pytest.mark.processes
async def test_embedded_server_works_under_uvloop(data: Path) -> None:
    command = (sys.executable, "-W", "error", "-c", UNDER_UVLOOP, data)
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("in\n", "", 0)
    await until(lambda: postgres_of(data) == [])


def test_last_words_are_the_cause_and_not_what_came_too_early() -> None:
    """While a server recovers, the supervisor tries to connect, which the server logs."""
    said = """
gzip: stdin: not in gzip format
2026-01-31 08:00:00.000 UTC [7] FATAL:  the database system is starting up
2026-01-31 08:00:00.100 UTC [8] FATAL:  the database system is not yet accepting connections
2026-01-31 08:00:00.100 UTC [8] DETAIL:  Consistent recovery state has not been yet reached.
2026-01-31 08:00:00.200 UTC [5] FATAL:  could not restore file "000000010000000000000003" from archive
2026-01-31 08:00:00.300 UTC [1] LOG:  startup process (PID 5) exited with exit code 1
"""
    assert last_words(said) == (
        'gzip: stdin: not in gzip format; FATAL:  could not restore file "000000010000000000000003" from archive'
    )
