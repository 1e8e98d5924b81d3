# ruff: noqa: ASYNC221, ASYNC222, ASYNC240 - a test may block: nobody else is on its loop
import asyncio
import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
import structlog

from tocsin import embedded
from tocsin.embedded import Embedded, is_served, url_of
from tocsin.errors import Refusal

ROOT = os.geteuid() == 0

SERVE = """
import asyncio, pathlib, signal, sys
import tocsin.embedded as embedded

async def main():
    if "orphan" in sys.argv:
        embedded._death_with = lambda parent: lambda: None
    server = embedded.Embedded(pathlib.Path(sys.argv[1]))
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
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
asyncio.run(main(sys.argv[1]))
"""

UNDER_UVLOOP = """
import pathlib, sys
import asyncpg, uvloop
from tocsin.embedded import Embedded

async def main():
    async with Embedded(pathlib.Path(sys.argv[1])) as server:
        connection = await asyncpg.connect(server.url)
        print(await connection.fetchval("select 'in'"))
        await connection.close()

uvloop.run(main())
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path that the server's user can pass through."""
    path = Path(tempfile.mkdtemp(prefix="tocsin-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
async def made() -> AsyncIterator[Path]:
    """A data folder with one row in it, to be copied: that is quicker than a first boot."""
    path = Path(tempfile.mkdtemp(prefix="tocsin-", dir="/tmp"))
    path.chmod(0o755)
    async with Embedded(path / "data") as server:
        await ask(server.url, "create table kept as select 42 as answer")
    yield path / "data"
    shutil.rmtree(path)


@pytest.fixture
def data(made: Path, place: Path) -> Path:
    subprocess.run(["cp", "-a", made, place], check=True)
    return place / "data"


@pytest.fixture
def children() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program that is gone, at the latest, when the test is."""
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


async def until(true: Callable[[], object], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - processes and files tell of no event
            await asyncio.sleep(0.005)


async def kept(server: Embedded) -> object:
    return await ask(server.url, "select answer from kept")


def processes_of(data: Path) -> list[int]:
    """The living processes that stand in the database's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found += [int(process.name)] if (process / "cwd").readlink() == data / "postgres" else []
        except OSError:
            continue
    return found


def kind_of(path: Path) -> tuple[str, int]:
    status = path.stat()
    return oct(status.st_mode & 0o777), status.st_uid


async def test_a_first_boot_answers_as_the_durable_utf8_database_tocsin(place: Path) -> None:
    async with Embedded(place / "data") as server:
        assert server.url == url_of(place / "data")
        row = (
            "select (current_user, current_database(), pg_encoding_to_char(encoding), datlocprovider, datlocale)::text"
        )
        assert await ask(server.url, f"{row} from pg_database where datname = current_database()") == (
            "(tocsin,tocsin,UTF8,b,C.UTF-8)"
        )
        for setting in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums", "autovacuum"):
            assert await ask(server.url, f"show {setting}") == "on", setting
        assert await ask(server.url, "show listen_addresses") == ""
        assert await ask(server.url, "show idle_in_transaction_session_timeout") == "30s"
        version = subprocess.run(
            [server.binaries / "bin/psql", "-XAtc", "show server_version_num", server.url],
            capture_output=True,
            check=True,
            text=True,
        )
        assert version.stdout.startswith("18")
    assert server.postmaster is None


async def test_what_is_written_survives_a_stop_and_a_start(data: Path) -> None:
    async with Embedded(data) as server:
        await ask(server.url, "update kept set answer = 43")
    assert processes_of(data) == []
    async with Embedded(data) as server:
        assert await kept(server) == 43


async def test_one_object_can_be_started_again(data: Path) -> None:
    server = Embedded(data)
    for _ in range(2):
        await server.start()
        assert await kept(server) == 42
        await server.stop()
        await server.stop()


async def test_a_postmaster_that_is_killed_is_started_again(data: Path) -> None:
    async with Embedded(data) as server:
        await ask(server.url, "update kept set answer = 43")
        with structlog.testing.capture_logs() as lines:
            for _ in range(2):
                first = server.postmaster
                assert first
                os.kill(first, signal.SIGKILL)
                await until(lambda first=first: server.postmaster not in {None, first})  # type: ignore[misc]
                await until_it_answers(server)
        assert await kept(server) == 43
    assert [line["log_level"] for line in lines if "died" in line["event"]] == ["error", "error"]


async def until_it_answers(server: Embedded) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await kept(server)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.01)
            else:
                return


@pytest.mark.slow
async def test_a_backend_that_does_not_notice_the_postmasters_death_does_not_hinder_the_next(data: Path) -> None:
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
        assert backend not in processes_of(data)
        with pytest.raises(asyncpg.PostgresConnectionError):
            await busy
        connection.terminate()


@pytest.mark.slow
async def test_a_killed_parent_takes_the_server_along(
    data: Path, children: Callable[..., subprocess.Popen[str]]
) -> None:
    parent = children(sys.executable, "-c", SERVE, data)
    assert parent.stdout
    postmaster = int(await asyncio.to_thread(parent.stdout.readline))
    assert postmaster in processes_of(data)
    assert is_served(data)
    parent.kill()
    parent.wait()
    await until(lambda: processes_of(data) == [])
    assert not is_served(data)
    async with Embedded(data) as server:
        assert await kept(server) == 42


@pytest.mark.slow
@pytest.mark.parametrize("postmaster_too", [False, True])
async def test_a_server_that_was_left_running_is_ended_and_not_doubled(
    data: Path, children: Callable[..., subprocess.Popen[str]], *, postmaster_too: bool
) -> None:
    parent = children(sys.executable, "-c", SERVE, data, "orphan")
    assert parent.stdout
    postmaster = int(await asyncio.to_thread(parent.stdout.readline))
    parent.kill()
    parent.wait()
    left = set(processes_of(data))
    assert postmaster in left
    if postmaster_too:
        os.kill(postmaster, signal.SIGKILL)
    async with Embedded(data) as server:
        assert await kept(server) == 42
        assert server.postmaster in processes_of(data)
        assert left.isdisjoint(processes_of(data))


async def test_a_second_start_is_refused(data: Path) -> None:
    assert not is_served(data)
    async with Embedded(data) as server:
        assert is_served(data)
        with pytest.raises(Refusal, match=f"is already served by process {os.getpid()}\\.$"):
            await Embedded(data).start()
        with pytest.raises(Refusal, match="is already served"):
            await server.start()
        assert await kept(server) == 42
    assert not is_served(data)


def test_a_folder_that_is_not_there_is_not_served(place: Path) -> None:
    assert not is_served(place / "data")


async def test_the_files_of_another_major_are_refused(data: Path) -> None:
    (data / "postgres/PG_VERSION").write_text("17\n")
    with pytest.raises(Refusal, match=r"^The data folder \S+ was made by PostgreSQL 17; "):
        await Embedded(data).start()
    assert not is_served(data)


async def test_a_database_without_its_version_is_not_made_anew(data: Path) -> None:
    (data / "postgres/PG_VERSION").unlink()
    with pytest.raises(Refusal, match="is damaged"):
        await Embedded(data).start()
    assert (data / "postgres/global/pg_control").exists()


@pytest.mark.parametrize("whose", ["of the dead", "of a bystander", "of nobody"])
async def test_a_stale_process_id_is_ignored(
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


async def test_a_zombie_of_a_former_server_is_not_waited_for(
    data: Path, children: Callable[..., subprocess.Popen[str]]
) -> None:
    zombie = children("/bin/true")
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    (data / "postgres/postmaster.pid").write_text(f"{zombie.pid}\n")
    async with Embedded(data) as server:
        assert await kept(server) == 42


async def test_only_the_user_who_runs_tocsin_gets_in(data: Path) -> None:
    if not ROOT:
        pytest.skip("only root can become another user")
    async with Embedded(data) as server:

        async def tried_by(*user: int) -> str:
            command = (sys.executable, "-c", CONNECT, server.url, *map(str, user))
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, text=True)
            return done.stdout.strip()

        assert await tried_by() == "in"
        assert await tried_by(54321) == "PermissionError"
        owner = data.stat().st_uid
        assert owner != 0
        assert await tried_by(owner) == "InvalidAuthorizationSpecificationError"


async def test_no_other_role_gets_in(data: Path) -> None:
    async with Embedded(data) as server:
        await ask(server.url, "create role other login superuser")
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="rejects"):
            await asyncpg.connect(server.url, user="other")


async def test_folders_and_files_are_closed_to_others(data: Path) -> None:
    data.chmod(0o755)
    async with Embedded(data):
        owner = data.stat().st_uid
        assert owner != 0
        for folder in ("", "postgres", "run", "log"):
            assert kind_of(data / folder) == ("0o700", owner), folder
        for file in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            assert kind_of(data / "postgres" / file) == ("0o600", owner), file
        assert {kind_of(file) for file in (data / "log").iterdir()} == {("0o600", owner)}
        assert kind_of(data / "run/.s.PGSQL.5432") == ("0o700", owner)
        assert kind_of(data / "tocsin.lock") == ("0o600", os.geteuid())
        assert (data / "tocsin.lock").read_text() == f"{os.getpid()}\n"


async def test_the_newest_ten_logs_are_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_old_logs() -> None:
        for day in range(10, 25):
            (data / f"log/postgresql-202001{day}-000000.log").touch()

    def logs() -> list[str]:
        return sorted(path.name for path in (data / "log").iterdir())

    monkeypatch.setattr(embedded, "PRUNE_EVERY", 0.05)
    for path in (data / "log").iterdir():
        path.unlink()
    make_old_logs()
    async with Embedded(data):
        newest = logs()
        assert len(newest) == 10
        assert newest[:9] == [f"postgresql-202001{day}-000000.log" for day in range(16, 25)]
        make_old_logs()
        await until(lambda: logs() == newest)


async def test_a_path_too_long_for_a_socket_is_refused(place: Path) -> None:
    longest = place / ("x" * (106 - len(os.fsencode(place / "run/.s.PGSQL.5432")) - 1))
    with pytest.raises(Refusal, match=r"1 bytes too long .* TOCSIN_DATA_DIR [^.]*\.$"):
        await Embedded(longest.with_name(longest.name + "x")).start()
    assert list(place.iterdir()) == []
    async with Embedded(longest) as server:
        assert await ask(server.url, "select 1") == 1


@pytest.mark.parametrize("name", ["a,b", "a'b", 'a"b', "a\\b", "a\nb"])
async def test_a_path_that_postgresql_can_not_take_is_refused(place: Path, name: str) -> None:
    with pytest.raises(Refusal, match="TOCSIN_DATA_DIR"):
        await Embedded(place / name).start()
    assert list(place.iterdir()) == []


async def test_a_path_may_have_spaces_and_signs_of_a_url(data: Path) -> None:
    odd = data.rename(data.with_name("ä b?&=%#+:@"))
    async with Embedded(odd) as server:
        assert await kept(server) == 42
        psql = (server.binaries / "bin/psql", "-XAtc", "select answer from kept", server.url)
        assert subprocess.run(psql, capture_output=True, check=True).stdout == b"42\n"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["parent", "initdb"])
async def test_a_first_boot_that_is_killed_leaves_nothing_in_the_way(
    place: Path, children: Callable[..., subprocess.Popen[str]], victim: str
) -> None:
    parent = children(sys.executable, "-c", SERVE, place / "data")
    await until(lambda: list(place.glob("data/postgres.new-*/base/1")))
    os.kill(parent.pid if victim == "parent" else child_of(parent.pid), signal.SIGKILL)
    assert parent.wait() != 0
    assert not (place / "data/postgres").exists()
    assert victim == "parent" or list(place.glob("data/postgres.new-*"))
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


async def test_a_folder_with_things_of_others_is_left_alone(place: Path) -> None:
    theirs = place / "theirs"
    theirs.mkdir(mode=0o755)
    (theirs / "thesis.txt").write_text("Chapter 1")
    before = kind_of(theirs)
    with pytest.raises(Refusal, match=r"holds what is not Tocsin's; .*TOCSIN_DATA_DIR"):
        await Embedded(theirs).start()
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]
    assert kind_of(theirs) == before


async def test_an_empty_folder_of_somebody_else_is_left_alone(place: Path) -> None:
    theirs = place / "theirs" if ROOT else Path("/usr")
    if ROOT:
        theirs.mkdir(mode=0o755)
        os.chown(theirs, 54321, 54321)
    before = kind_of(theirs)
    with pytest.raises(Refusal, match=r"belongs to .* TOCSIN_DATA_DIR"):
        await Embedded(theirs).start()
    assert kind_of(theirs) == before
    assert not (theirs / "tocsin.lock").exists()


async def test_an_empty_folder_of_our_own_becomes_the_data_folder(place: Path) -> None:
    folder = place / "data"
    folder.mkdir(mode=0o755)
    (folder / "lost+found").mkdir()
    async with Embedded(folder) as server:
        assert await ask(server.url, "select 1") == 1
        assert kind_of(folder)[0] == "0o700"


async def test_a_link_in_the_place_of_the_lock_is_not_followed(data: Path, place: Path) -> None:
    (data / "tocsin.lock").unlink()
    (data / "tocsin.lock").symlink_to(place / "precious")
    (place / "precious").write_text("precious")
    with pytest.raises(Refusal):
        await Embedded(data).start()
    assert (place / "precious").read_text() == "precious"


async def test_a_closed_parent_is_named(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir()
    closed.chmod(0o700 if ROOT else 0o000)
    with pytest.raises(Refusal, match=re.escape(str(closed))):
        await Embedded(closed / "data").start()
    closed.chmod(0o700)


async def test_binaries_that_the_servers_user_can_not_enter_are_copied_once(
    data: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Embedded(data).binaries.parent
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(package / "pginstall18", closed / package.name / "pginstall18")
    shutil.copytree(package.with_name(f"{package.name}.libs"), closed / f"{package.name}.libs")
    monkeypatch.setattr(embedded, "_wheel", lambda: closed / package.name)
    shutil.rmtree(data / "postgres")
    inodes = set()
    for _ in range(2):
        async with Embedded(data) as server:
            assert await ask(server.url, "select 1") == 1
            program = Path(f"/proc/{server.postmaster}/exe").readlink()
            assert program.is_relative_to(data / "binaries" if ROOT else closed)
            assert program.stat().st_uid == data.stat().st_uid
            inodes.add(program.stat().st_ino)
            assert server.binaries == closed / package.name / "pginstall18"
    assert len(inodes) == 1


@pytest.mark.slow
async def test_a_recovery_of_any_length_is_waited_for(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "TELL_EVERY", 0.5)
    server = Embedded(data)
    with structlog.testing.capture_logs() as lines:
        starting = asyncio.create_task(server.start())
        await until(lambda: server.postmaster)
        assert server.postmaster
        os.kill(server.postmaster, signal.SIGSTOP)
        await until(lambda: any("waiting" in line["event"] for line in lines))
        assert not starting.done()
        os.kill(server.postmaster, signal.SIGCONT)
        await starting
    assert await kept(server) == 42
    await server.stop()


async def test_a_start_that_is_given_up_leaves_nothing_running(data: Path) -> None:
    server = Embedded(data)
    starting = asyncio.create_task(server.start())
    await until(lambda: server.postmaster)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert processes_of(data) == []
    assert not is_served(data)


@pytest.mark.parametrize(("lost", "word"), [("global/pg_control", "control"), ("pg_wal", "pg_wal|checkpoint")])
async def test_a_server_that_can_not_start_says_why_in_one_sentence(data: Path, lost: str, word: str) -> None:
    path = data / "postgres" / lost
    for file in [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]:
        file.unlink()
    with pytest.raises(
        Refusal, match=f"^The embedded PostgreSQL ended with status .*(FATAL|PANIC|could not).*({word})"
    ):
        await Embedded(data).start()
    assert processes_of(data) == []
    assert not is_served(data)


async def test_it_is_started_in_the_main_thread_or_not_at_all(data: Path) -> None:
    raised: list[BaseException] = []

    def start() -> None:
        try:
            asyncio.run(Embedded(data).start())
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "main thread" in str(raised[0])


async def test_neither_our_environment_nor_our_terminal_reaches_the_server(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOCSIN_JWT_SECRET", "a-secret-that-the-server-has-no-use-for")
    async with Embedded(data) as server:
        assert server.postmaster
        environment = Path(f"/proc/{server.postmaster}/environ").read_bytes()
        assert b"LC_ALL=C" in environment
        assert b"TOCSIN_" not in environment
        assert os.getsid(server.postmaster) == server.postmaster


async def test_an_idle_server_takes_less_than_fifty_megabytes(data: Path) -> None:
    async with Embedded(data) as server:
        assert await kept(server) == 42
        sizes = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in processes_of(data)]
        kilobytes = [int(found[1]) for size in sizes if (found := re.search(r"^Pss: +(\d+)", size, re.MULTILINE))]
        assert len(kilobytes) > 3
        assert sum(kilobytes) < 50_000


@pytest.mark.slow
async def test_it_works_under_uvloop(data: Path) -> None:
    command = (sys.executable, "-W", "error", "-c", UNDER_UVLOOP, data)
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("in\n", "", 0)
    assert processes_of(data) == []


async def test_the_server_runs_as_whoever_has_the_folder_already(data: Path) -> None:
    owner = pwd.getpwnam("nobody").pw_uid if ROOT else os.geteuid()
    if ROOT:
        subprocess.run(["chown", "-R", str(owner), data], check=True)
    async with Embedded(data) as server:
        assert await kept(server) == 42
        assert Path(f"/proc/{server.postmaster}").stat().st_uid == owner
