"""Node programs with their npm packages."""

import shutil
from pathlib import Path

import pytest

from tests.support.programs import UNREACHABLE, run


async def installed(sources: Path, folder: Path) -> Path:
    """Copy sources to a folder, with what they need from the registry that npm is set up with."""
    missing = [name for name in ("node", "npm") if not shutil.which(name)]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    shutil.copytree(sources, folder, ignore=shutil.ignore_patterns("node_modules", "made", "dist", "*.tgz", "api.d.ts"))
    status, told = await run(folder, "npm", "ci", "--ignore-scripts", "--prefer-offline")
    if status and UNREACHABLE.search(told):
        pytest.skip("npm reaches no registry")
    assert status == 0, told
    return folder


async def unpacked(archive: Path, modules: Path) -> Path:
    """Put a package of npm where node finds it, without asking a registry."""
    folder = modules / "tocsin-inbox"
    folder.mkdir(parents=True)
    status, told = await run(folder, "tar", "xzf", str(archive), "--strip-components=1")
    assert status == 0, told
    return folder
