"""The command line as users type it."""

import os
import subprocess
import sys
from pathlib import Path

TOCSIN = str(Path(sys.executable).with_name("tocsin"))


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
    return subprocess.run(
        [TOCSIN, *arguments],
        cwd=cwd,
        env={**own, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refusal(*arguments: str, cwd: Path, **environment: str) -> str:
    """Return the one-sentence error of a command."""
    done = run(*arguments, cwd=cwd, **environment)
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("tocsin: ")
    assert "Traceback" not in done.stderr
    return last
