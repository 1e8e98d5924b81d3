"""How many connections a process takes, how long each may wait for its client, and who goes when there are too many."""

import contextlib
import resource
from dataclasses import dataclass
from typing import Protocol

import structlog

from tocsin.metrics import Metrics

FILES_OF_OURS = 256
"""Files that are kept for the database, push services, the message bus and the log."""

RESERVE = 32
"""Connections that are kept for `RESERVED_PATHS`."""

RESERVED_PATHS = (b"/healthz", b"/readyz", b"/metrics", b"/console", b"/operations/")
"""What is answered when all other connections are taken, so that a full process can still be looked at."""

MAX_FILES = 2**20
"""Files that are asked for where the system names no limit."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that a client has: for a head, between two parts of a body, to take an answer, between two requests.

    `rest` is for the rest of a body that was answered before it had arrived.
    """

    head: float = 10.0
    body: float = 30.0
    answer: float = 30.0
    idle: float = 75.0
    rest: float = 5.0


class Connection(Protocol):
    """What `Connections` knows of a connection."""

    def give_way(self) -> None:
        """End, because another connection needs the place."""


class Connections:
    """The open connections of a process, at most `most` and a `reserve`."""

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
        """Take as many as the limit of open files allows."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if files == resource.RLIM_INFINITY:
            files = MAX_FILES
        ours = min(FILES_OF_OURS + RESERVE, files * 3 // 4)
        return cls(files - ours, min(RESERVE, ours // 9), metrics)

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open)

    def enter(self, connection: Connection) -> bool:
        """Take a connection in, in the place of the one that waits longest if need be; False where there is no room."""
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
        """Forget a connection that ended."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)
        if self._is_full and len(self._open) < self.most * 0.9:
            self._is_full = False
            log.info("connection limit no longer reached", open=len(self._open), limit=self.most)

    def wait(self, connection: Connection) -> None:
        """Note that a connection waits for its client: for a request, the rest of one, or an answer to be taken.

        The wait starts now, so that a connection whose client still sends is closed after one whose client does not.
        """
        if connection in self._open:
            self._waiting.pop(connection, None)
            self._waiting[connection] = None

    def work(self, connection: Connection) -> None:
        """Note that a request is under way."""
        self._waiting.pop(connection, None)

    def is_full(self) -> bool:
        """Return whether only the reserve is left."""
        return len(self._open) > self.most

    def dropped(self, reason: str) -> None:
        """Count a connection that we ended."""
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
    """Return whether a path is served from the reserve of connections."""
    return path.startswith(RESERVED_PATHS) or path.removeprefix(prefix).startswith(RESERVED_PATHS)


def raise_file_limit() -> None:
    """Open as many files as this process may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        most = MAX_FILES if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
