"""Requests by method, route and status: counted without the lock that prometheus-client takes for each value."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class _Route:
    """The requests at a route: how many of each status, of each bucket, and their seconds."""

    __slots__ = ("buckets", "seconds", "statuses")

    def __init__(self, buckets: int) -> None:
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * buckets
        self.seconds = 0.0


class RequestCounts(Collector):
    """The requests of a process, added and read by the thread of the event loop. `bounds` are those of the buckets."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._routes: dict[tuple[str, str], _Route] = {}

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that took so many seconds."""
        found = self._routes.get((method, route))
        if found is None:
            found = self._routes[method, route] = _Route(len(self._bounds))
        found.statuses[status] = found.statuses.get(status, 0) + 1
        found.buckets[bisect_left(self._bounds, seconds)] += 1
        found.seconds += seconds

    def by_status(self) -> Iterator[tuple[int, int]]:
        """Yield statuses and numbers of requests."""
        for route in self._routes.values():
            yield from route.statuses.items()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        requests = CounterMetricFamily(
            "tocsin_http_requests", "Requests answered", labels=["method", "route", "status"]
        )
        took = HistogramMetricFamily(
            "tocsin_http_request_seconds", "Time to answer a request", labels=["method", "route"]
        )
        bounds = [str(floatToGoString(bound)) for bound in self._bounds]  # type: ignore[no-untyped-call]  # as in `metrics`
        for labels, route in self._routes.items():
            for status, count in route.statuses.items():
                requests.add_metric([*labels, str(status)], count)
            took.add_metric(labels, list(zip(bounds, accumulate(route.buckets), strict=True)), route.seconds)
        return requests, took
