"""Memory and time of large imports: a million lines with a team of 100,000, by HTTP and by the command."""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import uvloop

from bench.measure import Claim, show
from bench.memory import name_of, tree
from bench.service import Service, clients, database, folder, started

MEMBERS = 100_000
LOOK = 0.1


@dataclass
class Peaks:
    """The most MiB of the importing process and of a process of PostgreSQL, and the seconds.

    Of PostgreSQL, shared buffers are left out, and autovacuum: it starts every minute, whatever is done, and a setting
    of the server limits its memory. A sum over its processes would depend on when each needs most: in a longer
    import, more of them do so at the same time.
    """

    process: float = 0.0
    postgres: float = 0.0
    seconds: float = 0.0


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000, help="how many (default: 1,000,000)")
    lines = parser.parse_args().lines
    few = lines // 10
    with folder() as outer:
        async with started(outer / "data") as running:
            file = outer / "lines"
            await _posted(running, _written(file, (_user(id_) for id_ in range(1, MEMBERS + 1))))
            team = await _posted(running, _written(file, _team()))
            first = 2 * MEMBERS
            found: dict[str, tuple[Peaks, Peaks]] = {}
            for way, send in (("POST", _posted), ("tocsin import", _imported)):
                small = await send(running, _written(file, _mixed(first, few)))
                large = await send(running, _written(file, _mixed(first + few, lines)))
                first += few + lines
                found[way] = small, large
    show(
        Claim(f"a team of {MEMBERS:,} members imported", team.seconds, "s"),
        Claim("  memory of the service", team.process, "MiB"),
        *(claim for way, (small, large) in found.items() for claim in _claims(way, lines, small, large)),
    )


def _claims(way: str, lines: int, small: Peaks, large: Peaks) -> Iterator[Claim]:
    yield Claim(f"{way}: {lines:,} lines a second", lines / large.seconds, "/s")
    yield Claim("  memory of the process, to a tenth of them", large.process, "MiB", small.process, at_most=1.1)
    yield Claim(
        "  memory of a process of PostgreSQL, to a tenth of them", large.postgres, "MiB", small.postgres, at_most=1.1
    )


def _user(id_: int) -> object:
    return {"user": {"id": id_, "first_name": "First", "last_name": f"Last{id_}"}}


def _team() -> Iterator[object]:
    yield {"team": {"id": 1, "name": "All", "users": list(range(1, MEMBERS + 1))}}


def _mixed(first: int, count: int) -> Iterator[object]:
    """Yield users and a notification of each in turn, and in the middle a team."""
    for id_ in range(first, first + count // 2):
        yield _user(id_)
        if id_ == first + count // 4:
            yield from _team()
        else:
            yield {
                "notification": {
                    "user_id": id_,
                    "id": str(uuid4()),
                    "type": "note",
                    "data": {"case": {"id": str(uuid4()), "case_number": id_}},
                    "message": f"A note on case {id_}",
                    "created_at": "2015-01-01 10:00:00",
                }
            }


def _written(file: Path, lines: Iterator[object]) -> Path:
    with file.open("wb") as target:
        for line in lines:
            target.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    return file


async def _posted(running: Service, file: Path) -> Peaks:
    request = _request(running, file)
    async with clients(running, 1) as [client], _observed(running, running.process.pid) as peaks:
        await client.ask(request)
    await _check(running)
    return peaks


def _request(running: Service, file: Path) -> bytes:
    Path(f"/proc/{running.process.pid}/clear_refs").write_text("5", "ascii")  # the peak begins here
    return running.post_import(file.read_bytes())


async def _imported(running: Service, file: Path) -> Peaks:
    command = Path(sys.executable).with_name("tocsin")
    settings = {**os.environ, "TOCSIN_DATA_DIR": str(running.data_dir)}
    process = await asyncio.create_subprocess_exec(command, "import", file, env=settings)
    async with _observed(running, process.pid) as peaks:
        if await process.wait():
            raise RuntimeError("the command failed")
    await _check(running)
    return peaks


@asynccontextmanager
async def _observed(running: Service, pid: int) -> AsyncIterator[Peaks]:
    """Observe a process, and the processes of PostgreSQL, for the duration of the block."""
    peaks, began = Peaks(), time.perf_counter()
    observing = asyncio.create_task(_observe(running, pid, peaks))
    try:
        yield peaks
    finally:
        peaks.seconds = time.perf_counter() - began
        observing.cancel()


async def _observe(running: Service, pid: int, peaks: Peaks) -> None:
    while True:
        peaks.process = max(peaks.process, _memory_of(Path(f"/proc/{pid}"), "VmHWM"))
        of_postgres = filter(_is_counted, tree(running.process.pid))
        peaks.postgres = max(peaks.postgres, *(_memory_of(one, "RssAnon") for one in of_postgres))
        await asyncio.sleep(LOOK)


def _is_counted(process: Path) -> bool:
    with contextlib.suppress(OSError):  # it has ended
        name = name_of(process)
        return name != "tocsin" and not name.startswith("autovacuum worker")
    return False


def _memory_of(process: Path, name: str) -> float:
    with contextlib.suppress(OSError, StopIteration):  # it has ended
        lines = (process / "status").read_text("ascii").splitlines()
        return float(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024
    return 0.0


async def _check(running: Service) -> None:
    """Check that all was applied."""
    async with database(running) as connection:
        if await connection.fetchval("select count(*) from imports"):
            raise RuntimeError("the import was not applied")
        if await connection.fetchval("select sum(total) from heads") != await connection.fetchval(
            "select count(*) from inbox"
        ):
            raise RuntimeError("the counts of inboxes are wrong")


if __name__ == "__main__":
    uvloop.run(main())
