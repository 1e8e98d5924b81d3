"""Limits of connections: their number, their timeouts, and which one is closed if there are too many."""

import contextlib
import resource
from dataclasses import dataclass
from typing import Protocol

import structlog

from tocsin.metrics import Metrics

RESERVED_FILES = 256
"""File descriptors that are reserved for the database, push services, the message bus and the log."""

RESERVE = 32
"""Connections that are reserved for `RESERVED_PATHS`."""

RESERVED_PATHS = (b"/healthz", b"/readyz", b"/metrics", b"/console", b"/operations/")
"""Paths that are served when all other connections are in use, so that a full process can be monitored."""

MAX_FILES = 2**20
"""The number of file descriptors if the system has no limit."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """Timeouts in seconds for a client.

    `head`: to send the head of a request; `body`: to send the next part of a body; `answer`: to receive more of a
    response; `idle`: to send the next request; `rest`: to send the rest of a body after the response.
    """

    head: float = 10.0
    body: float = 30.0
    answer: float = 30.0
    idle: float = 75.0
    rest: float = 5.0


class Connection(Protocol):
    """A connection that can be closed."""

    def give_way(self) -> None:
        """Close the connection in favour of another one."""


class Connections:
    """The open connections of a process: at most `most`, and `reserve` more for `RESERVED_PATHS`."""

    def __init__(self, most: int, reserve: int = RESERVE, metrics: Metrics | None = None) -> None:
        self.most, self.reserve = most, reserve
        self._metrics = metrics
        self._open: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}
        self._is_full = False
        if metrics:
            metrics.watch_connections(lambda: len(self._open), most)

    @classmethod
    def of_files(cls, metrics: Metrics | None = None) -> "Connections":
        """Return connections whose maximum follows from the limit of open files."""
        most, reserve = connections_with(file_limits()[0])
        return cls(most, reserve, metrics)

    @property
    def count(self) -> int:
        """The number of open connections."""
        return len(self._open)

    def enter(self, connection: Connection) -> bool:
        """Add a connection, and close the one that waits longest if necessary. Return False if there is no room."""
        if len(self._open) >= self.most:
            self._log_full()
            for longest in self._waiting:
                self.leave(longest)
                longest.give_way()
                self.dropped("limit")
                break
        if len(self._open) >= self.most + self.reserve:
            self.dropped("limit")
            return False
        self._open.add(connection)
        self._waiting[connection] = None
        return True

    def leave(self, connection: Connection) -> None:
        """Remove a connection that was closed."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)
        if self._is_full and len(self._open) < self.most * 0.9:
            self._is_full = False
            log.info("connection limit no longer reached", open=len(self._open), limit=self.most)

    def wait(self, connection: Connection) -> None:
        """Record that a connection waits for its client to send a request or a part of it, or to receive a response.

        The wait starts now, so that connections of inactive clients are closed first.
        """
        if connection in self._open:
            self._waiting.pop(connection, None)
            self._waiting[connection] = None

    def work(self, connection: Connection) -> None:
        """Record that a request is being processed."""
        self._waiting.pop(connection, None)

    def is_full(self) -> bool:
        """Return whether only reserved connections are left."""
        return len(self._open) > self.most

    def dropped(self, reason: str) -> None:
        """Count a connection that the server closed or refused."""
        if self._metrics:
            self._metrics.connection_dropped(reason)

    def _log_full(self) -> None:
        if not self._is_full:
            self._is_full = True
            log.warning(
                "connection limit reached",
                limit=self.most,
                hint="raise the limit of open files (ulimit -n, LimitNOFILE)",
            )


def is_reserved(path: bytes, prefix: bytes = b"") -> bool:
    """Return whether a path can use the reserved connections."""
    return path.startswith(RESERVED_PATHS) or path.removeprefix(prefix).startswith(RESERVED_PATHS)


def file_limits() -> tuple[int, int]:
    """Return the soft and the hard limit of open files of this process; `MAX_FILES` for one that is unlimited."""
    soft, hard = (
        MAX_FILES if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return soft, hard


def connections_with(files: int) -> tuple[int, int]:
    """Return how many connections a process has with this many files, and how many further ones are reserved."""
    reserved = min(RESERVED_FILES + RESERVE, files * 3 // 4)
    return files - reserved, min(RESERVE, reserved // 9)


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit, and log both."""
    soft, hard = file_limits()
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    log.info("file limit", soft=soft, hard=hard, connections=connections_with(file_limits()[0])[0])
