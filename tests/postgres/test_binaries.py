"""The PostgreSQL binaries of the wheel and their copy."""

import os
import shutil
from pathlib import Path

import pytest

from tocsin.errors import Refusal
from tocsin.postgres.binaries import installed, make_database
from tocsin.postgres.process import this_user
from tocsin.postgres.supervisor import Embedded

ROOT = os.geteuid() == 0


@pytest.mark.processes
async def test_inaccessible_binaries_are_copied_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, closed, data = installed().parent, place / "closed", place / "data"
    closed.mkdir(mode=0o700)
    shutil.copytree(package / "pginstall18", closed / package.name / "pginstall18")
    shutil.copytree(package.with_name(f"{package.name}.libs"), closed / f"{package.name}.libs")
    shutil.copy(package / "__init__.py", closed / package.name)
    monkeypatch.syspath_prepend(closed)
    inodes = set()
    for _ in range(2):
        async with Embedded(data) as server:
            program = Path(f"/proc/{server.postmaster}/exe").readlink()
            assert program.is_relative_to(data / "binaries" if ROOT else closed)
            assert program.stat().st_uid == (data / "postgres").stat().st_uid
            inodes.add(program.stat().st_ino)
            assert server.binaries == closed / package.name / "pginstall18"
    assert len(inodes) == 1


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
