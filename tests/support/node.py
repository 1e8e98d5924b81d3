"""Node programs with their npm packages."""

import asyncio
import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.support.programs import UNREACHABLE, run

INSTALLED = Path(__file__).parents[2] / ".build/npm"
"""What `npm ci` installed, one folder for each lock file: all tests of all runs use it."""


async def installed(sources: Path, folder: Path) -> Path:
    """Copy sources to a folder, with what they need from the registry that npm is set up with."""
    missing = [name for name in ("node", "npm") if not shutil.which(name)]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    shutil.copytree(sources, folder, ignore=shutil.ignore_patterns("node_modules", "made", "dist", "*.tgz", "api.d.ts"))
    modules = await _modules(sources)
    await asyncio.to_thread(
        shutil.copytree, modules, folder / "node_modules", symlinks=True, copy_function=_link_or_copy
    )
    return folder


async def unpacked(archive: Path, modules: Path) -> Path:
    """Put a package of npm where node finds it, without asking a registry."""
    folder = modules / "tocsin-inbox"
    folder.mkdir(parents=True)
    status, told = await run(folder, "tar", "xzf", str(archive), "--strip-components=1")
    assert status == 0, told
    return folder


async def _modules(sources: Path) -> Path:
    """Return the packages of a lock file; the first test that needs them installs them."""
    named = [sources / "package.json", sources / "package-lock.json"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in named)).hexdigest()[:16]
    INSTALLED.mkdir(parents=True, exist_ok=True)
    place = INSTALLED / digest
    with (INSTALLED / f"{digest}.lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=INSTALLED) as made:
                for file in named:
                    shutil.copy(file, made)
                command = ("npm", "ci", "--ignore-scripts", "--prefer-offline")
                status, told = await run(Path(made), *command, seconds=600)
                if status and UNREACHABLE.search(told):
                    pytest.skip("npm reaches no registry")
                assert status == 0, told
                (Path(made) / "node_modules").rename(place)
    return place


def _link_or_copy(source: str, to: str) -> None:
    """Link a file, which is the same file twice, or copy it to another file system."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copy2(source, to)
