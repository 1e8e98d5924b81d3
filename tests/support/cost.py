"""The processor time of this thread, independent of other processes."""

import time
from collections.abc import Callable


def cost(work: Callable[[], object], times: int = 1) -> float:
    """Return the processor time in seconds of repeated work."""
    began = time.thread_time()
    for _ in range(times):
        work()
    return time.thread_time() - began
