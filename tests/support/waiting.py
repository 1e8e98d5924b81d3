"""Wait for the thing itself."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def until(look: Callable[[], Any], seconds: float = 30) -> Any:
    """Look again and again, by a function or a coroutine, until something true is there, and return it."""
    async with asyncio.timeout(seconds):
        while True:
            found = look()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.01)
