"""Pauses between tries: each twice as long as the one before, up to a longest, and spread by chance."""

import random


def growing(failures: int, first: float, longest: float) -> float:
    """Return the seconds to wait after so many failures in a row, at least one; shortened by up to a fifth."""
    seconds: float = min(first * 2 ** min(failures - 1, 10), longest)
    return seconds * random.uniform(0.8, 1.0)  # noqa: S311 - spreads tries, hides nothing
