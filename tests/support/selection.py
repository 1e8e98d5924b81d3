"""Markers of tests, their order, and the allowed reasons of skips."""

import re
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]

NEEDS = ("chaos", "browser", "processes", "slow", "database")
"""What tests need, that which takes longest first. Tests without a marker take milliseconds."""

BY_FIXTURE = {"chromium": "browser", "sources": "processes", "own": "processes", "server": "database"}
"""The marker of all tests that use a fixture, directly or not."""

MAY_BE_SKIPPED = {
    r"there is no libfaketime$": "only root installs it",
    r"takes root|only root": "a developer need not be root",
    r"no file system can be mounted|lets nobody mount": "most containers mount nothing",
    r"no PostgreSQL of its own": "tests bring their own PostgreSQL 18; an older one is found where it is installed",
    r"there is no (promtool|systemd-analyze|caddy|helm|docker compose|patroni)\b": "`make parts` does not install it",
    r"there is no node\b|(node|npm|java)\b.* not installed$": "`make parts` does not install it",
    r"the clone has no history$": "the previous release is made of it, and CI may clone one commit alone",
    r"reaches no registry$": "tests of generated clients need one, which not every network has",
}
"""Reasons for which a test may be skipped where `--strict-skips` is given, and why each is no loss."""


def mark(item: pytest.Item) -> None:
    """Mark a test by its folder and its fixtures."""
    if "chaos" in item.path.parts:
        item.add_marker("chaos")
    for fixture in BY_FIXTURE.keys() & set(getattr(item, "fixturenames", ())):
        item.add_marker(BY_FIXTURE[fixture])


def weight(item: pytest.Item) -> int:
    """Return a number by which the tests that take longest come first."""
    marks = {each.name for each in item.iter_markers()}
    return next((place for place, name in enumerate(NEEDS) if name in marks), len(NEEDS))


class ByModule(LoadScopeScheduling):  # type: ignore[misc]  # the library has no types
    """Gives the tests of a module that share a fixture to one worker; otherwise each worker would make what they share.

    xdist has groups for this, which do not work with the node ids of pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return module if _has_shared_fixture(module) else nodeid


@cache
def _has_shared_fixture(module: str) -> bool:
    return 'scope="module"' in (ROOT / module).read_text("utf-8")


def is_allowed(reason: str) -> bool:
    return any(re.search(pattern, reason) for pattern in MAY_BE_SKIPPED)


class StrictSkips:
    """Fails a run in which a test was skipped for any other reason."""

    def __init__(self) -> None:
        self._refused: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple) and not is_allowed(reason := report.longrepr[2]):
            self._refused.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._refused:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self._refused:
            terminalreporter.write_line(f"May not be skipped (tests/support/selection.py): {line}", red=True)
