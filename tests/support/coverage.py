"""After a run with coverage: which core modules the tests reach less of than they should.

`make coverage` runs it. A module below the mark needs a test, or its reason here.
"""

import sys
from pathlib import Path

from coverage import Coverage

OUTSIDE = ("cli", "demo", "__main__.py")
"""Modules and folders of the package that are not core: people notice at once if they do not work."""

MARK = 90.0
REASONS = {
    "postgres/process.py": "parts run just before a program replaces the process, or as another user",
}
"""Modules that may be below it, by their path in the package."""


def reached() -> dict[str, float]:
    """Return how much of each core module ran, in percent of its statements and branches."""
    coverage = Coverage()
    coverage.load()
    found = {}
    for path in coverage.get_data().measured_files():
        _, package, module = path.rpartition("/tocsin/")
        if package and module.split("/")[0] not in OUTSIDE:
            found[module] = coverage._analyze(path).numbers.pc_covered  # noqa: SLF001 - reports are text only
    return found


def main() -> None:
    below = {module: share for module, share in sorted(reached().items()) if share < MARK}
    for module, share in below.items():
        sys.stdout.write(
            f"{module}: {share:.1f} %: {REASONS.get(module, 'needs a test, or a reason in ' + Path(__file__).name)}\n"
        )
    sys.exit(1 if below.keys() - REASONS.keys() else 0)


if __name__ == "__main__":
    main()
