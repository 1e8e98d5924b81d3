"""Programs that tests start, and virtual environments for them."""

import asyncio
import os
import re
from pathlib import Path

import pytest

UNREACHABLE = re.compile(r"\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|ETIMEDOUT)\b")
UV = Path(__file__).parents[2] / ".uv/bin/uv"


async def run(folder: Path, *command: str, seconds: float = 300, **environment: str) -> tuple[int, str]:
    """Return a command's exit status and output."""
    running = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(running.communicate(), seconds)
    assert running.returncode is not None
    return running.returncode, output.decode()


async def locked_environment(folder: Path, lock: Path, *, seconds: float = 300) -> Path:
    """Return the programs of a virtual environment that has what a lock file lists, made in `folder`."""
    if not UV.exists():
        pytest.skip("uv is not where make puts it")
    status, output = await run(folder, str(UV), "venv", "--quiet", "--no-python-downloads", "made", seconds=seconds)
    assert status == 0, output
    programs = folder / "made/bin"
    sync = ("pip", "sync", "--quiet", "--python", str(programs / "python"), "--require-hashes", str(lock))
    status, output = await run(folder, str(UV), *sync, seconds=seconds)
    if status and (UNREACHABLE.search(output) or "error sending request" in output):
        pytest.skip("uv reaches no registry")
    assert status == 0, output
    return programs
