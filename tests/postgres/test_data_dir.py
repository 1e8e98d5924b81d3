"""The data folder: permissions, and what is rejected before anything is changed."""

import os
import pwd
import re
import subprocess
from pathlib import Path

import asyncpg
import pytest

from tocsin.auth.keys import own_secret
from tocsin.errors import Refusal
from tocsin.postgres.data_dir import _user_of_server
from tocsin.postgres.supervisor import Embedded, is_served

ROOT = os.geteuid() == 0


def craft(data: Path, major: str) -> None:
    """Create the files of a previous start that are checked before the server runs."""
    (data / "postgres/global").mkdir(parents=True)
    (data / "postgres/global/pg_control").touch()
    (data / "postgres/PG_VERSION").write_text(f"{major}\n")
    (data / "tocsin.lock").touch()


async def ask(url: str, query: str) -> object:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def kind_of(path: Path) -> tuple[str, int]:
    status = path.stat()
    return oct(status.st_mode & 0o777), status.st_uid


@pytest.mark.skipif(not ROOT, reason="only root starts the server as another user")
async def test_inaccessible_data_folder_is_rejected_by_name(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(Refusal, match=re.escape(f"(chmod a+x {closed})")):
        async with Embedded(closed / "data"):
            pass


async def test_data_folder_is_private(server: Embedded, folder: Path) -> None:
    data, owner = folder / "data", (folder / "data/postgres").stat().st_uid
    assert server.postmaster
    assert owner != 0
    assert kind_of(data) == (("0o710", 0) if ROOT else ("0o700", owner))
    for name in ("postgres", "postgres/base/pgsql_tmp", "run", "log"):
        assert kind_of(data / name) == ("0o700", owner), name
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        assert kind_of(data / "postgres" / name) == ("0o600", owner), name
    assert {kind_of(file) for file in (data / "log").iterdir()} == {("0o600", owner)}
    assert kind_of(data / "run/.s.PGSQL.5432") == ("0o700", owner)
    assert kind_of(data / "tocsin.lock") == ("0o600", os.geteuid())
    assert (data / "tocsin.lock").read_text() == f"{os.getpid()}\n"


async def test_second_start_on_same_data_folder_is_rejected(server: Embedded, folder: Path) -> None:
    assert is_served(folder / "data")
    for second in (Embedded(folder / "data"), server):
        with pytest.raises(Refusal, match=f"is already served by process {os.getpid()}\\.$"):
            await second.start()
    assert is_served(folder / "data")
    assert await ask(server.url, "select 1") == 1


def test_missing_data_folder_is_rejected(place: Path) -> None:
    assert not is_served(place / "data")


async def test_data_of_another_major_version_is_rejected(place: Path) -> None:
    craft(place / "data", "17")
    with pytest.raises(Refusal, match=r"^The data folder \S+ was made by PostgreSQL 17, "):
        await Embedded(place / "data").start()
    assert not is_served(place / "data")


async def test_damaged_database_is_not_reinitialized(place: Path) -> None:
    craft(place / "data", "18")
    (place / "data/postgres/PG_VERSION").unlink()
    with pytest.raises(Refusal, match="is damaged"):
        await Embedded(place / "data").start()
    assert (place / "data/postgres/global/pg_control").exists()


async def test_lock_file_symlink_is_not_followed(place: Path) -> None:
    craft(place / "data", "18")
    (place / "data/tocsin.lock").unlink()
    (place / "data/tocsin.lock").symlink_to(place / "precious")
    (place / "precious").write_text("precious")
    with pytest.raises(Refusal):
        await Embedded(place / "data").start()
    assert (place / "precious").read_text() == "precious"


async def test_path_too_long_for_a_socket_is_rejected(place: Path) -> None:
    with pytest.raises(Refusal, match=r"1 bytes too long .* TOCSIN_DATA_DIR [^.]*\.$"):
        await Embedded(of_length(place, 107)).start()
    assert list(place.iterdir()) == []


def of_length(place: Path, length: int, name: str = "") -> Path:
    """A data folder of this name, or longer, whose socket has a path of this many bytes."""
    return place / (name + "x" * (length - len(os.fsencode(place / name / "run/.s.PGSQL.5432")) - (not name)))


@pytest.mark.parametrize("name", ["a,b", "a'b", 'a"b', "a\\b", "a\nb"])
async def test_path_unusable_by_postgresql_is_rejected(place: Path, name: str) -> None:
    with pytest.raises(Refusal, match="TOCSIN_DATA_DIR"):
        await Embedded(place / name).start()
    assert list(place.iterdir()) == []


@pytest.mark.processes
async def test_longest_path_may_have_spaces_and_url_characters(place: Path) -> None:
    async with Embedded(of_length(place, 106, "ä b?&=%#+:@")) as server:
        assert await ask(server.url, "select 42") == 42
        psql = (server.binaries / "bin/psql", "-XAtc", "select 42", server.url)
        assert subprocess.run(psql, capture_output=True, check=True).stdout == b"42\n"


@pytest.mark.parametrize("name", ["log", "run"])
async def test_file_in_place_of_a_folder_is_named(place: Path, name: str) -> None:
    craft(place / "data", "18")
    os.chown(place / "data/postgres/PG_VERSION", _user_of_server(place / "data").pw_uid, -1)
    (place / "data" / name).touch()
    with pytest.raises(Refusal, match=rf"File exists; move {place}/data/{name} away\.$"):
        await Embedded(place / "data").start()


async def test_folder_with_foreign_files_is_rejected_unchanged(place: Path) -> None:
    theirs = place / "theirs"
    theirs.mkdir(mode=0o755)
    (theirs / "thesis.txt").write_text("Chapter 1")
    before = kind_of(theirs)
    with pytest.raises(Refusal, match=r"contains files of another program; .*TOCSIN_DATA_DIR"):
        await Embedded(theirs).start()
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]
    assert kind_of(theirs) == before


async def test_empty_folder_of_another_user_is_rejected_unchanged(place: Path) -> None:
    theirs = place / "theirs" if ROOT else Path("/usr")
    if ROOT:
        theirs.mkdir(mode=0o755)
        os.chown(theirs, 54321, 54321)
    before = kind_of(theirs)
    with pytest.raises(Refusal, match=r"belongs to .* TOCSIN_DATA_DIR"):
        await Embedded(theirs).start()
    assert kind_of(theirs) == before
    assert not (theirs / "tocsin.lock").exists()


@pytest.mark.processes
async def test_own_empty_folder_becomes_the_data_folder(place: Path) -> None:
    folder = place / "data"
    folder.mkdir(mode=0o755)
    (folder / "lost+found").mkdir()
    async with Embedded(folder) as server:
        assert await ask(server.url, "select 1") == 1
        assert kind_of(folder)[0] == ("0o710" if ROOT else "0o700")


async def test_inaccessible_parent_folder_is_named(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir()
    closed.chmod(0o700 if ROOT else 0o000)
    with pytest.raises(Refusal, match=re.escape(str(closed))):
        await Embedded(closed / "data").start()
    closed.chmod(0o700)


@pytest.mark.processes
@pytest.mark.skipif(not ROOT, reason="only root can give a database away")
async def test_server_runs_as_the_owner_of_the_database(place: Path) -> None:
    data, owner = place / "data", pwd.getpwnam("nobody").pw_uid
    async with Embedded(data):
        pass
    for path in (data / "postgres", *(data / "postgres").rglob("*"), *(data / "log").iterdir()):
        os.chown(path, owner, -1)  # a start in the same second has the same log file
    async with Embedded(data) as server:
        assert await ask(server.url, "select 1") == 1
        assert Path(f"/proc/{server.postmaster}").stat().st_uid == owner


@pytest.mark.processes
async def test_changed_file_modes_are_repaired_at_start(place: Path) -> None:
    async with Embedded(place / "data"):
        secret = own_secret(place / "data")
    for path in (place / "data", *(place / "data").rglob("*")):  # as Kubernetes does for an fsGroup
        path.chmod(path.stat().st_mode | (0o2070 if path.is_dir() else 0o060))
    async with Embedded(place / "data") as server:
        assert await ask(server.url, "select 1") == 1
        assert own_secret(place / "data") == secret
    assert kind_of(place / "data/jwt-secret")[0] == "0o600"
    assert kind_of(place / "data/postgres")[0] == "0o700"


@pytest.mark.processes
@pytest.mark.skipif(not ROOT, reason="only root has a server of another user")
async def test_server_user_cannot_replace_the_jwt_secret(place: Path) -> None:
    data = place / "data"
    async with Embedded(data):
        own_secret(data)
        owner = (data / "postgres").stat().st_uid
        for command in ("mv jwt-secret old", "rm -f jwt-secret", "touch new", "cat jwt-secret", "ls"):
            tried = subprocess.run(("/bin/sh", "-c", command), cwd=data, user=owner, capture_output=True, check=False)
            assert tried.returncode != 0, command
    (data / "jwt-secret").unlink()
    (data / "jwt-secret").write_text("a-secret-that-somebody-else-knows-0123456789")
    (data / "jwt-secret").chmod(0o600)
    os.chown(data / "jwt-secret", owner, -1)
    with pytest.raises(Refusal, match=r"belongs to user \d+, who can replace it"):
        own_secret(data)


@pytest.mark.processes
@pytest.mark.skipif(not ROOT, reason="only root can give a folder away")
async def test_data_folder_of_another_user_is_not_taken_over(place: Path) -> None:
    data = place / "data"
    async with Embedded(data):
        owner = (data / "postgres").stat().st_uid
    for path in (data, *data.rglob("*")):
        os.chown(path, owner, -1)
    data.chmod(0o700)
    with pytest.raises(Refusal, match=rf"belongs to \w+ and Tocsin runs as root; .*: chown root {data}\.$"):
        await Embedded(data).start()
    assert kind_of(data) == ("0o700", owner)
    os.chown(data, 0, 0)  # what it says to do
    async with Embedded(data) as server:
        assert await ask(server.url, "select 1") == 1
    assert kind_of(data) == ("0o710", 0)


@pytest.mark.processes
@pytest.mark.skipif(not ROOT, reason="only root can give a folder away")
async def test_data_folder_of_another_user_reports_how_to_restore_ownership(place: Path) -> None:
    data = place / "data"
    async with Embedded(data):
        pass
    for path in (data, *data.rglob("*")):
        os.chown(path, 0, 0)
    with pytest.raises(Refusal, match=r"belongs to root and PostgreSQL runs as \w+; give it back: chown -R"):
        await Embedded(data).start()


@pytest.mark.processes
async def test_file_system_marker_files_and_own_secret_are_accepted(place: Path) -> None:
    data = place / "data"
    data.mkdir()
    (data / ".DS_Store").touch()
    (data / "jwt-secret").write_text("a-secret-that-was-put-there-before-0123456789")
    (data / "jwt-secret").chmod(0o600)
    async with Embedded(data):
        assert own_secret(data) == "a-secret-that-was-put-there-before-0123456789"


def test_world_readable_jwt_secret_is_rejected(place: Path) -> None:
    (place / "jwt-secret").write_text("a-secret-that-everybody-knows-0123456789")
    (place / "jwt-secret").chmod(0o644)
    with pytest.raises(Refusal, match="is open to others"):
        own_secret(place)
