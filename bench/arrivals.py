"""Sends requests at a rate, whatever became of those before: `python -m bench.arrivals`, from and to JSON.

It has no event loop and no task for each request, so that one processor can send more than another can answer.
"""

import json
import random
import re
import select
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

MAX_CONNECTIONS = 4_000
"""Open connections. A request that finds none free counts as failed."""

SETTLING = 2.0
"""Seconds at the beginning whose requests are not counted: connections are opened, and a burst is accepted."""

PATIENCE = 10.0
"""Seconds after the last request for which answers are awaited."""

TICK = 0.001
"""Seconds between two looks at the clock, if no answer arrives: what is due is sent together."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_READ = 2**16


@dataclass(slots=True, eq=False)
class _Line:
    """A connection: the request that it sends, the time of its arrival, and the answer so far."""

    socket: socket.socket
    request: bytes
    began: float
    answer: bytes = b""
    size: int = 0


class Arrivals:
    """Sends requests at random times with a mean rate, each on a free connection, or on a new one.

    `took` has the milliseconds of the answers by status, from the arrival of the request, and `began` these arrivals.
    """

    def __init__(self, host: str, port: int, requests: Sequence[bytes]) -> None:
        self._address, self._requests = (host, port), requests
        self._free: list[_Line] = []
        self._open: dict[int, _Line] = {}
        self._poll = select.epoll()
        self._counted_from = 0.0
        self.took = defaultdict[str, list[float]](list)
        self.began = defaultdict[str, list[float]](list)
        self.failed = Counter[str]()

    def send(self, rate: float, seconds: float) -> float:
        """Send for so many seconds, and wait for the answers; return the seconds until the last one."""
        due = time.perf_counter()
        self._counted_from = due + SETTLING
        end = self._counted_from + seconds
        while (now := time.perf_counter()) < end or (len(self._free) < len(self._open) and now < end + PATIENCE):
            while due <= now and due < end:
                self._arrive(now)
                due += random.expovariate(rate)
            for number, events in self._poll.poll(TICK):
                self._go_on(self._open[number], events)
        if lost := len(self._open) - len(self._free):
            self.failed["no answer"] = lost
        return time.perf_counter() - self._counted_from

    def _arrive(self, now: float) -> None:
        request = random.choice(self._requests)  # noqa: S311 - not a secret
        if self._free:
            line = self._free.pop()
            line.request, line.began = request, now
            self._write(line)
        elif len(self._open) < MAX_CONNECTIONS:
            self._connect(request, now)
        else:
            self._fail("no connection", now)

    def _connect(self, request: bytes, now: float) -> None:
        made = socket.socket()
        made.settimeout(0)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.connect_ex(self._address)
        self._open[made.fileno()] = _Line(made, request, now)
        self._poll.register(made, select.EPOLLOUT)

    def _write(self, line: _Line) -> None:
        """Send a request, which fits into the buffer of a connection that sends nothing else."""
        try:
            line.socket.send(line.request)
        except OSError as error:
            self._lose(line, error)

    def _go_on(self, line: _Line, events: int) -> None:
        if events & select.EPOLLOUT:
            self._poll.modify(line.socket, select.EPOLLIN)
            self._write(line)
            return
        try:
            part = line.socket.recv(_READ)
            if not part:
                raise ConnectionResetError
        except OSError as error:
            self._lose(line, error)
            return
        line.answer += part
        if not line.size and (end := line.answer.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(line.answer, 0, end + 2)
            line.size = end + 4 + (int(found[1]) if found else 0)
        if line.size and len(line.answer) >= line.size:
            self._take(line)

    def _take(self, line: _Line) -> None:
        if line.began > self._counted_from:
            status = line.answer[9:12].decode()
            self.took[status].append((time.perf_counter() - line.began) * 1000)
            self.began[status].append(line.began)
        line.answer, line.size = b"", 0
        self._free.append(line)

    def _lose(self, line: _Line, error: OSError) -> None:
        del self._open[line.socket.fileno()]
        line.socket.close()
        if line in self._free:  # closed by the server between two requests
            self._free.remove(line)
        else:
            self._fail(type(error).__name__, line.began)

    def _fail(self, reason: str, began: float) -> None:
        if began > self._counted_from:
            self.failed[reason] += 1


def main() -> None:
    """Send what the input says, and print what became of it."""
    given = json.load(sys.stdin)
    arrivals = Arrivals(given["host"], given["port"], [request.encode("latin-1") for request in given["requests"]])
    used, began = time.process_time(), time.perf_counter()
    lasted = arrivals.send(given["rate"], given["seconds"])
    share = (time.process_time() - used) / (time.perf_counter() - began)
    found = {"took": arrivals.took, "began": arrivals.began, "failed": arrivals.failed}
    json.dump({**found, "lasted": lasted, "processors": share}, sys.stdout)


if __name__ == "__main__":
    main()
