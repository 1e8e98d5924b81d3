"""The soak finds what grows, and nothing else."""

import os
import random
import subprocess
import sys

import pytest

from bench.soak import Sample, grown

MINUTES = range(60)


def series(first: float, per_minute: float, noise: float) -> list[float]:
    wobble = random.Random(1)  # noqa: S311 - nothing secret
    return [first + per_minute * minute + wobble.uniform(-noise, noise) for minute in MINUTES]


def samples(*values: float, name: str = "table events") -> list[Sample]:
    return [Sample({("MiB", name): value}, {}) for value in values]


@pytest.mark.parametrize(
    "values",
    [
        series(100, 0, 5),
        [min(100.0, 5.0 * minute) for minute in MINUTES],  # levels off after a third of the time
        [100.0 + 400 * (minute == 50) for minute in MINUTES],  # one outlier
        series(1, 0.05, 0),  # below what is counted
        series(100, -1, 0),
    ],
)
def test_soak_accepts_what_levels_off(values: list[float]) -> None:
    assert all(claim.kept for claim in grown(samples(*values)))


@pytest.mark.parametrize("values", [series(0, 1, 0), series(80, 0.5, 2), [minute**0.5 * 20 for minute in MINUTES]])
def test_soak_finds_what_grows(values: list[float]) -> None:
    assert not all(claim.kept for claim in grown(samples(*values)))


def test_soak_does_not_judge_tables_that_keep_their_rows() -> None:
    assert all(claim.kept for claim in grown(samples(*series(0, 1, 0), name="table audit_entries")))


@pytest.mark.processes
def test_soak_shortens_every_period_of_days() -> None:
    program = (
        "import bench.short_days; from tocsin import audit, inbox, retention;"
        "print(*[text for module in (audit, inbox, retention) for text in module._SQL.values()])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "BENCH_DAY": "2"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "make_interval(secs => 270 * 2.0)" in shown
    assert "make_interval(secs => $2 * 2.0)" in shown
    assert not any(f"{unit} =>" in shown for unit in ("days", "weeks", "months")), "rows would outlast the soak"
