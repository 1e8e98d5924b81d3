"""Commands that root runs for a service of another user."""

import os
import pwd
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import TOCSIN, as_another_user, run
from tocsin.cli import owner
from tocsin.settings import Settings

pytestmark = [pytest.mark.processes, as_another_user]

USER = pwd.getpwnam("nobody")


@pytest.fixture
def data(place: Path) -> Path:
    """A data folder of a service that runs as another user, with a database in it."""
    folder = place / "data"
    folder.mkdir(mode=0o700)
    os.chown(folder, USER.pw_uid, USER.pw_gid)
    as_service("migrate", data=folder)
    return folder


def as_service(*arguments: str | Path, data: Path) -> None:
    user: dict[str, Any] = {"user": USER.pw_uid, "group": USER.pw_gid, "extra_groups": []}
    environment = {"PATH": os.defpath, "TOCSIN_DATA_DIR": str(data)}
    subprocess.run([TOCSIN, *arguments], cwd="/", env=environment, check=True, capture_output=True, timeout=100, **user)


def owners(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in (folder, *folder.rglob("*"))}


def test_commands_of_root_leave_the_data_folder_to_its_owner(data: Path, place: Path) -> None:
    (backups := place / "backups").mkdir()
    os.chown(backups, USER.pw_uid, USER.pw_gid)
    assert (
        run(
            "import",
            "-",
            given='{"user": {"id": 4, "first_name": "A", "last_name": "B"}}',
            cwd=place,
            TOCSIN_DATA_DIR=str(data),
        ).returncode
        == 0
    )
    for command in (["export"], ["backup", str(backups)], ["token", "user", "4"], ["explain", "--user", "4"]):
        done = run(*command, cwd=place, TOCSIN_DATA_DIR=str(data))
        assert (done.returncode, "nobody" in done.stderr) == (0, True), done
    (data / "postgres").rename(data / "former")
    assert run("restore", str(backups), cwd=place, TOCSIN_DATA_DIR=str(data)).returncode == 0
    assert owners(place) - {0} == owners(data) == {USER.pw_uid}
    as_service("export", data=data)


def test_file_that_the_owner_cannot_write_is_refused_with_the_owner(data: Path, place: Path) -> None:
    (place / "closed").mkdir(mode=0o700)
    done = run("backup", str(place / "closed"), cwd=place, TOCSIN_DATA_DIR=str(data))
    assert done.returncode == 1
    assert f"nobody cannot write backups into {place}/closed" in done.stderr.splitlines()[-1]
    assert owners(data) == {USER.pw_uid}


def test_root_stays_root_without_a_data_folder_of_another_user(place: Path) -> None:
    """With a database of one's own, or a folder of root, or none."""
    (theirs := place / "theirs").mkdir()
    os.chown(theirs, USER.pw_uid, USER.pw_gid)
    for settings in (
        Settings(data_dir=theirs, database_url="postgresql://127.0.0.1/x"),
        Settings(data_dir=place),
        Settings(data_dir=place / "absent"),
    ):
        owner.work_as_owner(settings)
        assert os.geteuid() == 0
