"""Requests are counted as the library would count them."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tocsin.metrics import BUCKET_BOUNDS, Metrics
from tocsin.request_counts import RequestCounts

REQUESTS = (
    ("GET", "/notifications", 200, 0.0004),
    ("GET", "/notifications", 200, 0.001),
    ("GET", "/notifications", 304, 0.0011),
    ("GET", "/notifications", 503, 7200.0),
    ("POST", "/events", 202, 0.0),
    ("POST", '/by-key/"\\', 202, 1),
)


def samples(registry: CollectorRegistry) -> set[tuple[str, str, frozenset[tuple[str, str]], float]]:
    text = generate_latest(registry).decode()
    return {
        (family.type, sample.name, frozenset(sample.labels.items()), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_are_counted_as_the_library_counts_them() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = RequestCounts(BUCKET_BOUNDS)
    ours.register(counts)
    requests = Counter("tocsin_http_requests", "Requests", ["method", "route", "status"], registry=theirs)
    took = Histogram("tocsin_http_request_seconds", "Time", ["method", "route"], registry=theirs, buckets=BUCKET_BOUNDS)
    for method, route, status, seconds in REQUESTS:
        counts.add(method, route, status, seconds)
        requests.labels(method, route, str(status)).inc()
        took.labels(method, route).observe(seconds)
    assert samples(ours) == samples(theirs)


def test_history_has_the_requests_and_those_that_failed() -> None:
    metrics = Metrics()
    for request in REQUESTS:
        metrics.request(*request)
    totals = metrics.totals()
    assert (totals.requests, totals.api_errors) == (6, 1)
