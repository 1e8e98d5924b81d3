"""The sending thread: curl's multi interface, driven by poll()."""

import math
import select
import socket
import threading
import time
from asyncio import Future
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pycurl
import structlog

from tocsin.http_client.curl_handle import CurlHandle, Limits, Pending
from tocsin.http_client.messages import Answer
from tocsin.http_client.tls import Trust

Done = tuple["Future[Answer]", Answer]

CLOSED = "the transport is closed"
_UNPROVEN = frozenset({0, 401, 403})
_MAX_PORTS = 16
_BROKEN = select.POLLERR | select.POLLHUP
_WATCHED = {
    pycurl.POLL_IN: select.POLLIN,
    pycurl.POLL_OUT: select.POLLOUT,
    pycurl.POLL_INOUT: select.POLLIN | select.POLLOUT,
}

log = structlog.get_logger(__name__)


class Lone:
    """Limits each new connection to one request until one was answered there by another status than 401 or 403.

    Connections are identified by their local port.
    """

    def __init__(self) -> None:
        self.ready = False
        self._alone: CurlHandle | None = None
        self._port = 0
        self._proven: set[int] = set()

    def opening(self) -> None:
        """Record that a connection is opened: one request must go there alone first."""
        self.ready = False

    def may_go(self, curl_handle: CurlHandle, port: int) -> bool:
        """Return whether a request may be sent on a connection now."""
        if port in self._proven:
            self.ready = self._alone is None
            return True
        if self._alone is None:
            self._alone, self._port, self.ready = curl_handle, port, False
        return self._alone is curl_handle

    def ended(self, curl_handle: CurlHandle, status: int) -> None:
        """Record the end of a request, with the status of its answer."""
        if self._alone is not curl_handle:
            return
        self._alone = None
        if status not in _UNPROVEN:
            if len(self._proven) >= _MAX_PORTS:
                self._proven.clear()  # most of these connections are closed; the others are tested again
            self._proven.add(self._port)
            self.ready = True


class Sender:
    """Sends requests in the thread that calls `run`, which calls `hand_back` with batches of answers."""

    def __init__(  # noqa: PLR0913 - the properties of a transport
        self,
        window: int,
        hand_back: Callable[[list[Done]], None],
        *,
        lone_first: bool,
        connections: int,
        trust: Trust,
        allowed_origins: frozenset[str],
        limits: Limits,
    ) -> None:
        self._hand_back = hand_back
        self._lone = Lone() if lone_first else None
        self._window = window
        self._make: Callable[[], CurlHandle] = lambda: CurlHandle(
            self._may_go, self._opening, trust, limits, allowed_origins
        )
        self._handles: dict[pycurl.Curl, CurlHandle] = {}
        self._free: list[CurlHandle] = []
        self._queue: deque[Pending] = deque()
        self._done: list[Done] = []
        self._lock = threading.Lock()
        self._ends_at: float | None = None
        self._closed = self._woken = False
        self._ports: dict[int, int] = {}
        self._poll = select.poll()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.settimeout(0)
        self._poll.register(self._wake_reader, select.POLLIN)
        self._multi = self._multi_of(window, connections)

    def take(self, pending: Sequence[Pending]) -> bool:
        """Queue requests, from any thread; return False if the sender is closed."""
        with self._lock:
            if self._closed or self._ends_at is not None:
                return False
            self._queue.extend(pending)
            self._wake()
            return True

    def end(self, grace: float) -> None:
        """Start no more requests, and end when none is under way, or after `grace` seconds."""
        with self._lock:
            if not self._closed and self._ends_at is None:
                self._ends_at = time.monotonic() + grace
                self._wake()

    def run(self) -> None:
        """Send until `end`. Every request gets an answer, even after an error."""
        try:
            while not self._at_the_end():
                self._begin()
                self._deliver()
                self._wait()
                self._collect()
                self._deliver()
        except Exception:
            log.exception("push sender failed")
            raise
        finally:
            self._finish()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._wake_writer.send(b"\0")

    def _at_the_end(self) -> bool:
        if self._ends_at is None:
            return False
        self._answer_what_waits()
        return len(self._free) == len(self._handles) or time.monotonic() >= self._ends_at

    def _begin(self) -> None:
        """Start requests until the window is full."""
        now = datetime.now(UTC)
        while self._queue and self._has_room():
            curl_handle = self._free.pop() if self._free else self._new_handle()
            pending = self._queue.popleft()
            if error := curl_handle.begin(pending, now):
                self._done.append((pending.future, curl_handle.unanswered(error)))
                self._free.append(curl_handle)
            else:
                self._multi.add_handle(curl_handle.curl)

    def _has_room(self) -> bool:
        under_way = len(self._handles) - len(self._free)
        return under_way < (self._window if self._lone is None or self._lone.ready else 1)

    def _new_handle(self) -> CurlHandle:
        curl_handle = self._make()
        self._handles[curl_handle.curl] = curl_handle
        return curl_handle

    def _wait(self) -> None:
        """Wait for sockets or for the next timeout, and let curl act."""
        for fd, events in self._poll.poll(self._timeout()):
            if fd == self._wake_reader.fileno():
                self._drain_wake_ups()
                continue
            if events & _BROKEN:
                self._doubt(fd)
            wanted = (pycurl.CSELECT_IN if events & ~select.POLLOUT else 0) | (
                pycurl.CSELECT_OUT if events & ~select.POLLIN else 0
            )
            self._multi.socket_action(fd, wanted)
        if self._multi.timeout() == 0:
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)

    def _timeout(self) -> int | None:
        """Return the milliseconds until the next timeout; None: there is none."""
        due = self._multi.timeout()  # -1: none
        if self._ends_at is not None:
            left = max(math.ceil((self._ends_at - time.monotonic()) * 1000), 0)
            return left if due < 0 else min(due, left)
        return None if due < 0 else due

    def _drain_wake_ups(self) -> None:
        with self._lock:
            self._woken = False
            self._wake_reader.recv(64)

    def _collect(self) -> None:
        """Take finished requests from curl."""
        left = 1
        while left:
            left, good, bad = self._multi.info_read(self._window)
            for curl in good:
                self._ended(curl, 0, "")
            for curl, code, message in bad:
                self._ended(curl, code, message)

    def _ended(self, curl: pycurl.Curl, code: int, message: str) -> None:
        curl_handle = self._handles[curl]
        self._multi.remove_handle(curl)
        answer = curl_handle.end(code, message)
        if self._lone:
            self._lone.ended(curl_handle, answer.status if answer else 0)
        if pending := curl_handle.pending:
            if answer is None:
                self._queue.appendleft(pending)
            else:
                self._done.append((pending.future, answer))
        curl_handle.pending = None
        self._free.append(curl_handle)

    def _deliver(self) -> None:
        if self._done:
            self._hand_back(self._done)
            self._done = []

    def _answer_what_waits(self) -> None:
        while self._queue:
            pending = self._queue.popleft()
            self._done.append((pending.future, CurlHandle.never(CLOSED)))
        self._deliver()

    def _finish(self) -> None:
        with self._lock:
            self._closed = True
        for curl_handle in self._handles.values():
            if curl_handle.pending:
                self._done.append((curl_handle.pending.future, curl_handle.unanswered(CLOSED)))
        self._answer_what_waits()
        self._close()

    def _close(self) -> None:
        """Close the handles, then the connections, then the sockets that wake the thread."""
        for curl_handle in self._handles.values():
            if curl_handle.pending:
                self._multi.remove_handle(curl_handle.curl)
            curl_handle.close()
        self._multi.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def _may_go(self, curl_handle: CurlHandle, port: int) -> bool:
        return self._lone is None or self._lone.may_go(curl_handle, port)

    def _opening(self) -> None:
        if self._lone:
            self._lone.opening()

    def _multi_of(self, window: int, connections: int) -> pycurl.CurlMulti:
        multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
        multi.setopt(pycurl.M_MAX_CONCURRENT_STREAMS, window)
        multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, connections)
        multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        return multi

    def _watch(self, what: int, fd: int, _multi: object, _data: object) -> None:
        """Called by curl with the events to watch on a socket."""
        if what == pycurl.POLL_REMOVE:
            if _is_broken(fd):
                self._doubt(fd)
            if self._ports.pop(fd, None) is not None:
                self._poll.unregister(fd)
        else:
            self._ports[fd] = self._ports.get(fd) or _own_port(fd)
            self._poll.register(fd, _WATCHED[what])

    def _doubt(self, fd: int) -> None:
        """Record that a connection broke: its requests may or may not have been processed."""
        port = self._ports.get(fd)
        for curl_handle in self._handles.values():
            if port and curl_handle.pending and curl_handle.port == port:
                curl_handle.doubtful = True


def _own_port(fd: int) -> int:
    """Return the local port of a socket of curl; 0: it is not a connection."""
    try:
        looked_at = socket.socket(fileno=fd)
    except OSError:
        return 0
    try:
        return int(looked_at.getsockname()[1])
    except (OSError, IndexError):
        return 0
    finally:
        looked_at.detach()


def _is_broken(fd: int) -> bool:
    """Return whether the connection of a socket of curl was lost, not closed properly."""
    try:
        looked_at = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        looked_at.getpeername()
    except OSError:
        return True
    finally:
        looked_at.detach()
    return False
