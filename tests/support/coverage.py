"""After a run with coverage: which core modules the tests reach less of than they should.

`make coverage` runs it. A module below the mark needs a test, or its reason here.
"""

import sys
from pathlib import Path

from coverage import Coverage

CORE = (
    *("events", "jobs", "worker", "fanout", "notifications", "inbox", "streams", "pubsub", "bus", "isolation"),
    *("directory", "devices", "preferences", "preference_policy", "quiet_hours", "resolutions", "retention"),
    *("nats_bus", "idempotency", "dead_letters", "explain", "strict_json", "validation", "ids", "formats"),
    *("push", "auth", "catalogue", "db", "http_client", "transfer", "api"),
)
MARK = 90.0
REASONS: dict[str, str] = {}
"""Modules that may be below it, by their path in the package."""


def reached() -> dict[str, float]:
    """Return how much of each core module ran, in percent of its statements and branches."""
    coverage = Coverage()
    coverage.load()
    found = {}
    for path in coverage.get_data().measured_files():
        _, _, module = path.rpartition("/tocsin/")
        if module and module.removesuffix(".py").split("/")[0] in CORE:
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
