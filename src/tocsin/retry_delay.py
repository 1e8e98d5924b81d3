"""Delays between retries: exponential up to a maximum, with random jitter."""

import random


def growing(failures: int, first: float, longest: float) -> float:
    """Return the seconds to wait after a number of consecutive failures, reduced at random by up to a fifth."""
    seconds: float = min(first * 2 ** min(failures - 1, 10), longest)
    return seconds * random.uniform(0.8, 1.0)  # noqa: S311 - spreads tries, hides nothing
