"""The model of sizes says what is needed and what runs out first, and the documentation shows what it says."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.model import SIZES, Load, Server, plan, table

ROOT = Path(__file__).parents[2]
LOADS = st.builds(
    Load,
    users=st.integers(1, 10**8),
    events=st.integers(1, 10**9),
    recipients=st.floats(1, 1_000),
    days=st.integers(1, 3_650),
)


def test_documentation_shows_the_table_of_the_model() -> None:
    assert table(SIZES) in (ROOT / "docs/operations/scale.md").read_text("utf-8")


@given(LOADS)
def test_more_users_or_events_never_need_less(load: Load) -> None:
    for larger in (Load(2 * load.users, load.events), Load(load.users, 2 * load.events)):
        before, after = plan(Load(load.users, load.events)), plan(larger)
        for name in ("cores", "processes", "memory", "database_cores", "disk", "wal", "network", "databases"):
            assert getattr(after, name) >= getattr(before, name), name


@given(LOADS)
def test_databases_have_room_for_what_runs_out_first(load: Load) -> None:
    planned = plan(load)
    parts = [part for _, part in planned.limits]
    assert parts == sorted(parts, reverse=True)
    assert parts[0] <= planned.databases < max(parts[0], 1e-9) + 1


def test_larger_disk_makes_another_limit_the_first() -> None:
    assert plan(SIZES[-1]).limits[0][0] == "disk"
    assert plan(SIZES[-1], Server(disk=1e15)).limits[0][0] == "write-ahead log"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--users", "5"], "--users and --events belong together"),
        (["--users", "0", "--events", "5"], "all numbers must be above zero, and finite"),
        (["--users", "5", "--events", "5", "--recipients", "nan"], "all numbers must be above zero, and finite"),
    ],
)
def test_model_refuses_wrong_numbers(arguments: list[str], said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bench.model", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, said in ended.stderr) == (2, True)
