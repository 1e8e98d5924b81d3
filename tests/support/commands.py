"""The command line as users type it."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

TOCSIN = str(Path(sys.executable).with_name("tocsin"))

as_another_user = pytest.mark.skipif(
    os.geteuid() != 0
    or not all(
        path.stat().st_mode & 0o001 for path in (*Path(TOCSIN).parents, *Path(sys.executable).resolve().parents)
    ),
    reason="only root, and outside of its home folder, can start tocsin as another user",
)

_TIMEOUT = 120.0
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "__main__",
        *("tocsin.cli.commands", "tocsin.cli.backup_steps", "tocsin.cli.config", "tocsin.cli.doctor"),
        *("tocsin.cli.send", "tocsin.cli.transfer", "tocsin.serve"),
    ]
)


def run(*arguments: str, cwd: Path, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, forked from one that has loaded the modules already.

    `given` is its standard input. Loading the modules takes longer than most commands.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")} | environment
    with TemporaryDirectory() as place:
        streams = [Path(place) / name for name in ("in", "out", "err")]
        streams[0].write_text(given, "utf-8")
        process = _FORKS.Process(target=_command, args=(arguments, str(cwd), variables, [*map(str, streams)]))
        process.start()
        process.join(_TIMEOUT)
        status = process.exitcode
        if status is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([TOCSIN, *arguments], _TIMEOUT)
        process.close()
        out, err = (stream.read_text("utf-8") for stream in streams[1:])
    return subprocess.CompletedProcess([TOCSIN, *arguments], status, out, err)


def run_installed(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
    return subprocess.run(
        [TOCSIN, *arguments],
        cwd=cwd,
        env={**own, **environment},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
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


def _command(arguments: Sequence[str], folder: str, variables: Mapping[str, str], streams: Sequence[str]) -> None:
    from tocsin.cli.commands import main

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for number, (path, flags) in enumerate(zip(streams, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)):
        opened = os.open(path, flags | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    # The objects of the first process may be closed or have another encoding.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the process ends
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the process ends
    sys.stderr = open(2, "w", 1, encoding="utf-8", closefd=False)  # noqa: SIM115 - the same
    sys.argv[:] = [TOCSIN, *arguments]
    main()
