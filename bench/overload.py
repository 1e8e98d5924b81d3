"""More requests than the service can process: what it still accepts, how fast it refuses, and what others notice.

Requests arrive at a rate, whatever became of those before, from processes of their own. The peak is what the service
answers when a few clients repeat the request without a pause. Meanwhile one user reads their page.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench import fill
from bench.measure import Claim, cpu_of, load, percentile, resident, show
from bench.service import Client, Service, clients, database, service
from tocsin.catalogue import Catalogue

OWNERS = 100
SIZE = 100
FACTORS = (1, 2, 3)
CLIENTS = (16, 40)
"""Clients that repeat a request without a pause, of which the best rate is the peak. So many are never refused."""

SETTLING = 2.0
"""Seconds at the beginning whose requests are not counted: connections are opened, and a burst is accepted."""

MAX_CONNECTIONS = 2_000
"""Connections of each process that sends requests. A request that finds none free counts as lost."""

PROCESSES = 2
PAUSE = 0.02
"""Seconds between two pages of the user who is measured."""

TICK = 0.002
"""Seconds between two looks at the clock: what is due is sent together."""


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


class Arrivals:
    """Sends requests at random times with a mean rate, each on a connection that is free, or on a new one."""

    def __init__(self, host: str, port: int, requests: Sequence[bytes]) -> None:
        self._host, self._port, self._requests = host, port, requests
        self._free: deque[Client] = deque()
        self._opened = 0
        self.took: dict[str, list[float]] = {}
        self.failed: Counter[str] = Counter()

    async def send(self, rate: float, seconds: float) -> None:
        """Send for so many seconds, and wait for the answers."""
        under_way = set[asyncio.Task[None]]()
        due = began = time.perf_counter()
        self._counted_from = began + SETTLING
        seconds += SETTLING
        while due < began + seconds:
            while due <= time.perf_counter():
                task = asyncio.create_task(self._one(random.choice(self._requests)))  # noqa: S311 - not a secret
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                due += random.expovariate(rate)
            await asyncio.sleep(TICK)
        await asyncio.gather(*under_way)

    async def _one(self, request: bytes) -> None:
        began = time.perf_counter()
        client = await self._client()
        if client is None:
            return
        sent = time.perf_counter()
        try:
            await client.ask(request, b"")
        except RuntimeError:
            pass  # every status is another one than none
        except OSError as error:
            self.failed[type(error).__name__] += 1
            self._opened -= 1
            return
        self._free.append(client)
        if began > self._counted_from:
            self.took.setdefault(client.head[9:12].decode(), []).append((time.perf_counter() - sent) * 1000)

    async def _client(self) -> Client | None:
        if self._free:
            return self._free.pop()
        if self._opened >= MAX_CONNECTIONS:
            self.failed["no connection"] += 1
            return None
        self._opened += 1
        try:
            made = await asyncio.get_running_loop().create_connection(Client, self._host, self._port)
        except OSError as error:
            self.failed[type(error).__name__] += 1
            self._opened -= 1
            return None
        return made[1]


async def _send(given: Mapping[str, Any], rate: float, seconds: float) -> None:
    """Send these requests, and print what became of them."""
    arrivals = Arrivals(given["host"], given["port"], [request.encode("latin-1") for request in given["requests"]])
    began = time.perf_counter()
    await arrivals.send(rate, seconds)
    lasted = time.perf_counter() - began - SETTLING
    print(json.dumps({"took": arrivals.took, "failed": arrivals.failed, "lasted": lasted}))


async def _arrive(path: Path, rate: float, seconds: float) -> tuple[dict[str, list[float]], Counter[str], float]:
    """Send requests from processes of their own.

    Returns the milliseconds of the answers by status, the failures, and the seconds until the last answer.
    """
    command = (sys.executable, "-m", "bench.overload", "--send", path, "--rate", str(rate / PROCESSES))
    started = [
        await asyncio.create_subprocess_exec(
            *command, "--seconds", str(seconds), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parent.parent
        )
        for _ in range(PROCESSES)
    ]
    took, failed, lasted = dict[str, list[float]](), Counter[str](), 0.0
    for output, _ in await asyncio.gather(*(process.communicate() for process in started)):
        found = json.loads(output)
        failed.update(found["failed"])
        lasted = max(lasted, found["lasted"])
        for status, values in found["took"].items():
            took.setdefault(status, []).extend(values)
    return took, failed, lasted


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


async def _measure(name: str, seconds: float) -> Sequence[Claim]:
    async with service() as running:
        async with database(running) as connection:
            owners = await fill.users(connection, OWNERS)
            await fill.history(connection, owners, SIZE)
        flood = _flood(name, running, owners)
        path = running.data_dir.with_name("requests.json")
        requests = [request.decode("latin-1") for request in flood.requests]
        path.write_text(json.dumps({"host": running.host, "port": running.port, "requests": requests}), "utf-8")
        end = time.monotonic() + seconds
        idle, _ = await _others(running, flood, lambda: time.monotonic() > end)
        idle99 = percentile(idle, 99)
        peak = 0.0
        for count in CLIENTS:
            rate = await load(running, flood.requests, seconds, status=flood.status, accept=bool, count=count)
            peak = max(peak, rate)
        found = [
            Claim(f"{name}: peak", peak, "/s"),
            Claim("  others when idle, p99", idle99, "ms"),
        ]
        for factor in FACTORS:
            found += await _at(running, flood, path, factor, peak, idle99, seconds)
    return found


def _cpu(running: Service) -> float:
    return cpu_of(running.process.pid, descendants=False)


async def _at(  # noqa: PLR0913, PLR0917 - what is measured, and its references
    running: Service, flood: Flood, path: Path, factor: int, peak: float, idle99: float, seconds: float
) -> Sequence[Claim]:
    arriving, cpu, began = (
        asyncio.create_task(_arrive(path, factor * peak, seconds)),
        _cpu(running),
        time.perf_counter(),
    )
    others, refused = await _others(running, flood, arriving.done)
    took, failed, lasted = await arriving
    used = (_cpu(running) - cpu) / (time.perf_counter() - began)
    good = took.pop(flood.status.decode(), [])
    late = [ms for values in took.values() for ms in values]
    answers = {status: len(values) for status, values in took.items()}
    return (
        Claim(f"{factor} x the peak: goodput", len(good) / lasted, "/s", peak, at_least=0.8 if factor > 1 else None),
        Claim("  accepted, p99", percentile(good, 99), "ms"),
        Claim(f"  refused {answers or ''}", len(late) / seconds, "/s"),
        Claim("  refused, p99", percentile(late, 99) if len(late) > 1 else 0, "ms", at_most=50),
        Claim(f"  failed {dict(failed) or ''}", sum(failed.values()) / seconds, "/s"),
        Claim("  others, p99", percentile(others, 99), "ms", idle99, at_most=3),
        Claim("  others, refused", refused, ""),
        Claim("  processors that the service's own process got", used, ""),
        Claim("  memory", resident(running.process.pid) / 1024, "MiB"),
    )


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--flood", choices=("posts", "pages"), default="posts")
    parser.add_argument("--send", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.send:
        await _send(json.loads(given.send.read_text("utf-8")), given.rate, given.seconds)
    else:
        show(*await _measure(given.flood, given.seconds))


if __name__ == "__main__":
    uvloop.run(main())
