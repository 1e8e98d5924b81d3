"""The commands of the README work as written."""

import asyncio
import itertools
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tocsin.postgres.supervisor import is_served

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
TOUR = (ROOT / "README.md").read_text("utf-8").split("## A tour of five minutes")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```sh\n(.*?)```", TOUR, re.DOTALL)
SHOWN = re.findall(r"```json\n(.*?)```", TOUR, re.DOTALL)
"""What the tour shows of the answers."""

_number = itertools.count()


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
    data = folder / f"tour{next(_number)}"
    return {**own, "TOCSIN_DATA_DIR": str(data), "TOCSIN_PORT": "0", "TOCSIN_LOG_FORMAT": "json"}


@pytest.fixture
def service(environment: dict[str, str]) -> Iterator[str]:
    """The service as the first block of the tour starts it; yields its URL."""
    with subprocess.Popen(
        ["sh", "-c", f"exec {BLOCKS[0]}"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        lines = (json.loads(line) for line in running.stderr)
        yield next(line["url"] for line in lines if line["event"] == "serving")
        running.terminate()
        running.stderr.read()
        assert running.wait(20) == 0
    assert not is_served(Path(environment["TOCSIN_DATA_DIR"]))


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_readme_tour_works_as_shown(service: str, environment: dict[str, str], shell: str) -> None:
    script = "\necho ----\n".join(BLOCKS[1:]).replace("http://127.0.0.1:8080", service)
    done = subprocess.run(
        [shell, "-eu", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made, *answered = done.stdout.split("----\n")
    assert made.strip() == ""
    delivered, (page, unread), refused = [
        [json.loads(line) for line in answer.splitlines() if line] for answer in answered
    ]
    assert [_normalized(answer) for answer in (*delivered, page, *refused)] == [
        _normalized(json.loads(block)) for block in SHOWN
    ]
    assert unread["data"] == []
    assert all(answer.endswith("\n") for answer in answered), "an answer runs into the prompt"


async def test_readme_service_stops_on_signal(service: str, environment: dict[str, str]) -> None:
    assert service.startswith("http://127.0.0.1:")
    assert await asyncio.to_thread(is_served, Path(environment["TOCSIN_DATA_DIR"]))


def _normalized(answer: dict[str, Any]) -> str:
    """Return an answer as text, with all ids of events and all times made the same."""
    text = re.sub(r"\b01[0-9a-f]{6}-[0-9a-f-]{27}\b", "<id>", json.dumps(answer))
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "<time>", text)
