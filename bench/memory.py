"""The memory of an idle service with its PostgreSQL."""

import asyncio
import contextlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import uvloop

from bench import fill
from bench.measure import Claim, medians, options, show
from bench.service import Service, clients, database, folder, started
from tocsin.catalogue import Catalogue

PAGES = 20
"""The number of pages requested before the service is left idle."""

SHORT_PAUSE = 10
"""Seconds after which it still has the connections of its start; they are closed after 60."""

_PSS = re.compile(r"^Pss: +(\d+) kB$", re.MULTILINE)


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=3, seconds=75)

    async def one_round() -> dict[str, float]:
        with folder() as outer:
            async with started(outer / "data") as first:
                await _use(first)
            async with started(outer / "data") as second:
                await _use(second)
                await asyncio.sleep(SHORT_PAUSE)
                soon = memory(second.process.pid)["all"]
                await asyncio.sleep(max(0.0, seconds - SHORT_PAUSE))
                return {"soon": soon, **memory(second.process.pid)}

    found = await medians(rounds, one_round)
    total, soon = found.pop("all"), found.pop("soon")
    show(
        Claim(f"memory {SHORT_PAUSE} s after the last request", soon, "MiB"),
        Claim("memory of an idle service", total, "MiB", at_most=110),
        *(Claim(f"  of this, {name}", size, "MiB") for name, size in found.items()),
    )


async def _use(running: Service) -> None:
    """Create a user, deliver an event, and read some pages."""
    user = fill.FIRST
    async with database(running) as connection:
        if not await connection.fetchval("select exists (select from users)"):
            await fill.users(connection, 1)
    event = Catalogue.load().samples["note"]["event"] | {"notify": {"users": [user]}}
    async with clients(running, 1) as (client,):
        id_ = json.loads(await client.ask(running.post(event), b"202"))["id"]
        await client.ask(running.ask_for(id_, wait=10))
        for _ in range(PAGES):
            await client.ask(running.get("/notifications", user=user))


def memory(root: int) -> dict[str, float]:
    """Return the MiB of a process and its descendants, in total (`all`) and by kind.

    What processes share is divided among them (the kernel's `Pss`).
    """
    sizes = Counter[str]()
    for process in tree(root):
        with contextlib.suppress(OSError):  # it has ended
            if kilobytes := _PSS.search((process / "smaps_rollup").read_text("ascii")):
                sizes[name_of(process)] += int(kilobytes[1])
    return {"all": sizes.total() / 1024, **{name: size / 1024 for name, size in sizes.most_common()}}


def tree(root: int) -> Iterator[Path]:
    """Yield the folders in /proc of a process and its descendants."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            children[_parent(process)].append(int(process.name))
    found = [root]
    for one in found:
        found += children[one]
        yield Path(f"/proc/{one}")


def _parent(process: Path) -> int:
    return int((process / "stat").read_text("utf-8").rpartition(")")[2].split()[1])


def name_of(process: Path) -> str:
    """Return the kind of a process; PostgreSQL's processes name it in their command line."""
    words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    if not words.startswith("postgres: "):
        return "postgres" if "/postgres " in words else "tocsin"
    return "connections" if "[local]" in words else words.removeprefix("postgres: tocsin: ").strip()


if __name__ == "__main__":
    uvloop.run(main())
