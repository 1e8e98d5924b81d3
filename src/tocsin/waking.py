"""Waits that another caller ends, or a timer. An event and a timeout would take ten times the memory."""

import asyncio

Waiting = asyncio.Future[None]


async def woken(waiting: Waiting, seconds: float) -> None:
    """Wait until `wake` is called for this future, at most so long."""
    timer = asyncio.get_running_loop().call_later(seconds, wake, waiting)
    try:
        await waiting
    finally:
        timer.cancel()


def wake(waiting: Waiting | None) -> bool:
    """End a wait; return whether there was one."""
    if waiting is None or waiting.done():
        return False
    waiting.set_result(None)
    return True
