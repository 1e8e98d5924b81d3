"""Waiting for a condition."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def until(look: Callable[[], Any], seconds: float = 30) -> Any:
    """Poll a function or coroutine until it returns a true value, and return that."""
    async with asyncio.timeout(seconds):
        while not (found := await _seen(look)):
            await asyncio.sleep(0.01)
        return found


async def reaches(look: Callable[[], Any], due: object, seconds: float = 30) -> None:
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
