"""More requests than the service can process: what it still accepts, how fast it refuses, and what others notice.

Requests arrive at a rate, whatever became of those before, from processes of their own. The peak is what the service
answers when a few clients repeat the request without a pause. Meanwhile one user reads their page.

The service with its PostgreSQL has one half of the processors and the clients have the other, always: otherwise the
service has less of them the more is sent, and the peak is measured with more of them than the rest.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench import fill
from bench.measure import Claim, cpu_of, load, percentile, resident, show
from bench.service import Service, clients, database, service
from tocsin.catalogue import Catalogue

OWNERS = 100
SIZE = 100
FACTORS = (1, 2, 3)
CLIENTS = (16, 40)
"""Clients that repeat a request without a pause, of which the best rate is the peak. So many are never refused."""

PAUSE = 0.02
"""Seconds between two pages of the user who is measured."""


@dataclass(frozen=True, slots=True)
class Flood:
    """What is sent too often, the status of its success, and what others ask for meanwhile."""

    requests: Sequence[bytes]
    status: bytes
    others: Sequence[bytes]
    others_status: bytes


def _flood(name: str, running: Service, owners: range) -> Flood:
    event = Catalogue.load().samples["note"]["event"]
    posts = [running.post({**event, "notify": {"users": [owner]}}) for owner in owners[1:]]
    pages = [running.get("/notifications", user=owner) for owner in owners[1:]]
    mine = [running.get("/notifications", user=owners[0])]
    if name == "posts":
        return Flood(posts, b"202", mine, b"200")
    return Flood(pages, b"200", [running.post({**event, "notify": {"users": [owners[0]]}})], b"202")


async def _arrive(running: Service, flood: Flood, rate: float, seconds: float) -> dict[str, Any]:
    """Send requests from a process of its own, and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.arrivals"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    requests = [request.decode("latin-1") for request in flood.requests]
    given = {"host": running.host, "port": running.port, "requests": requests, "rate": rate, "seconds": seconds}
    output, _ = await process.communicate(json.dumps(given).encode())
    found: dict[str, Any] = json.loads(output)
    return found


async def _others(running: Service, flood: Flood, is_over: Callable[[], bool]) -> tuple[list[float], int]:
    """Repeat the request of others; return the milliseconds of its successes, and how many failed."""
    took, refused = list[float](), 0
    async with clients(running, 1) as (client,):
        while not is_over():
            began = time.perf_counter()
            try:
                await client.ask(flood.others[0], flood.others_status)
                took.append((time.perf_counter() - began) * 1000)
            except RuntimeError:
                refused += 1
            await asyncio.sleep(PAUSE)
    return took, refused


def _halves() -> tuple[set[int], set[int]]:
    """Return the processors of the service and its PostgreSQL, and those of the clients."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise SystemExit("bench.overload needs two processors: one of them is for the clients alone.")
    return set(usable[: len(usable) // 2]), set(usable[len(usable) // 2 :])


async def _measure(name: str, seconds: float) -> Sequence[Claim]:
    of_service, of_clients = _halves()
    os.sched_setaffinity(0, of_service)  # what a process starts inherits its processors
    async with service() as running:
        os.sched_setaffinity(0, of_clients)
        async with database(running) as connection:
            owners = await fill.users(connection, OWNERS)
            await fill.history(connection, owners, SIZE)
        flood = _flood(name, running, owners)
        end = time.monotonic() + seconds
        idle, _ = await _others(running, flood, lambda: time.monotonic() > end)
        idle99 = percentile(idle, 99)
        peak = 0.0
        for count in CLIENTS:
            rate = await load(running, flood.requests, seconds, status=flood.status, accept=bool, count=count)
            peak = max(peak, rate)
        found = [
            Claim(f"{name}: processors of the service with its PostgreSQL", len(of_service), ""),
            Claim("  processors of the clients", len(of_clients), ""),
            Claim("  peak", peak, "/s"),
            Claim("  others when idle, p99", idle99, "ms"),
        ]
        for factor in FACTORS:
            found += await _at(running, flood, factor, peak, idle99, seconds)
    return found


def _cpu(running: Service) -> float:
    return cpu_of(running.process.pid, descendants=False)


async def _at(  # noqa: PLR0913, PLR0917 - what is measured, and its references
    running: Service, flood: Flood, factor: int, peak: float, idle99: float, seconds: float
) -> Sequence[Claim]:
    cpu, began = _cpu(running), time.perf_counter()
    arriving = asyncio.create_task(_arrive(running, flood, factor * peak, seconds))
    others, refused = await _others(running, flood, arriving.done)
    found = await arriving
    used = (_cpu(running) - cpu) / (time.perf_counter() - began)
    took, failed = found["took"], found["failed"]
    good = took.pop(flood.status.decode(), [])
    late = [ms for values in took.values() for ms in values]
    answers = {status: len(values) for status, values in took.items()}
    return (
        Claim(f"{factor} x the peak: goodput", len(good) / found["lasted"], "/s", peak, at_least=_goodput_at(factor)),
        Claim("  accepted, p99", percentile(good, 99), "ms"),
        Claim(f"  refused {answers or ''}", len(late) / seconds, "/s"),
        Claim("  refused, p99", percentile(late, 99) if len(late) > 1 else 0, "ms", at_most=50),
        Claim(f"  failed {failed or ''}", sum(failed.values()) / seconds, "/s"),
        Claim("  others, p99", percentile(others, 99), "ms", idle99, at_most=3),
        Claim("  others, refused", refused, ""),
        Claim("  processors: the service's own process", used, ""),
        Claim(f"  of {os.cpu_count()} processors: what sends the requests", found["processors"], ""),
        Claim("  memory", resident(running.process.pid) / 1024, "MiB"),
    )


def _goodput_at(factor: int) -> float | None:
    return 0.8 if factor > 1 else None


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--flood", choices=("posts", "pages"), default="posts")
    given = parser.parse_args()
    show(*await _measure(given.flood, given.seconds))


if __name__ == "__main__":
    uvloop.run(main())
