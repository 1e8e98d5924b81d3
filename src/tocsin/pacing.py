"""Pacing: many small steps that are due at the same time are done a few per turn of the event loop."""

import asyncio
from collections import deque
from collections.abc import Callable


class Pace:
    """Does steps in their order, `most` per turn of the event loop, so that other work gets its turns."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._steps: deque[Callable[[], object]] = deque()

    def add(self, *steps: Callable[[], object]) -> None:
        """Have these steps done soon. Never blocks."""
        if steps and not self._steps:
            asyncio.get_running_loop().call_soon(self._turn)
        self._steps.extend(steps)

    def _turn(self) -> None:
        for _ in range(min(self._most, len(self._steps))):
            self._steps.popleft()()
        if self._steps:
            asyncio.get_running_loop().call_soon(self._turn)
