"""Jobs run by hand, and workers with test settings."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.service import Api
from tocsin import fanout, jobs
from tocsin.catalogue import Catalogue
from tocsin.db.pool import Database
from tocsin.ids import new_id
from tocsin.pubsub import PubSub
from tocsin.worker import Worker


async def work(api: Api, lane: jobs.Queue = "direct", limit: int = 200) -> None:
    """Run the due jobs of a lane as a new worker."""
    worker = new_id()
    leased = await jobs.claim(api.app_state.database, worker, lane, limit)
    if leased:
        await fanout.deliver(api.app_state.database, api.app_state.catalogue, worker, leased)


@asynccontextmanager
async def impatient(url: str, catalogue: Catalogue, patience: float = 1) -> AsyncIterator[Worker]:
    """Run a worker whose statements may take a second."""
    pool = Database(url, 4, patience)
    await pool.open()
    bells = PubSub(url, pool)
    bells.handle_locally("settled")
    running = Worker(pool, catalogue, bells)
    ears, run = asyncio.create_task(bells.receive()), asyncio.create_task(running.run())
    try:
        yield running
        assert not run.done()
    finally:
        running.stop()
        await asyncio.gather(run)
        ears.cancel()
        await asyncio.gather(ears, return_exceptions=True)
        await bells.close()
        await pool.close()
