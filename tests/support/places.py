"""Folders and small disks for test servers."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DISK, MEMORY = "/tmp", "/dev/shm"  # noqa: S108 - for folders that mkdtemp makes
"""Where folders are made: a new PostgreSQL starts in memory in a tenth of the time."""

PREFIX = "tocsin-"
"""With what the names of folders begin."""

ROOM = 4 * 2**30
"""Bytes that the folders of all workers may need together, with files of servers that a test fills."""


@contextmanager
def short_path() -> Iterator[Path]:
    """Make a folder whose path is short enough for a socket, and that a server's user can pass through.

    It is in memory if there is room. Its name has the id of this process.
    """
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY if _has_room(MEMORY) else DISK))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def remove_abandoned() -> None:
    """Remove the folders of processes that were killed before they could."""
    for path in (*Path(MEMORY).glob(f"{PREFIX}*-*"), *Path(DISK).glob(f"{PREFIX}*-*")):
        owner = path.name.split("-")[1]
        if owner.isdecimal() and not _runs(int(owner)):
            for mounted in (each for each in path.iterdir() if each.is_mount()):
                subprocess.run(["umount", "--lazy", mounted], check=False)
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _has_room(folder: str) -> bool:
    """Return whether a file system has room, and runs programs that are in it."""
    if not os.access(folder, os.W_OK):
        return False
    system = os.statvfs(folder)
    return system.f_bavail * system.f_frsize > ROOM and not system.f_flag & os.ST_NOEXEC


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[None]:
    """Mount a small file system on a new folder; without the right to do so, the test is skipped."""
    folder.mkdir()
    mounted = (
        not os.geteuid()
        and not subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False).returncode
    )
    if not mounted:
        pytest.skip("to mount a file system of one's own takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(path: Path, leave: int = 0) -> None:
    """Write a file until the disk is full, or until `leave` bytes are free."""
    with path.open("wb", buffering=0) as file:
        try:
            while not leave or shutil.disk_usage(path.parent).free > leave:
                file.write(b"\0" * 4096)
        except OSError:
            return
