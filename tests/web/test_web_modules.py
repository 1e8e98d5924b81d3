"""Unit tests of the web modules under `node --test`."""

import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "web"
SUITES = sorted((WEB / "tests").glob("*.test.js"))


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node here")
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_node_test_suite_passes(suite: Path) -> None:
    done = subprocess.run(["node", "--test", str(suite)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert "# fail 0" in done.stdout
    assert "# pass 0" not in done.stdout
