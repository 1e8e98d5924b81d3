"""Waiting for a condition."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

LONGEST_WAIT = 90.0
"""Seconds after which a wait has hung. It only ends a hang: a busy machine needs a small part of it."""


def bounded() -> asyncio.Timeout:
    """Return a context that ends what hangs in it."""
    return asyncio.timeout(LONGEST_WAIT)


async def until(look: Callable[[], Any], seconds: float = LONGEST_WAIT) -> Any:
    """Poll a function or coroutine until it returns a true value, and return that."""
    async with asyncio.timeout(seconds):
        while not (found := await _seen(look)):
            await asyncio.sleep(0.01)
        return found


async def reaches(look: Callable[[], Any], due: object, seconds: float = LONGEST_WAIT) -> None:
    """Poll until the value equals this one."""
    found: Any = None
    try:
        async with asyncio.timeout(seconds):
            while (found := await _seen(look)) != due:
                await asyncio.sleep(0.01)
    except TimeoutError:
        assert found == due


async def _seen(look: Callable[[], Any]) -> Any:
    found = look()
    return await found if inspect.isawaitable(found) else found
