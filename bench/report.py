"""Runs the benchmarks, and writes what they found into docs/benchmarks.md, with a chart.

Each runs in a process of its own. A benchmark that fails ends the run, and the page stays as it is. Benchmarks that are
not run keep their lines, with the day and the machine of their run.
"""

import argparse
import datetime as dt
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from bench.measure import RESULTS, Claim
from tocsin import __version__
from tocsin.postgres.binaries import installed

ROOT = Path(__file__).parent.parent
PAGE, CHART, FIGURES = (
    ROOT / name for name in ("docs/benchmarks.md", "docs/assets/benchmarks.svg", "bench/figures.json")
)

NAMES = (
    *("list_page", "limits", "list_deep", "post_event", "batch", "unchanged", "read_all", "imports", "team", "visible"),
    *(
        "large_import",
        "memory",
        "start",
        "streams",
        "transport",
        "push",
        "handed_over",
        "announcement",
        "fanout_devices",
        "inbox_page",
        "mark_one",
        "peers",
    ),
)

PAGE_TEXT = """# What was measured

`make bench` wrote this page. [Benchmarks](../bench/README.md) explains each line and how to repeat it. The ratio is the
claim: both sides were measured in turn, in the same run, on the same machine. A machine is not as fast on each day:
compare amounts of one day only.

{about}

![How many times better than its goal each figure is](assets/benchmarks.svg)

| benchmark | what | measured | reference | ratio | goal | kept |
| --- | --- | --- | --- | --- | --- | --- |
{rows}
"""

SVG_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="12"
 font-family="sans-serif" role="img" aria-label="How many times better than its goal each figure is">
<style>text{{fill:#333}}@media (prefers-color-scheme:dark){{text{{fill:#ddd}}}}</style>"""


@dataclass(frozen=True, slots=True)
class Run:
    """What a benchmark found, and what that depends on."""

    about: Sequence[str]
    claims: Sequence[Claim]


Found = Mapping[str, Run]


_LABEL, _BAR, _ROW, _MOST = 430, 300, 22, 3.0
"""Pixels for the names, for a bar of `_MOST` goals, and between two rows."""


def measure(name: str, *arguments: str) -> list[Claim]:
    """Run a benchmark and return its claims. Raises `CalledProcessError`."""
    with tempfile.NamedTemporaryFile(prefix="tocsin-bench-") as results:
        print(f"\n{name}", flush=True)
        command = (sys.executable, "-m", f"bench.{name}", *arguments)
        subprocess.run(command, cwd=ROOT, env={**os.environ, RESULTS: results.name}, check=True)
        return [Claim(**claim) for claim in json.load(results)]


def page_of(found: Found) -> str:
    """Return the page. The machine of most benchmarks comes first, then others with the names of theirs."""
    rows = [
        f"| [{name}](../bench/{_file(name)}) | {' | '.join(cell.strip() for cell in claim.cells())} |"
        for name, run in found.items()
        for claim in run.claims
    ]
    names: dict[tuple[str, ...], list[str]] = {}
    for name, run in found.items():
        names.setdefault(tuple(run.about), []).append(f"`{name}`")
    first, *others = sorted(names, key=lambda about: -len(names[about]))
    lines = [*first, *(f"{', '.join(names[about])}: {'; '.join(about)}" for about in others)]
    return PAGE_TEXT.format(about="\n".join(f"- {line}" for line in lines), rows="\n".join(rows))


def load() -> dict[str, Run]:
    """Return what earlier runs found."""
    stored = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
    return {name: Run(run["about"], [Claim(**claim) for claim in run["claims"]]) for name, run in stored.items()}


def store(found: Found) -> None:
    """Write the page, the chart and the figures for the next run."""
    ordered = {name: found[name] for name in (*NAMES, *found) if name in found}
    PAGE.write_text(page_of(ordered), "utf-8")
    CHART.write_text(chart_of(ordered), "utf-8")
    FIGURES.write_text(json.dumps({name: asdict(run) for name, run in ordered.items()}, indent=1) + "\n", "utf-8")


def _file(name: str) -> str:
    return f"{name}.py" if (ROOT / f"bench/{name}.py").exists() else name


def chart_of(found: Found) -> str:
    """Return a picture of all claims with a goal: how many times better than the goal each is."""
    rows = [(claim, claim.times_goal) for run in found.values() for claim in run.claims if claim.times_goal is not None]
    height = _ROW * (len(rows) + 2)
    goal = _LABEL + _BAR / _MOST
    parts = [
        SVG_HEAD.format(width=_LABEL + _BAR + 60, height=height),
        f'<text x="{goal}" y="14" text-anchor="middle">goal</text>',
    ]
    for number, (claim, times) in enumerate(rows, 1):
        y, colour = number * _ROW, "#3f51b5" if claim.kept else "#c62828"
        width = _BAR * min(times, _MOST) / _MOST
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(claim.what.strip()[:70])}</text>',
            f'<rect x="{_LABEL}" y="{y + 3}" width="{width:.1f}" height="14" fill="{colour}"/>',
            f'<text x="{_LABEL + width + 6:.1f}" y="{y + 14}">{times:.2f}</text>',
        ]
    parts.append(f'<line x1="{goal}" x2="{goal}" y1="{_ROW}" y2="{height - _ROW}" stroke="#888" stroke-dasharray="3"/>')
    return "\n".join([*parts, "</svg>", ""])


def machine() -> list[str]:
    """Return what the figures depend on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text("utf-8"))
    processors = f"{os.cpu_count()} processors{f' ({model[1]})' if model else ''}"
    memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"
    said = subprocess.run(
        (installed() / "bin/postgres", "--version"), capture_output=True, text=True, check=True
    ).stdout
    versions = f"Tocsin {__version__}, Python {platform.python_version()}, PostgreSQL {said.split()[-1]}"
    return [
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {versions}, Linux {platform.release().partition('-')[0]}",
        f"{processors}, {memory}; clients and PostgreSQL on the same machine",
    ]


def main() -> None:
    """Measure, and write the page and the chart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the benchmarks to run; default: all")
    given, arguments = parser.parse_known_args()
    about = machine()
    store(load() | {name: Run(about, measure(name, *arguments)) for name in given.names or NAMES})
    print(f"\n{PAGE.relative_to(ROOT)} and {CHART.relative_to(ROOT)} are written.")


if __name__ == "__main__":
    main()
