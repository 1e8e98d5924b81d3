"""A clock that a test controls."""

import time


class Clock:
    """Seconds that advance only by the test."""

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        return self.now
