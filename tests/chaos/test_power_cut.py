"""What a 202 promised outlives a power cut, which throws away all that was not forced to the disk.

To kill processes proves nothing of the kind: what they wrote stays with the kernel. So the data folder is a file system
of its own, in a file, and is shut down under the running service as if its power were cut.
"""

import asyncio
import fcntl
import os
import shutil
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.ledger import Ledger, Load, Population, compare, compare_pages, drained
from tests.support.processes import Program, data_folder, kill_postgres, random_source
from tests.support.properties import rounds
from tocsin.postgres.supervisor import url_of

ROUNDS = rounds(3, soak=20)
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


@pytest.fixture
async def disk() -> AsyncIterator[Disk]:
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


async def test_accepted_events_survive_power_cuts(disk: Disk) -> None:
    dice = random_source()
    population, ledger = Population.of(dice), Ledger()
    async with Program(disk.folder, "serve") as service:
        await population.fill(url_of(disk.folder))
        async with Load(ledger, population, dice, lambda: service.address) as load:
            for _ in range(ROUNDS):
                await load.more(dice.randint(100, 1000))
                disk.cut()
                await asyncio.sleep(dice.uniform(0, 0.5))
                await service.kill()
                await kill_postgres(disk.folder)
                await disk.unmount()
                await disk.mount()
                assert disk.was_cut()
                await service.start()
            await load.more(100)
        await drained(url_of(disk.folder))
        await compare(ledger, population, url_of(disk.folder))
        await compare_pages(ledger, population, url_of(disk.folder), service.address)
        assert ledger.unsure
        assert "500" not in ledger.answers
