"""Processes of one `tocsin serve --processes N`: how each shows the metrics of all.

A process is connected to the one that started it by a pair of sockets, over which each sends lines of JSON. The end of
that connection means that the other end is gone.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Sample

MAX_LINE = 2**24
"""Maximum bytes of a line: the samples of a process are below a megabyte."""

TIMEOUT = 3.0
"""Seconds that a process waits for the metrics of the others before it shows its own."""

ADDED = (
    *("tocsin_streams", "tocsin_connections", "tocsin_connections_limit", "tocsin_requests_in_progress"),
    *("tocsin_requests_waiting", "tocsin_database_connections", "tocsin_database_waiting", "tocsin_cell_worked"),
    *("process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds", "process_max_fds"),
)
"""The gauges of which the service has the sum of its processes. The others are the same for all."""

Key = tuple[str, str, tuple[tuple[str, str], ...]]
"""A series: the metric, the name of the sample, and its labels."""

Samples = Mapping[Key, float]

START: Key = ("process_start_time_seconds", "process_start_time_seconds", ())
"""The start of the service: that of the process that started the others."""


class Link:
    """One end of the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, end: socket.socket) -> "Link":
        """Return the link over a socket, which it owns from now on."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=MAX_LINE)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, end)
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    def send(self, **message: Any) -> None:
        """Send a message. It is lost if the other end is gone."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        """Return the next message; None if the other end is gone."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


class Siblings:
    """The other processes, as one of them sees them. `end` is its open end of the connection."""

    def __init__(self, end: int) -> None:
        self._end = end
        self._link: Link | None = None
        self._answer: asyncio.Future[Samples] | None = None
        self._ready = asyncio.Event()

    async def run(self, collect: Callable[[], tuple[Samples, Samples]]) -> None:
        """Answer the process that started this one, until it is gone. `collect` returns counters, and gauges."""
        link = self._link = await Link.of(socket.socket(fileno=self._end))
        reporting = asyncio.create_task(self._report(link))
        try:
            while message := await link.receive():
                if "sum" in message:
                    self._take(decoded(message["sum"]))
                elif "check" in message:
                    link.send(checked=True)
                else:
                    link.send(samples=[encoded(each) for each in collect()])
        finally:
            reporting.cancel()
            link.close()

    def ready(self) -> None:
        """Report that this process accepts requests."""
        self._ready.set()

    async def others(self, own: tuple[Samples, Samples]) -> Samples:
        """Return the sums of the samples of the others; nothing if they cannot be collected now."""
        if self._link is None:
            return {}
        answer = self._answer
        if answer is None:
            answer = self._answer = asyncio.get_running_loop().create_future()
            self._link.send(ask=[encoded(each) for each in own])
        try:
            async with asyncio.timeout(TIMEOUT):
                return await asyncio.shield(answer)
        except TimeoutError:
            if self._answer is answer:
                self._answer = None
            return {}

    async def _report(self, link: Link) -> None:
        await self._ready.wait()
        link.send(ready=True)

    def _take(self, samples: Samples) -> None:
        if self._answer is not None:
            self._answer.set_result(samples)
            self._answer = None


def encoded(samples: Samples) -> list[Any]:
    """Return samples as JSON."""
    return [[*key, value] for key, value in samples.items()]


def decoded(items: list[Any]) -> dict[Key, float]:
    """Return the samples of JSON."""
    return {(metric, name, tuple(map(tuple, labels))): value for metric, name, labels, value in items}


def samples_of(registry: CollectorRegistry) -> tuple[Samples, Samples]:
    """Return the counters and histograms of a registry, and the gauges that are added up."""
    counters: dict[Key, float] = {}
    gauges: dict[Key, float] = {}
    for metric in registry.collect():
        if is_added(metric):
            into = gauges if metric.type == "gauge" else counters
            into.update({_key(metric, sample): sample.value for sample in metric.samples})
    return counters, gauges


def is_added(metric: Metric) -> bool:
    """Return whether the service has the sum of a metric of its processes."""
    return metric.type != "gauge" or metric.name in ADDED


class OfAll:
    """The metrics of a process, to which those of its siblings are added. A collector of Prometheus."""

    def __init__(self, registry: CollectorRegistry, others: Samples) -> None:
        self._registry, self._others = registry, others

    def collect(self) -> Iterator[Metric]:
        """Return all metrics."""
        by_metric: dict[str, dict[Key, float]] = {}
        for key, value in self._others.items():
            by_metric.setdefault(key[0], {})[key] = value
        for metric in self._registry.collect():
            others = by_metric.get(metric.name, {})
            if START in others:
                metric.samples = [Sample(START[1], {}, others[START])]
            elif others and is_added(metric):
                metric.samples = list(_added(metric, others))
            yield metric


def _added(metric: Metric, others: dict[Key, float]) -> Iterator[Sample]:
    for sample in metric.samples:
        yield sample._replace(value=sample.value + others.pop(_key(metric, sample), 0.0))
    for (_, name, labels), value in others.items():
        yield Sample(name, dict(labels), value)


def _key(metric: Metric, sample: Sample) -> Key:
    return metric.name, sample.name, tuple(sorted(sample.labels.items()))
