"""The disk guard: refuses new events while little space is free on the disk of the embedded PostgreSQL.

PostgreSQL exits on a full disk. Until then, reads, marks, deliveries and retention need the space that is left.
"""

import os
import time
from pathlib import Path

import structlog

from tocsin.errors import Unavailable

DEFAULT_MIN_FREE_BYTES, DEFAULT_MIN_FREE_PART = 2**30, 10
"""By default, 1 GiB must be free: as much as PostgreSQL's log grows. On a small disk, a tenth of it must be free."""

RESUME_FACTOR = 1.1
"""How many times that space must be free before events are accepted again."""

INTERVAL = 1.0
"""Seconds for which a measurement is valid."""

RETRY_AFTER = 60
"""Seconds after which a client should retry."""

log = structlog.get_logger(__name__)


class DiskGuard:
    """Measures the free space in a folder; without a folder, there is no limit.

    `min_free` is the number of bytes that must be free; None: the default; 0: no limit.
    """

    def __init__(self, folder: Path | None, min_free: int | None = None) -> None:
        self._folder = None if min_free == 0 else folder
        self._min_free = min_free
        self._is_low = False
        self._measured_at = float("-inf")
        self.free = float("nan")

    def check(self) -> None:
        """Raise `Unavailable` if too little space is free."""
        if problem := self.problem:
            raise Unavailable(f"New events are refused: {problem}.", retry_after=RETRY_AFTER, reason=problem)

    @property
    def problem(self) -> str | None:
        """Why events are refused; None if they are accepted."""
        return "the disk of the database is almost full" if self.is_low else None

    @property
    def is_low(self) -> bool:
        """Whether too little space is free, measured now or within `INTERVAL`."""
        now = time.monotonic()
        if self._folder and now >= self._measured_at + INTERVAL:
            self._measured_at = now
            self._measure(self._folder)
        return self._is_low

    def _measure(self, folder: Path) -> None:
        try:
            self.free, needed = free_and_needed(folder, self._min_free)
        except OSError as error:
            log.debug("free disk space is unknown", folder=str(folder), error=error.strerror)
            return
        was_low = self._is_low
        self._is_low = self.free < needed * (RESUME_FACTOR if was_low else 1)
        figures = {"folder": str(folder), "free": self.free, "needed": needed}
        if self._is_low and not was_low:
            hint = "free space, or set TOCSIN_MIN_FREE_DISK"
            log.error("disk almost full: new events are refused", **figures, hint=hint)
        elif was_low and not self._is_low:
            log.info("disk has space again: new events are accepted", **figures)


def free_and_needed(folder: Path, min_free: int | None) -> tuple[int, int]:
    """Return how many bytes are free for users on the disk of a folder, and how many must be. Raises `OSError`."""
    found = os.statvfs(folder)
    default = min(DEFAULT_MIN_FREE_BYTES, found.f_blocks * found.f_frsize // DEFAULT_MIN_FREE_PART)
    return found.f_bavail * found.f_frsize, default if min_free is None else min_free
