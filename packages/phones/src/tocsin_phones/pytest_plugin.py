"""A pytest plugin: the fixture `tocsin_phones` starts the stand-ins once for all tests, in a separate process."""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tocsin_phones.serving import ENVIRONMENT

START_TIMEOUT = 30.0
"""Seconds within which the stand-ins must have started."""


@dataclass(frozen=True, slots=True)
class RunningPhones:
    """Running stand-ins: the variables to set for the service under test, and the URL of the control port."""

    environment: dict[str, str]
    url: str


@pytest.fixture(scope="session")
def tocsin_phones(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPhones]:
    """Start the stand-ins; they end with the session."""
    folder = tmp_path_factory.mktemp("tocsin-phones")
    command = [sys.executable, "-m", "tocsin_phones", "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603 - a fixed command
        try:
            environment = _environment(folder / ENVIRONMENT, process)
            yield RunningPhones(environment, environment["PHONES_URL"])
        finally:
            process.terminate()


def _environment(file: Path, process: "subprocess.Popen[bytes]") -> dict[str, str]:
    """Wait for the file of variables, and read it."""
    end = time.monotonic() + START_TIMEOUT
    while not file.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError("tocsin-phones did not start")
        time.sleep(0.05)
    words = (shlex.split(line) for line in file.read_text("utf-8").splitlines())
    return dict(word.split("=", 1) for _, word in (line for line in words if line[:1] == ["export"]))
