"""Metrics in the format of Prometheus: counters of this process, and the state of queues in the database."""

import asyncio
import contextlib
import math
import time
from collections import Counter as Counter_
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from itertools import chain
from typing import Self, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from tocsin import __version__, archiving, jobs
from tocsin.db.connections import Record
from tocsin.db.pool import Database
from tocsin.disk_guard import DiskGuard
from tocsin.errors import Overrun, Unavailable
from tocsin.isolation import SHORT_LOCK_TIMEOUT, lock_timeout
from tocsin.push import deliveries
from tocsin.push.channels import Delivered, Outcome
from tocsin.request_counts import RequestCounts
from tocsin.siblings import OfAll, Samples, Siblings, samples_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MAX_REASONS, MAX_REASON_LENGTH = 100, 80
"""Maximum number of reasons of providers that are counted separately, and maximum characters of each."""

FRESH = 4.0
"""Minimum seconds between two counts of what waits in the database."""

_PART = 20
"""Maximum fraction of time spent on counting: if much waits, it is counted less often."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)

BUCKET_BOUNDS: Sequence[float] = (*_SECONDS, math.inf)
"""The upper bounds of the buckets of histograms, in seconds."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters since the start of the process, or their growth. `push_errors` are by provider, buckets cumulative."""

    events: int
    pushes: int
    requests: int
    api_errors: int
    rate_limited: int
    push_errors: Mapping[str, int]
    inbox_buckets: Sequence[int]
    push_buckets: Sequence[int]

    def since(self, before: Self) -> Self:
        """Return the growth since earlier counters of the same process."""
        return type(self)(
            self.events - before.events,
            self.pushes - before.pushes,
            self.requests - before.requests,
            self.api_errors - before.api_errors,
            self.rate_limited - before.rate_limited,
            {name: count - before.push_errors.get(name, 0) for name, count in self.push_errors.items()},
            [now - then for now, then in zip(self.inbox_buckets, before.inbox_buckets, strict=True)],
            [now - then for now, then in zip(self.push_buckets, before.push_buckets, strict=True)],
        )


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in the database: due jobs of each queue, the seconds of the oldest, and due pushes."""

    direct: int = 0
    bulk: int = 0
    oldest_direct: float = 0.0
    oldest_bulk: float = 0.0
    pushes: int = 0


disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types here; it would add an unneeded series to each counter


class Metrics:
    """The counters and histograms of one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.siblings: Siblings | None = None
        self.databases_of_cells: Callable[[], Mapping[str, Database]] | None = None
        """With several cells, the databases of those in which what waits is counted together."""
        self._counting = asyncio.Lock()
        self._count_again_at = 0.0
        self._waiting_now = Backlog()
        counter = partial(Counter, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry, buckets=_SECONDS)
        self._requests = RequestCounts(BUCKET_BOUNDS)
        self._registry.register(self._requests)
        self._rate_limited = counter("tocsin_rate_limited", "Requests that exceeded a rate limit", ["limit"])
        self._in_progress = gauge("tocsin_requests_in_progress", "Requests that are being processed")
        self._requests_waiting = gauge("tocsin_requests_waiting", "Requests that wait to be processed")
        self._refused = counter(
            "tocsin_requests_refused", "Requests refused because too much was in progress", ["reason"]
        )
        self._refused.labels("overload")  # 0 is shown before the first one
        self._inbox_reads = counter("tocsin_inbox_reads", "Pages and changes, by where they were read", ["target"])
        self._jobs = counter("tocsin_jobs", "Jobs done, put off or given up", ["task", "outcome"])
        self._entered = histogram(
            "tocsin_inbox_seconds",
            "Time from an event's acceptance, or the moment it was held until, to the last inbox",
        )
        self._pushes = counter("tocsin_pushes", "What became of pushes", ["lane", "state"])
        self._pushed = histogram("tocsin_push_seconds", "Time from the inbox to the provider's answer", ["lane"])
        self._answers = counter(
            "tocsin_push_answers", "What providers answered, and why", ["lane", "outcome", "reason"]
        )
        self._reasons: set[str] = set()
        self._failures = counter(
            "tocsin_work_failures", "Tries of lanes and other work that failed, and why", ["work", "reason"]
        )
        self._due = gauge("tocsin_jobs_due", "Jobs that wait", ["lane"])
        self._age = gauge("tocsin_jobs_oldest_seconds", "How long the oldest of them waits", ["lane"])
        self._pushes_due = gauge("tocsin_pushes_due", "Pushes that wait", ["lane"])
        self._pushes_age = gauge("tocsin_pushes_oldest_seconds", "How long the oldest of them waits", ["lane"])
        self._streams = gauge("tocsin_streams", "Streams that are open")
        self._connections = gauge("tocsin_connections", "Connections of clients that are open")
        self._most_connections = gauge("tocsin_connections_limit", "How many may be open")
        self._dropped = counter(
            "tocsin_connections_dropped", "Connections that the server ended or refused, and why", ["reason"]
        )
        self._stopped = gauge("tocsin_lane_stopped", "1 where a lane has stopped", ["lane"])
        self._in_use = gauge("tocsin_database_connections", "Connections of a pool that are in use", ["pool"])
        self._waiting = gauge("tocsin_database_waiting", "Those who wait for one of them", ["pool"])
        self._cells = gauge("tocsin_cell_worked", "Workers of a cell in this process, with several cells", ["cell"])
        build = Gauge(
            "tocsin_build_info",
            "Always 1; the version of this process is its label",
            ["version"],
            registry=self._registry,
        )
        self._archive_failing = gauge("tocsin_archive_failing", "1 where the log cannot be archived")
        self._archive_waiting = gauge("tocsin_archive_waiting", "Segments of the log that are not archived")
        self._ready = gauge("tocsin_ready", "1 where requests can be served, as in /readyz")
        self._problem = gauge("tocsin_problem", "1 for each reason why work waits or fails, as in /readyz", ["reason"])
        self._disk_low = gauge("tocsin_disk_low", "1 where new events are refused because the disk is almost full")
        self._disk_free = gauge("tocsin_disk_free_bytes", "Free bytes on the disk of the embedded PostgreSQL")
        self._disk_free.set(float("nan"))
        build.labels(__version__).set(1)
        ProcessCollector(registry=self._registry)  # memory, processor time, open files, start time

    def watch_streams(self, count: Callable[[], int]) -> None:
        """Set the function that returns the number of open streams."""
        self._streams.set_function(count)

    def watch_pool(self, name: str, pool: Database, cell: str = "") -> None:
        """Add a pool, such as that of a further cell, whose connections and waiting callers are measured."""
        name = f"{cell}/{name}" if cell else name
        self._in_use.labels(name).set_function(lambda: pool.in_use)
        self._waiting.labels(name).set_function(lambda: pool.waiting)

    def cell_worked(self, cell: str, *, is_worked: bool) -> None:
        """Note whether this process has a worker for one of several cells."""
        self._cells.labels(cell).set(is_worked)

    def watch_disk(self, guard: DiskGuard) -> None:
        """Set the guard whose measurements are reported."""
        self._disk_low.set_function(lambda: guard.is_low)
        self._disk_free.set_function(lambda: guard.free)

    def watch_requests(self, in_use: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Set the functions that return the number of requests in progress, and of those that wait."""
        self._in_progress.set_function(in_use)
        self._requests_waiting.set_function(waiting)

    def watch_connections(self, count: Callable[[], int], most: int) -> None:
        """Set the functions that return the number of open connections and its maximum."""
        self._connections.set_function(count)
        self._most_connections.set(most)

    def connection_dropped(self, reason: str) -> None:
        """Count a connection that the server ended or refused."""
        self._dropped.labels(reason).inc()

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request at a route, such as `/events/{event_id}`."""
        self._requests.add(method, route, status, seconds)

    def rate_limited(self, limit: str) -> None:
        """Count a request that exceeded a rate limit."""
        self._rate_limited.labels(limit).inc()

    def request_refused(self, reason: str) -> None:
        """Count a request that was refused because too much was in progress."""
        self._refused.labels(reason).inc()

    def inbox_read(self, target: str) -> None:
        """Count a page or changes, read from the `replica`, the `primary`, or there as the replica was `behind`."""
        self._inbox_reads.labels(target).inc()

    def job(self, task: str, outcome: str, count: int = 1) -> None:
        """Count jobs: `done`, `put off`, `dead`, `lost` or `cancelled`."""
        self._jobs.labels(task, outcome).inc(count)

    def failure(self, work: str, reason: str) -> None:
        """Count a failure of work that runs forever, such as `direct queue`."""
        self._failures.labels(work, reason).inc()

    def inbox(self, seconds: float) -> None:
        """Count an event that was delivered to all inboxes, and measure how long that took."""
        self._entered.observe(max(seconds, 0.0))

    def push(self, lane: str, state: str, seconds: float | None = None) -> None:
        """Count a push, and measure the time from the inbox to its answer, if it got one."""
        self._pushes.labels(lane, state).inc()
        if seconds is not None:
            self._pushed.labels(lane).observe(seconds)

    def answer(self, lane: str, outcome: Outcome) -> None:
        """Count an outcome of a provider and its reason, up to a maximum number of reasons."""
        reason = "" if isinstance(outcome, Delivered) else outcome.reason[:MAX_REASON_LENGTH]
        if reason not in self._reasons:
            if len(self._reasons) >= MAX_REASONS:
                reason = "other"
            self._reasons.add(reason)
        self._answers.labels(lane, type(outcome).__name__.lower(), reason).inc()

    async def text(self, database: Database, problems: Sequence[str] = (), *, is_ready: bool = True) -> bytes:
        """Return all metrics as text, with the stopped lanes and what waits, counted now or recently.

        Those of all processes that were started together are one.

        While a table is locked, what it holds is not counted again, and in an outage of the database nothing is.
        `problems` are those of the readiness check, and `is_ready` its result.
        """
        self._ready.set(is_ready)
        self._problem.clear()
        for reason in problems:
            self._problem.labels(reason).set(1)
        if is_ready:
            with contextlib.suppress(Unavailable), lock_timeout(SHORT_LOCK_TIMEOUT):
                for lane, has_stopped in _any(await self._of_all_cells(database, deliveries.stopped)).items():
                    self._stopped.labels(lane).set(has_stopped)
                await self.waiting(database)
        if self.siblings is None:
            return generate_latest(self._registry)
        return generate_latest(OfAll(self._registry, await self.siblings.others(self.samples())))

    def samples(self) -> tuple[Samples, Samples]:
        """Return what is added to the metrics of the other processes of the service: counters, and gauges."""
        return samples_of(self._registry)

    async def waiting(self, database: Database) -> Backlog:
        """Return what waits in the database, counted now or recently."""
        async with self._counting:
            began = time.monotonic()
            if began >= self._count_again_at:
                await self._count(database)
                ended = time.monotonic()
                self._count_again_at = ended + max(FRESH, _PART * (ended - began))
            return self._waiting_now

    def totals(self) -> Totals:
        """Return the counters of this process that the history keeps."""
        requests = list(self._requests.by_status())
        errors: Counter_[str] = Counter_()
        for labels, count in _samples(self._answers):
            if labels["outcome"] != "delivered":
                errors[labels["lane"].partition("/")[0]] += count
        return Totals(
            events=sum(count for _, count in _samples(self._entered, "_count")),
            pushes=sum(count for labels, count in _samples(self._pushes) if labels["state"] == "delivered"),
            requests=sum(count for _, count in requests),
            api_errors=sum(count for status, count in requests if status >= HTTPStatus.INTERNAL_SERVER_ERROR),
            rate_limited=sum(count for _, count in _samples(self._rate_limited)),
            push_errors=errors,
            inbox_buckets=_buckets(self._entered),
            push_buckets=_buckets(self._pushed),
        )

    async def _count(self, database: Database) -> None:
        queues = {queue: _Waiting() for queue in jobs.LATE}
        lanes: defaultdict[str, _Waiting] = defaultdict(_Waiting)
        for depth, rows in await self._of_all_cells(database, _waiting_in):
            for queue, (due, age) in depth.items():
                queues[queue].add(due, age)
            for row in rows:
                lanes[row["name"]].add(row["due"], row["oldest"])
        archive = await archiving.state(database)
        self._archive_failing.set(archive is not None and archive.failing)
        self._archive_waiting.set(archive.waiting if archive else 0)
        for queue, jobs_waiting in queues.items():
            self._due.labels(queue).set(jobs_waiting.due)
            self._age.labels(queue).set(jobs_waiting.oldest)
        for lane, pushes_waiting in lanes.items():
            self._pushes_due.labels(lane).set(pushes_waiting.due)
            self._pushes_age.labels(lane).set(pushes_waiting.oldest)
        direct, bulk = queues["direct"], queues["bulk"]
        pushes = sum(waiting.due for waiting in lanes.values())
        self._waiting_now = Backlog(direct.due, bulk.due, direct.oldest, bulk.oldest, pushes)

    async def _of_all_cells(self, database: Database, ask: Callable[[Database], Awaitable[T]]) -> list[T]:
        """Ask the database, with several cells those of all of them, and return the answers of those that are there.

        Raises the error of one if none is there.
        """
        if self.databases_of_cells is None:
            return [await ask(database)]
        found = await asyncio.gather(*map(ask, self.databases_of_cells().values()), return_exceptions=True)
        answers = [each for each in found if not isinstance(each, BaseException)]
        for error in found:
            if isinstance(error, BaseException) and not (answers and isinstance(error, Unavailable | Overrun)):
                raise error
        return answers


@dataclass(slots=True)
class _Waiting:
    """What waits in a queue or a lane, of all cells together, and for how many seconds the oldest of it does."""

    due: int = 0
    oldest: float = 0.0

    def add(self, due: int, oldest: float) -> None:
        self.due += due
        self.oldest = max(self.oldest, oldest)


async def _waiting_in(database: Database) -> tuple[Mapping[jobs.Queue, tuple[int, float]], Sequence[Record]]:
    """Return what waits in the queues and the lanes of one database."""
    return await jobs.depth(database), await deliveries.lanes(database)


def _any(found: Sequence[Mapping[str, bool]]) -> dict[str, bool]:
    """Return what is true in one of these."""
    return {name: any(each.get(name) for each in found) for name in sorted({*chain(*found)})}


def _samples(metric: Counter | Histogram, suffix: str = "_total") -> list[tuple[Mapping[str, str], int]]:
    """Return the labels and values of a metric."""
    [family] = metric.collect()
    return [(sample.labels, int(sample.value)) for sample in family.samples if sample.name.endswith(suffix)]


def _buckets(histogram: Histogram) -> list[int]:
    """Return the cumulative counts of a histogram, of all labels together."""
    counts = dict.fromkeys(BUCKET_BOUNDS, 0)
    for labels, count in _samples(histogram, "_bucket"):
        counts[float(labels["le"])] += count
    return list(counts.values())
