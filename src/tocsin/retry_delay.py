"""Delays between retries: exponential up to a maximum, with random jitter. And between log lines about retries."""

import random
import time

FIRST_LOG_INTERVAL, MAX_LOG_INTERVAL = 1.0, 60.0
"""Seconds until the same reason is logged again; each further time twice as many, up to the maximum."""


def growing(failures: int, first: float, longest: float) -> float:
    """Return the seconds to wait after a number of consecutive failures, reduced at random by up to a fifth."""
    seconds: float = min(first * 2 ** min(failures - 1, 10), longest)
    return seconds * random.uniform(0.8, 1.0)  # noqa: S311 - spreads tries, hides nothing


class Reasons:
    """The reasons of consecutive failures: a new one is logged at once, and the same one more and more rarely."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._next_at = self._interval = 0.0

    def is_due(self, reason: str) -> bool:
        """Return whether a failure for this reason is to be logged now."""
        now, is_new = time.monotonic(), reason != self._reason
        if not is_new and now < self._next_at:
            return False
        self._interval = FIRST_LOG_INTERVAL if is_new else min(2 * self._interval, MAX_LOG_INTERVAL)
        self._reason, self._next_at = reason, now + self._interval
        return True
