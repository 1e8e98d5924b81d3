"""The start of the service until it is ready, on an empty data folder and again, in seconds and in CPU-seconds.

The reference of the second start is the least that it consists of: the bare start of PostgreSQL on the same data
folder, and a Python process that imports FastAPI.
"""

import asyncio
import resource
import sys
import time
from pathlib import Path

import uvloop

from bench.measure import Claim, cpu_of, medians, options, show
from bench.service import clients, folder, started
from tocsin.postgres.supervisor import Embedded


async def main() -> None:
    """Measure and print."""
    rounds, _ = options(__doc__, rounds=5, seconds=1)

    async def one_round() -> dict[str, float]:
        with folder() as outer:
            first, _ = await _start(outer / "data")
            second, spent = await _start(outer / "data")
            postgres = await _start_of_postgres(outer / "data")
        imported, spent_on_import = await _import_of_framework()
        return {
            "first": first,
            "second": second,
            "bare": postgres + imported,
            "CPU": spent,
            "CPU of the import": spent_on_import,
        }

    found = await medians(rounds, one_round)
    show(
        Claim("first start, until ready", found["first"], "s", at_most=3),
        Claim("second start, until ready", found["second"], "s", at_most=0.5),
        Claim("  by the start of its PostgreSQL and an import", found["second"], "s", found["bare"], at_most=4),
        Claim("  of this, CPU of Python, by that import", found["CPU"], "s", found["CPU of the import"], at_most=4),
    )


async def _start(data_dir: Path) -> tuple[float, float]:
    """Return the seconds until a started service is ready, and the CPU-seconds of its Python process."""
    began = time.perf_counter()
    async with started(data_dir) as running, clients(running, 1) as (client,):
        await client.ask(f"GET /readyz HTTP/1.1\r\nHost: {running.host}\r\n\r\n".encode())
        return time.perf_counter() - began, cpu_of(running.process.pid, descendants=False)


async def _start_of_postgres(data_dir: Path) -> float:
    began = time.perf_counter()
    async with Embedded(data_dir):
        return time.perf_counter() - began


async def _import_of_framework() -> tuple[float, float]:
    """Return the seconds and the CPU-seconds of a Python process that imports FastAPI."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import fastapi")
    if await process.wait():
        raise RuntimeError("FastAPI could not be imported")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    uvloop.run(main())
