"""The history of metrics: a row per minute and process, for the charts of the console. It is kept for a day.

A process writes the growth of its counters since its last row. Reads add up the processes.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tocsin.backoff import Backoff
from tocsin.db.admission import KIND
from tocsin.db.connections import Record
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.ids import new_id
from tocsin.metrics import BUCKET_BOUNDS, Metrics

MAX_MINUTES = 1440
"""Maximum minutes of an answer, and the minutes for which rows are kept."""

INTERVAL = 60.0
"""Seconds between two rows of a process."""

AFTER_MINUTE = 0.5
"""Seconds after a minute has ended at which its row is written."""

_SQL = queries("history")


class Recorder:
    """Writes the rows of this process."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._process_id = new_id()
        self._before, self._at = metrics.totals(), time.monotonic()

    async def run(self) -> None:
        """Write a row after each minute, forever. The growth of a minute whose row fails is in the next one."""
        backoff = Backoff("history of metrics")
        KIND.set(backoff.name)
        while True:
            await asyncio.sleep(INTERVAL - (time.time() - AFTER_MINUTE) % INTERVAL)
            await backoff.attempt(self.record)

    async def record(self) -> None:
        """Write the growth since the last row."""
        waiting = await self._metrics.waiting(self._database)
        now, at = self._metrics.totals(), time.monotonic()
        grown = now.since(self._before)
        await self._database.value(
            _SQL["record"],
            self._process_id,
            at - self._at,
            [grown.events, grown.pushes, grown.requests, grown.api_errors, grown.rate_limited],
            list(grown.push_errors),
            list(grown.push_errors.values()),
            grown.inbox_buckets,
            grown.push_buckets,
            [waiting.direct, waiting.bulk, waiting.pushes],
            [waiting.oldest_direct, waiting.oldest_bulk],
        )
        self._before, self._at = now, at


async def read(database: Database, minutes: int) -> list[dict[str, Any]]:
    """Return a point for each of the last minutes that has rows, the oldest first."""
    rows = await database.rows(_SQL["minutes"], minutes, len(BUCKET_BOUNDS))
    return [_point(row) for row in rows]


def _point(row: Record) -> dict[str, Any]:
    at: datetime = row["minute"]
    return {
        "at": at,
        "processes": row["processes"],
        "events": row["events"],
        "pushes": row["pushes"],
        "requests": row["requests"],
        "api_errors": row["api_errors"],
        "rate_limited": row["rate_limited"],
        "push_errors": dict(zip(row["providers"] or (), row["errors"] or (), strict=True)),
        "jobs_due": {"direct": row["direct_due"], "bulk": row["bulk_due"]},
        "oldest_job": {"direct": row["direct_oldest"], "bulk": row["bulk_oldest"]},
        "pushes_due": row["pushes_due"],
        "inbox_seconds": _quantiles(row["inbox_buckets"]),
        "push_seconds": _quantiles(row["push_buckets"]),
    }


def _quantiles(buckets: Sequence[int] | None) -> dict[str, float | None]:
    return {f"p{part}": quantile(part / 100, buckets or ()) for part in (50, 95, 99)}


def quantile(part: float, buckets: Sequence[int]) -> float | None:
    """Return a quantile of a histogram with cumulative counts, estimated between its bounds; None without samples."""
    if not buckets or buckets[-1] <= 0:
        return None
    lower, below, rank = 0.0, 0, part * buckets[-1]
    for bound, up_to in zip(BUCKET_BOUNDS, buckets, strict=True):
        if up_to >= rank:
            return lower if math.isinf(bound) else lower + (bound - lower) * (rank - below) / max(up_to - below, 1)
        lower, below = bound, up_to
    return lower
