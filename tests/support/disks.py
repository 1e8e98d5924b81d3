"""A file system of its own for a data folder, whose power can be cut."""

import asyncio
import fcntl
import os
import shutil
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import data_folder, kill_postgres

SIZE = 600 * 2**20

EXT4_IOC_SHUTDOWN = 0x8004587D
"""`_IOR('X', 125, __u32)`"""
WITHOUT_FLUSHING_THE_LOG = 2


@dataclass(slots=True)
class Disk:
    """A file system at `folder` in the file `image`, with a file that is never synced to disk."""

    image: Path
    folder: Path

    async def make(self) -> None:
        with self.image.open("wb") as file:
            file.truncate(SIZE)
        self.folder.mkdir()
        await run("mkfs.ext4", "-q", str(self.image))

    async def mount(self) -> None:
        await run("mount", "-o", "loop", str(self.image), str(self.folder))

    async def unmount(self, *how: str) -> None:
        await run("umount", *how, str(self.folder))

    def cut(self) -> None:
        """Discard all further writes, including those in the page cache."""
        self._unforced.write_text("not on disk")
        opened = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(opened, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING_THE_LOG))
        finally:
            os.close(opened)

    def was_cut(self) -> bool:
        """Check that data without fsync is lost."""
        return not self._unforced.exists() or not self._unforced.read_bytes()

    @property
    def _unforced(self) -> Path:
        return self.folder / "unforced"


@asynccontextmanager
async def data_disk() -> AsyncIterator[Disk]:
    """Mount a disk as a data folder; skip the test if this machine does not permit it."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("to mount a file system of one's own takes root and mkfs.ext4")
    async with data_folder() as data:
        disk = Disk(data.with_name("image"), data)
        try:
            await disk.make()
            await mount_or_skip(disk)
            yield disk
        finally:
            await kill_postgres(data)
            if data.is_mount():
                await disk.unmount("--lazy")


async def mount_or_skip(disk: Disk) -> None:
    try:
        await disk.mount()
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")


async def run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise OSError(f"{command[0]}: {said.decode().strip()}")
