"""The chaos suite: scenarios selected by name, their time, and the table of what they found."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.chaos import ChaosRun, Outcome, table
from tests.support.processes import random_source
from tocsin_phones import Phones

PAGE = Path(__file__).parents[2] / "docs/concepts/delivery-guarantees.md"
BEGIN, END = "<!-- written by make chaos -->\n", "<!-- end -->\n"

_OUTCOMES = pytest.StashKey[list[Outcome]]()
_SHARE = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", default="", help="the names of the faults to run, separated by spaces (all)")
    parser.addoption("--minutes", type=float, default=0.0, help="for all faults together (each as often as it must)")
    parser.addoption("--write-faults", action="store_true", help="write the table into the documentation")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    scenarios = {item: mark.args[0] for item in items if (mark := item.get_closest_marker("scenario"))}
    names, minutes = str(config.getoption("faults", "")).split(), float(config.getoption("minutes", 0.0))
    if unknown := set(names) - set(scenarios.values()):
        raise pytest.UsageError(f"no such fault: {min(unknown)}; there are {', '.join(sorted(scenarios.values()))}")
    if names:
        items[:] = [item for item in items if scenarios.get(item) in names]
        scenarios = {item: name for item, name in scenarios.items() if name in names}
    elif not minutes:
        items[:] = [item for item in items if item not in scenarios or not is_long(item)]
    config.stash[_SHARE] = 60 * minutes / max(1, len(scenarios))


def is_long(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("scenario")
    return mark is not None and bool(mark.kwargs["long"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if outcomes := config.stash.get(_OUTCOMES, []):
        terminalreporter.section("faults")
        terminalreporter.write(table(outcomes))
        if config.getoption("write_faults", default=False):
            _write([each for each in outcomes if each.accepted])  # the others ended before they were compared


@pytest.fixture
async def run(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ChaosRun]:
    """A load with its ledger and its phones, for the failure of this test."""
    mark = request.node.get_closest_marker("scenario")
    config, outcome = request.config, Outcome(mark.args[1])
    config.stash.setdefault(_OUTCOMES, []).append(outcome)
    async with Phones() as phones:
        yield ChaosRun(
            outcome,
            random_source(),
            phones,
            tmp_path,
            config.stash.get(_SHARE, 0.0),
            nothing_waits=mark.kwargs["nothing_waits"],
        )


def _write(outcomes: list[Outcome]) -> None:
    """Replace the lines of these outcomes in the documentation, and leave the other lines."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    written, _, after = rest.partition(END)
    head, *lines = table(outcomes).splitlines(keepends=True)[1:]
    kept = [line for line in written.splitlines(keepends=True) if line.startswith("| ")][2:]
    by_fault = {line.split(" | ")[0]: line for line in (*kept, *lines)}
    title = table([]).splitlines(keepends=True)[0]
    made = f"As `make chaos` wrote it, on a machine with {os.cpu_count()} cores that did other work too:\n\n"
    PAGE.write_text(f"{before}{BEGIN}\n{made}{title}{head}{''.join(by_fault.values())}\n{END}{after}", "utf-8")
