"""Tasks that run beside a block."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any


@contextlib.asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a coroutine for as long as the block runs."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await end([task])


async def end(tasks: Sequence[asyncio.Task[object]]) -> None:
    """Cancel tasks and wait for their ends; their errors are ignored."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
