"""The thread that sends: curl's multi interface, driven by the sockets that are ready."""

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
    """Keeps every new connection to one request until one was answered there, and not by 401 or 403.

    Connections are told apart by the port on our side.
    """

    def __init__(self) -> None:
        self.ready = False
        self._alone: CurlHandle | None = None
        self._port = 0
        self._proven: set[int] = set()

    def opening(self) -> None:
        """Take note of a new connection: nothing may begin before somebody went there alone."""
        self.ready = False

    def may_go(self, curl_handle: CurlHandle, port: int) -> bool:
        """Tell whether a request may go out there now."""
        if port in self._proven:
            self.ready = self._alone is None
            return True
        if self._alone is None:
            self._alone, self._port, self.ready = curl_handle, port, False
        return self._alone is curl_handle

    def ended(self, curl_handle: CurlHandle, status: int) -> None:
        """Take note of the end of a request, with its answer's status."""
        if self._alone is not curl_handle:
            return
        self._alone = None
        if status not in _UNPROVEN:
            if len(self._proven) >= _MAX_PORTS:
                self._proven.clear()  # of connections long gone, mostly; the others prove themselves again
            self._proven.add(self._port)
            self.ready = True


class Sender:
    """Sends what it is given, in the thread that calls `run`; `hand_back` is called there with many answers at once."""

    def __init__(  # noqa: PLR0913 - what a transport is made of
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
        self._slots: dict[pycurl.Curl, CurlHandle] = {}
        self._free: list[CurlHandle] = []
        self._queue: deque[Pending] = deque()
        self._done: list[Done] = []
        self._lock = threading.Lock()
        self._ends_at: float | None = None
        self._closed = self._woken = False
        self._due: float | None = None
        self._ports: dict[int, int] = {}
        self._poll = select.poll()
        self._ear, self._bell = socket.socketpair()
        self._ear.settimeout(0)
        self._poll.register(self._ear, select.POLLIN)
        self._multi = self._multi_of(window, connections)

    def take(self, pending: Sequence[Pending]) -> bool:
        """Put requests into the queue, from any thread; False: the end has come, and nothing was taken."""
        with self._lock:
            if self._closed or self._ends_at is not None:
                return False
            self._queue.extend(pending)
            self._wake()
            return True

    def end(self, grace: float) -> None:
        """Begin nothing more, and end when nothing is under way, or after `grace` seconds."""
        with self._lock:
            if not self._closed and self._ends_at is None:
                self._ends_at = time.monotonic() + grace
                self._wake()

    def run(self) -> None:
        """Send until the end; whatever happens, everything is answered."""
        try:
            while not self._at_the_end():
                self._begin()
                self._deliver()
                self._turn()
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
            self._bell.send(b"\0")

    def _at_the_end(self) -> bool:
        if self._ends_at is None:
            return False
        self._answer_what_waits()
        return len(self._free) == len(self._slots) or time.monotonic() >= self._ends_at

    def _begin(self) -> None:
        """Fill the window."""
        now = datetime.now(UTC)
        while self._queue and self._has_room():
            curl_handle = self._free.pop() if self._free else self._new_slot()
            pending = self._queue.popleft()
            if error := curl_handle.begin(pending, now):
                self._done.append((pending.future, curl_handle.unanswered(error)))
                self._free.append(curl_handle)
            else:
                self._multi.add_handle(curl_handle.curl)

    def _has_room(self) -> bool:
        under_way = len(self._slots) - len(self._free)
        return under_way < (self._window if self._lone is None or self._lone.ready else 1)

    def _new_slot(self) -> CurlHandle:
        curl_handle = self._make()
        self._slots[curl_handle.curl] = curl_handle
        return curl_handle

    def _turn(self) -> None:
        """Wait until something can be done, and let curl do it."""
        for fd, events in self._poll.poll(self._patience()):
            if fd == self._ear.fileno():
                self._listen()
                continue
            if events & _BROKEN:
                self._doubt(fd)
            wanted = (pycurl.CSELECT_IN if events & ~select.POLLOUT else 0) | (
                pycurl.CSELECT_OUT if events & ~select.POLLIN else 0
            )
            self._multi.socket_action(fd, wanted)
        if self._due is not None and self._due <= time.monotonic():
            self._due = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)

    def _patience(self) -> int | None:
        """Return the milliseconds for which nothing but sockets can call."""
        ends = [moment for moment in (self._due, self._ends_at) if moment is not None]
        return max(math.ceil((min(ends) - time.monotonic()) * 1000), 0) if ends else None

    def _listen(self) -> None:
        with self._lock:
            self._woken = False
            self._ear.recv(64)

    def _collect(self) -> None:
        """Take what curl has done with."""
        left = 1
        while left:
            left, good, bad = self._multi.info_read(self._window)
            for curl in good:
                self._ended(curl, 0, "")
            for curl, code, message in bad:
                self._ended(curl, code, message)

    def _ended(self, curl: pycurl.Curl, code: int, message: str) -> None:
        curl_handle = self._slots[curl]
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
        for curl_handle in self._slots.values():
            if curl_handle.pending:
                self._done.append((curl_handle.pending.future, curl_handle.unanswered(CLOSED)))
        self._answer_what_waits()
        self._let_go()

    def _let_go(self) -> None:
        """Close the handles first, then their connections, then what waits for them."""
        for curl_handle in self._slots.values():
            if curl_handle.pending:
                self._multi.remove_handle(curl_handle.curl)
            curl_handle.close()
        self._multi.close()
        self._ear.close()
        self._bell.close()

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
        multi.setopt(pycurl.M_TIMERFUNCTION, self._set_due)
        return multi

    def _watch(self, what: int, fd: int, _multi: object, _data: object) -> None:
        """Called by curl: what a socket is to be watched for."""
        if what == pycurl.POLL_REMOVE:
            if _is_broken(fd):
                self._doubt(fd)
            if self._ports.pop(fd, None) is not None:
                self._poll.unregister(fd)
        else:
            self._ports[fd] = self._ports.get(fd) or _own_port(fd)
            self._poll.register(fd, _WATCHED[what])

    def _doubt(self, fd: int) -> None:
        """Take note that a connection broke: what is under way there may have been looked at, or not."""
        port = self._ports.get(fd)
        for curl_handle in self._slots.values():
            if port and curl_handle.pending and curl_handle.port == port:
                curl_handle.doubtful = True

    def _set_due(self, milliseconds: int) -> None:
        """Called by curl: when it wants to be called, at the latest; -1: need not be."""
        self._due = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000


def _own_port(fd: int) -> int:
    """Return the port on our side of a socket of curl's; 0: curl watches for something else there."""
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
    """Tell whether a socket of curl's lost its connection, rather than being closed in order."""
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
