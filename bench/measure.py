"""Shared measurements: load on the service, pgbench as the reference, medians and the table."""

import argparse
import asyncio
import itertools
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from bench.service import Client, Service, clients
from tocsin.db.url import SCHEMA
from tocsin.postgres.supervisor import Embedded

CONNECTIONS = 16
"""Concurrent clients, both of the service and of pgbench."""

RESULTS = "BENCH_RESULTS"
"""The variable with the name of a file for the claims as JSON; see `report.py`."""

_TICK = os.sysconf("SC_CLK_TCK")
_RATE = re.compile(r"^tps = ([\d.]+) \(without initial connection time\)$", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: ([1-9]\d*)", re.MULTILINE)


class Options(NamedTuple):
    """The extent of a measurement: `rounds`, each of which measures every subject for `seconds`."""

    rounds: int
    seconds: float


class Sizes(NamedTuple):
    """The extent of a measurement, with the number of `people` that an event goes to."""

    rounds: int
    seconds: float
    people: int


def options(about: str | None, *, rounds: int, seconds: float) -> Options:
    """Parse the command line; the arguments are its defaults."""
    return Options(*_given(about, rounds, seconds, None)[:2])


def sizes(about: str | None, *, rounds: int, seconds: float, people: int) -> Sizes:
    """Parse the command line, including the number of people; the arguments are its defaults."""
    return _given(about, rounds, seconds, people)


def _given(about: str | None, rounds: int, seconds: float, people: int | None) -> Sizes:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"how often to measure (default: {rounds})")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"how long each time (default: {seconds:g})")
    if people is not None:
        parser.add_argument("--people", type=int, default=people, help=f"how many people (default: {people:,})")
    given = parser.parse_args()
    found = Sizes(given.rounds, given.seconds, given.people if people is not None else 1)
    if found.rounds < 1 or found.seconds < 1 or found.people < 1:
        parser.error("at least one round of one second, and one person")
    return found


async def load(  # noqa: PLR0913 - what is sent, and what is expected
    service: Service,
    requests: Iterable[bytes],
    seconds: float,
    *,
    status: bytes,
    accept: Callable[[bytes], bool],
    count: int = CONNECTIONS,
) -> float:
    """Repeat these requests (of an iterator: as many as are needed), without a pause; return responses per second.

    Raises `RuntimeError` for an answer of another status, or that is not accepted.
    """
    turns = itertools.cycle(requests) if isinstance(requests, Sequence) else iter(requests)
    async with clients(service, count) as opened:
        began = time.perf_counter()
        answered = await asyncio.gather(
            *(_ask_until(began + seconds, client, turns, status, accept) for client in opened)
        )
        return sum(answered) / (time.perf_counter() - began)


async def _ask_until(
    end: float, client: Client, turns: Iterator[bytes], status: bytes, accept: Callable[[bytes], bool]
) -> int:
    answered = 0
    while time.perf_counter() < end:
        body = await client.ask(next(turns), status)
        if not accept(body):
            raise RuntimeError(f"an answer that is not as asked for: {body.decode()}")
        answered += 1
    return answered


def has_rows(body: bytes, rows: int = 15) -> bool:
    """Return whether a page has this many notifications."""
    return body.count(b'"message_formatted":') == rows


async def pgbench(service: Service, script: str, seconds: float) -> float:
    """Repeat a prepared SQL script with as many clients as the service has; return runs per second."""
    path = service.data_dir.with_name("script.sql")
    path.write_text(script, "utf-8")
    process = await asyncio.create_subprocess_exec(
        Embedded(service.data_dir).binaries / "bin/pgbench",
        *("--no-vacuum", "--protocol", "prepared", "--client", str(CONNECTIONS), "--jobs", "2"),
        *("--time", str(round(seconds)), "--file", path, service.database_url),
        env={**os.environ, "PGOPTIONS": f"-c search_path={SCHEMA} -c timezone=UTC"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode()
    rate = _RATE.search(output)
    if process.returncode or rate is None or _FAILED.search(output):
        raise RuntimeError(f"pgbench failed: {output}")
    return float(rate[1])


async def medians(rounds: int, one_round: Callable[[], Awaitable[Mapping[str, float]]]) -> dict[str, float]:
    """Measure all subjects in turn, this many rounds; return the median of each."""
    seen = [await one_round() for _ in range(rounds)]
    names = dict.fromkeys(name for values in seen for name in values)
    found = {name: [values.get(name, 0.0) for values in seen] for name in names}
    for name, values in found.items():
        print(f"  {name}: {', '.join(f'{value:,.4g}' for value in values)}", file=sys.stderr)
    return {name: statistics.median(values) for name, values in found.items()}


def cpu_of(pid: int, *, descendants: bool = True) -> float:
    """Return the CPU-seconds of a process and its descendants, ended ones included."""
    while True:
        try:
            return sum(
                _cpu_of_one(each, 15 if descendants else 13) for each in (_family(pid) if descendants else [pid])
            )
        except (FileNotFoundError, ProcessLookupError):  # one has just ended: its time is with its parent now
            if not Path(f"/proc/{pid}").exists():
                raise


def _cpu_of_one(pid: int, end: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:end]) / _TICK


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text("ascii").split():
            found += _family(int(child))
    return found


def resident(pid: int) -> float:
    """Return the KiB of memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return float(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])


def percentile(values: Sequence[float], hundredth: int) -> float:
    """Return a percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[hundredth - 1]


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the table: the measured subject and its reference.

    The limit, if there is one, is on the ratio where there is a reference, else on what was measured.
    """

    what: str
    measured: float
    unit: str
    reference: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def ratio(self) -> float | None:
        """What was measured, in units of the reference."""
        return None if self.reference is None else self.measured / self.reference

    @property
    def kept(self) -> bool:
        """Whether it is within the limit."""
        value = self.measured if self.ratio is None else self.ratio
        return not (
            (self.at_least is not None and value < self.at_least) or (self.at_most is not None and value > self.at_most)
        )

    @property
    def times_goal(self) -> float | None:
        """How many times better than the limit it is; None without a limit."""
        value = self.measured if self.ratio is None else self.ratio
        if self.at_least:
            return value / self.at_least
        return self.at_most / value if self.at_most and value else None

    def cells(self) -> tuple[str, ...]:
        """Return what stands in the table."""
        ratio = "" if self.ratio is None else f"{self.ratio:.3f}"
        return (
            self.what,
            self._amount(self.measured),
            self._amount(self.reference),
            ratio,
            self._limit(),
            self._word(),
        )

    def _amount(self, value: float | None) -> str:
        return "" if value is None else f"{value:,.{0 if value >= 1000 else 1}f} {self.unit}"

    def _limit(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def _word(self) -> str:
        if self.at_least is None and self.at_most is None:
            return ""
        return "yes" if self.kept else "NO"


def show(*claims: Claim) -> None:
    """Print the table and the load of the machine, because other programs distort the ratios."""
    rows = [("what", "measured", "reference", "ratio", "wanted", "kept"), *(claim.cells() for claim in claims)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        right = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *right]))
    busy = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    if RESULTS in os.environ:
        Path(os.environ[RESULTS]).write_text(json.dumps([asdict(claim) for claim in claims]), "utf-8")
    print(f"{os.cpu_count()} processors, load averages after the run: {busy}")
