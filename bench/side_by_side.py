"""Two revisions of the project side by side: the same claims measured in turn, and the ratio of their medians.

    .venv/bin/python -m bench.side_by_side HEAD~20 list_page post_event batch team push --rounds 5

The older revision is laid out in a folder of its own and runs with the same interpreter and the same packages; the
command `tocsin` is its own, wherever its package had it.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_COLUMNS = re.compile(r"\s{2,}")
_AMOUNT = re.compile(r"^-?[\d,]+(?:\.\d+)?")


def main() -> None:
    """Measure each claim in both trees in turn, and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="what to compare the working tree with")
    parser.add_argument("claims", nargs="+", help="names of scripts of this folder")
    parser.add_argument("--rounds", type=int, default=5, help="how often to measure each (default: 5)")
    given = parser.parse_args()
    with _laid_out(given.revision) as before, _environment() as python:
        for claim in given.claims:
            _compare(before, claim, given.rounds, python)
    print(f"{os.cpu_count()} processors, load averages after the run: {', '.join(f'{a:.1f}' for a in os.getloadavg())}")


@contextmanager
def _laid_out(revision: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tocsin-before-") as folder:
        archive = subprocess.run(
            ["git", "-C", _ROOT, "archive", "--format=tar", revision],
            check=True,
            capture_output=True,
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


@contextmanager
def _environment() -> Iterator[Path]:
    """Provide a Python with the packages of this one, whose command `tocsin` runs the package on its path."""
    with tempfile.TemporaryDirectory(prefix="tocsin-python-") as folder:
        ours, made = Path(sys.prefix), Path(folder)
        (made / "bin").mkdir()
        (made / "lib").symlink_to(ours / "lib")
        (made / "pyvenv.cfg").write_text((ours / "pyvenv.cfg").read_text("utf-8"), "utf-8")
        python = made / "bin/python"
        python.symlink_to(Path(sys.executable).resolve())
        command = made / "bin/tocsin"
        command.write_text(f'#!/bin/sh\nexec {python} -m tocsin "$@"\n', "utf-8")
        command.chmod(0o755)
        yield python


def _compare(before: Path, claim: str, rounds: int, python: Path) -> None:
    seen: dict[str, tuple[list[float], list[float]]] = {}
    for turn in range(rounds):
        trees = [(0, before), (1, _ROOT)]
        for which, tree in trees if turn % 2 == 0 else reversed(trees):
            for what, value in _measure(tree, claim, python).items():
                seen.setdefault(what, ([], []))[which].append(value)
    for what, (old, new) in seen.items():
        if old and new:
            ratio = statistics.median(new) / statistics.median(old)
            print(f"{claim}: {what}: before {_spread(old)}, now {_spread(new)}, ratio {ratio:.3f}", flush=True)


def _measure(tree: Path, claim: str, python: Path) -> dict[str, float]:
    """Run one round of a claim, and return its values by name."""
    run = subprocess.run(
        [python, "-m", f"bench.{claim}", "--rounds", "1"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": f"{tree / 'src'}:{tree}"},
        check=False,
        capture_output=True,
        text=True,
    )
    lines = (_COLUMNS.split(line.strip()) for line in run.stdout.splitlines())
    found = {
        cells[0]: float(amount[0].replace(",", ""))
        for cells in lines
        if len(cells) > 1 and (amount := _AMOUNT.match(cells[1]))
    }
    if not found:
        raise RuntimeError(f"{claim} measured nothing in {tree}: {run.stderr[-2000:]}")
    return found


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.4g} ({min(values):,.4g}..{max(values):,.4g})"


if __name__ == "__main__":
    main()
