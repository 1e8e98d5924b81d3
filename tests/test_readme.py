"""What the README tells a newcomer to type does what it says."""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tocsin.embedded import is_served

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TOUR = (ROOT / "README.md").read_text("utf-8").split("## A tour of five minutes")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```sh\n(.*?)```", TOUR, re.DOTALL)


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
    return {**own, "TOCSIN_DATA_DIR": str(folder / "tour"), "TOCSIN_PORT": "0", "TOCSIN_LOG_FORMAT": "json"}


@pytest.fixture
def service(environment: dict[str, str]) -> Iterator[str]:
    """The service as the first block of the tour starts it; where it answers."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {BLOCKS[0]}"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        lines = (json.loads(line) for line in running.stderr)
        yield next(line["url"] for line in lines if line["event"] == "serving")
        running.terminate()
        running.stderr.read()
        assert running.wait(20) == 0
    assert not is_served(Path(environment["TOCSIN_DATA_DIR"]))


def test_the_tour_works_as_it_stands(service: str, environment: dict[str, str]) -> None:
    script = "\necho ----\n".join(BLOCKS[1:]).replace("http://127.0.0.1:8080", service)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made, delivered, read, refused = done.stdout.split("----\n")
    assert made == ""
    assert json.loads(delivered)["state"] == "delivered"
    page, unread = (json.loads(part) for part in read.replace("}{", "}\n{").splitlines())
    [entry] = page["data"]
    assert entry["message"] == "Bernita Kilback mentioned you in a note on Jane Doe's case <br> Please have a look!"
    assert (page["pagination"]["unread"], unread["data"]) == (1, [])
    assert {error["field"] for error in json.loads(refused)["errors"]} == {
        "notify.users.1",
        "notify.users.2",
        "data.colour",
        "data.case",
        "params",
    }


async def test_the_service_ends_when_it_is_told_to(service: str, folder: Path) -> None:
    assert service.startswith("http://127.0.0.1:")
    assert await asyncio.to_thread(is_served, folder / "tour")
