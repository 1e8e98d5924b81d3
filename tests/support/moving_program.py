"""Moves a company in a process of its own, which is killed at a chosen statement (`crash_points.Hook`).

`python -m tests.support.moving_program SOURCE_URL TARGET_URL COMPANY ORIGIN DESTINATION`
"""

import asyncio
import os
import sys

from tests.support.crash_points import Hook
from tocsin import moving
from tocsin.db.connections import Prepared
from tocsin.db.pool import Database


async def main(source_url: str, target_url: str, company: str, origin: str, destination: str) -> None:
    moving.CLOSE_DELAY = 0.0
    source, target = (Database(url, moving.CONNECTIONS, 60) for url in (source_url, target_url))
    await source.open()
    await target.open()
    await moving.move(source, target, int(company), origin, destination)
    await source.close()
    await target.close()


if __name__ == "__main__":
    hook = Hook(
        os.environ.get("CRASH_AT", ""), int(os.environ.get("CRASH_COUNT", "1")), os.environ.get("CRASH_TRACE", "")
    )
    for method in ("fetch", "fetchrow", "fetchval", "execute"):
        hook.watch(method)
    hook.watch("fetch", Prepared)
    asyncio.run(main(*sys.argv[1:]))
