"""Time from acceptance to the push, at 100 events per second to users with an iPhone each."""

import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import uvloop

from bench import fill
from bench.flow import EVERY, LONGEST, Flow, Followed, flow, percentiles
from bench.measure import Claim, medians, options, show
from bench.service import Service, database, folder, started

PEOPLE = 1_000
HISTORY = 100
"""Earlier notifications of each user."""

TICK = 0.001
"""The resolution of the stand-in's times in seconds."""

_TOCSIN = Path(sys.executable).with_name("tocsin")


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=3, seconds=15)
    async with AsyncExitStack() as stack:
        outer = stack.enter_context(folder())
        variables = await stack.enter_async_context(_phones(outer / "phones"))
        apple = await stack.enter_async_context(httpx.AsyncClient(base_url=variables.pop("PHONES_URL"), timeout=60))
        running = await stack.enter_async_context(started(outer / "data", variables))
        events = await stack.enter_async_context(flow(running, await _filled(running)))

        async def one_round() -> dict[str, float]:
            return await _measured(events, apple, round(seconds / EVERY))

        took = await medians(rounds, one_round)
    show(
        Claim("from 202 to Apple, p50", took["apple p50"], "ms", at_most=20),
        Claim("from 202 to Apple, p99", took["apple p99"], "ms", at_most=100),
        Claim("from 202 to the inbox, p50", took["inbox p50"], "ms"),
        Claim("from 202 to the inbox, p99", took["inbox p99"], "ms"),
        Claim("from sending to Apple, p50", took["whole p50"], "ms"),
        Claim("from sending to Apple, p99", took["whole p99"], "ms"),
    )


async def _measured(events: Flow, apple: httpx.AsyncClient, count: int) -> dict[str, float]:
    followed = await events.of(count)
    came = await _arrivals(apple, followed)
    return percentiles(
        {
            "apple": [came[event.id] - event.accepted for event in followed],
            "inbox": [event.seen - event.accepted for event in followed],
            "whole": [came[event.id] - event.sent for event in followed],
        }
    )


async def _arrivals(apple: httpx.AsyncClient, followed: Sequence[Followed]) -> Mapping[str, float]:
    """Return when the push of each event was received, in UNIX seconds, and clear the stand-in's list."""
    await asyncio.sleep(1)
    pushes: list[dict[str, Any]] = (await apple.get("/pushes", params={"provider": "apns"})).json()
    await apple.delete("/pushes")
    if {push["id"] for push in pushes} != {event.id for event in followed} or len(pushes) != len(followed):
        raise RuntimeError(f"{len(pushes)} pushes of {len(followed)} events came")
    if wrong := [push for push in pushes if push["status"] != 200]:
        raise RuntimeError(f"a push was refused: {wrong[0]}")
    return {push["id"]: datetime.fromisoformat(push["at"]).timestamp() + TICK for push in pushes}


@asynccontextmanager
async def _phones(place: Path) -> AsyncIterator[dict[str, str]]:
    """Run the stand-ins in a separate process, and yield the variables that point to them."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
    process = await asyncio.create_subprocess_exec(
        *(_TOCSIN, "phones", "--folder", place), env=given, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(LONGEST):
            while not (file := place / "environment").exists():
                await asyncio.sleep(0.05)
        words = (shlex.split(line) for line in file.read_text("utf-8").splitlines())
        yield dict(word.split("=", 1) for _, word in words)
    finally:
        process.terminate()
        await process.wait()


async def _filled(running: Service) -> range:
    async with database(running) as connection:
        people = await fill.users(connection, PEOPLE)
        await fill.devices(connection, people)
        await fill.history(connection, people, HISTORY)
    return people


if __name__ == "__main__":
    uvloop.run(main())
