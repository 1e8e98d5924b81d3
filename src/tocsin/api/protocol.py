"""The HTTP protocol of a connection: limits and timeouts for clients, and error responses in the format of the API."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Hashable, Iterable
from math import inf
from typing import Any

import httptools
import structlog
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tocsin.api.connections import Connections, Patience, is_reserved
from tocsin.api.cors import EXPOSED
from tocsin.api.joining import Joining
from tocsin.api.middleware import ABORT, CYCLE
from tocsin.api.refusing import OVERLOADED, Header, Refusing, response_to
from tocsin.api.repeats import MAX_BYTES, MAX_REPEATS, Repeat, Repeats, is_one_head
from tocsin.errors import HeadTooLarge, Malformed, Problem, Timeout, Unavailable

MAX_HEAD_BYTES = 2**16
"""Maximum bytes of the request line and the headers. The same limit applies to trailers and chunk extensions."""

MAX_HEADERS = 256
"""Maximum number of headers: each needs more than a hundred bytes of memory, even if it is short."""

MAX_REST_BYTES = 2**24
"""Maximum bytes that are read of a body after the response."""

PIECE = 2**14
"""Maximum bytes that are parsed at once. Pipelined requests after them wait for their turn."""

LINGER_TIMEOUT = 0.5
"""Seconds before a connection is closed after an error, so that a client that still sends can read the response."""

LATE = 1.0
"""Seconds by which a timer may be late. If it is later, the process was busy, and received data is read first."""

MIN_PART_BYTES = 2**14
"""Bytes of a body that are passed to the application together: to wake it for each byte costs more than to parse."""

MAX_SKIPPED_DIGITS = 5
"""Maximum digits of the length of a body that is skipped. The rest of a larger one is not worth reading."""

_FULL = Unavailable("Too many connections are open. Please try again.")
_CLOSING = (b"connection", b"close")

log = structlog.get_logger(__name__)


_WRITABLE = asyncio.Event()
_WRITABLE.set()


class _Pipeline(list[Any]):
    """The requests that wait for the response to an earlier one: mostly none, for which a deque takes 0.6 KiB."""

    __slots__ = ()

    def appendleft(self, request: Any) -> None:
        """Add a request."""
        self.insert(0, request)


class _Flow(FlowControl):
    """Flow control that does not resume reading while received data waits to be parsed.

    Each response and each read of a body resumes reading. Without this, the data of a client that sends faster than it
    gets responses would grow without limit.
    """

    def __init__(self, transport: asyncio.Transport, is_held: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._is_held = is_held
        self._is_writable_event = _WRITABLE  # an event for each connection would take 0.7 KiB

    def pause_writing(self) -> None:
        """Let responses wait, because the write buffer is full."""
        if not self.write_paused:
            self._is_writable_event = asyncio.Event()
        super().pause_writing()

    def resume_reading(self) -> None:
        """Resume reading, unless received data waits."""
        if not self._is_held():
            super().resume_reading()


class Protocol(HttpToolsProtocol):
    """The server side of a connection.

    It has one timer, which is only replaced by an earlier one, so that most requests do not change it.
    """

    __slots__ = (  # with these in its dictionary, which the base has, each connection would take 1.5 KiB more
        "_connections",
        "_deadline",
        "_framing",
        "_hosts",
        "_in_head",
        "_is_ending",
        "_is_resumed",
        "_is_skipping",
        "_kept",
        "_origins",
        "_patience",
        "_prefix",
        "_received",
        "_refusal",
        "_refusing",
        "_repeating",
        "_repeats",
        "_rest",
        "_running",
        "_timer",
        "_timer_due",
        "_unsent",
        "_unsent_due",
        "_whole",
        "part_at",
    )

    def __init__(  # noqa: PLR0913 - what connections share
        self,
        *arguments: Any,
        connections: Connections,
        patience: Patience,
        origins: Collection[str] = (),
        prefix: str = "",
        refusing: Refusing | None = None,
        repeats: Repeats | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        self.pipeline = _Pipeline()  # type: ignore[assignment]
        self._connections, self._patience = connections, patience
        self._origins = frozenset(origin.encode() for origin in origins)
        self._prefix = prefix.encode()
        self._refusing = refusing
        self._repeats: Repeats = {} if repeats is None else repeats
        self._repeating: asyncio.Task[None] | None = None  # a request that was remembered is answered
        self._is_ending = False  # the connection is closed after that
        self._whole: tuple[Any, bytes] | None = None  # the cycle of a request that can be remembered, and its bytes
        self.part_at = -inf
        """The time of the event loop at which the last part of the current body arrived."""
        self._is_skipping = False  # the rest of a request that is refused because of overload
        self._in_head = False
        self._received = 0  # bytes of the head
        self._framing = 0  # bytes since the head or the last part of the body, such as chunk extensions and trailers
        self._hosts = 0
        self._is_resumed = False
        self._kept = b""  # bytes to parse after the responses to earlier requests
        self._rest: int | None = None  # bytes that may still be read of a body after the response
        self._refusal: Problem | None = None
        self._running: RequestResponseCycle | None = None  # the last one is `cycle`, which may wait for its turn
        self._deadline = inf
        self._unsent, self._unsent_due = 0, inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = inf

    # Callbacks of the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or refuse it if there are too many."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self._is_held)
        if self._connections.enter(self):
            self._expire(self._patience.head)
        else:
            self._answer_problem(_FULL)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection and its timer. Nothing more is written to it."""
        running, self._running = self._running, None
        if running and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)
        self._connections.leave(self)
        self._kept, self._deadline, self._unsent_due = b"", inf, inf
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse received data in pieces; close the connection if an unread body is too long."""
        if self._refusing and self._refusing.is_needed and self._is_refused(self._refusing, data):
            self._refusing.answer(self.transport, response_to(OVERLOADED, self.server_state.default_headers))
            self._await_a_request()
            return
        repeat = self._repeats.get(self._key(data)) if self._repeats and len(data) <= MAX_BYTES else None
        if repeat and self._is_idle():
            self._answer_again(data, repeat)
            return
        if self._rest is not None:
            self._rest -= len(data)
            if self._rest < 0:
                self._close_gracefully()
                return
        if self._kept or self.pipeline or self._repeating:
            self._kept += data
            self.flow.pause_reading()
        elif len(data) <= PIECE:
            self._parse(data)
        else:
            self._take_in(data)

    def pause_writing(self) -> None:
        """Start the timeout of the response, because the write buffer is full."""
        super().pause_writing()
        self._watch_the_unsent()

    def resume_writing(self) -> None:
        """Restart the timeout of the response."""
        super().resume_writing()
        self._watch_the_unsent()

    def shutdown(self) -> None:
        """Close the connection if it is idle, otherwise after the response."""
        if self._refusing:
            self._refusing.send_answers()
        if self._repeating:
            self._is_ending = True
        else:
            super().shutdown()

    def give_way(self) -> None:
        """Close the connection in favour of another one."""
        self.transport.abort()

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        """Start a request."""
        if self._is_resumed:
            return
        self._in_head, self._hosts, self._received = True, 0, 0
        super().on_message_begin()
        self.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Trailers are ignored (RFC 9110, section 6.5.1)."""
        if not self._in_head:
            return
        if len(self.headers) >= MAX_HEADERS:
            raise self._stopping(HeadTooLarge())
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Validate the head of a request, and start to process it."""
        if self._is_resumed:
            return
        # The size is computed only if it can be too large, which is rare.
        if self._received + PIECE > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES:
            raise self._stopping(HeadTooLarge())
        version = self.parser.get_http_version()
        if self._hosts > 1 or version == "0.9" or (self._hosts == 0 and version != "1.0"):
            raise self._stopping(Malformed("A request must have one Host header (RFC 9112, section 3.2)."))
        is_extra = self._connections.is_full()
        if is_extra and not is_reserved(self.url, self._prefix):
            raise self._stopping(_FULL)
        self._in_head, self._framing, self._deadline = False, 0, inf
        if self._refusing and self._refusing.is_needed and version == "1.1" and self._is_to_skip(self._refusing):
            self._is_skipping = True
            self._expire(self._patience.body)
            return
        super().on_headers_complete()
        self.part_at = self.loop.time()
        self.scope[CYCLE] = (self.cycle, self._patience.body, self)  # type: ignore[literal-required]
        self.cycle.transport = Joining(self.transport, self.loop)  # type: ignore[assignment]  # all that a cycle uses
        if is_extra:
            self.cycle.keep_alive = False
        elif version == "1.0" and self.parser.should_keep_alive():
            self.cycle.keep_alive = True
            self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"keep-alive")]

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        self._framing = 0
        if self._is_skipping:
            return
        self.part_at = self.loop.time()
        if len(self.cycle.body) + len(body) < MIN_PART_BYTES and not self.cycle.response_complete:
            self.cycle.body += body  # passed on with a later part, or when the body is complete
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Complete a request. The response may have been sent before."""
        if self.parser.should_upgrade():
            return  # the parser skips the body
        if self._is_skipping:
            self._is_skipping = False
            self._answer_overload()
            return
        super().on_message_complete()
        self._connections.work(self)
        if self._rest is not None:
            self._rest, self.cycle.more_body = None, False
            self._await_a_request()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Process the next request, or wait for it."""
        self.server_state.total_requests += 1
        if self.transport.get_write_buffer_size():
            self._watch_the_unsent()
        self._connections.wait(self)
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            self._note_who_waits()
            self.flow.resume_reading()
        elif self.cycle and self.cycle.more_body:
            self._take_the_rest()
        elif self._refusal:
            self._answer_problem(self._refusal)
        else:
            self._await_a_request()
        if self._kept:
            self.loop.call_soon(self._take_in, b"")

    def _take_in(self, data: bytes) -> None:
        data, self._kept = self._kept + data, b""
        self.flow.resume_reading()
        for start in range(0, len(data), PIECE):
            if self.pipeline:
                self._kept = data[start:]
                return
            self._parse(data[start : start + PIECE])

    def _head_size(self) -> int:
        line = len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n")
        return line + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers) + len("\r\n")

    def _parse(self, data: bytes) -> None:
        if self.parser is None or self._refusal or self.transport.is_closing():
            return
        was_in_head, parser = self._in_head, self.parser
        is_first = was_in_head or not self._is_answering()
        is_new = is_first and not (was_in_head or self._is_skipping or self._rest is not None)
        self._framing += len(data)
        self._whole = None
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or Malformed("The request is not valid HTTP."))
            return
        if self._in_head:
            self._received += len(data) if is_first else 0
            if self._received > MAX_HEAD_BYTES:
                self._refuse(HeadTooLarge())
            elif not was_in_head:
                self._expire(self._patience.head)
        elif self._framing > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge())
        elif self.cycle and self.cycle.more_body:
            self._note_who_waits()
        if is_new and self.parser is parser and is_one_head(data) and self._is_conditional():
            self._whole = self.cycle, data

    def _feed(self, data: bytes) -> None:
        """Parse data. Requests to change the protocol are ignored (RFC 9110, section 7.8)."""
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._resume_after_upgrade()
            else:
                break

    def _resume_after_upgrade(self) -> None:
        """Let another parser read the body, which the first one would read as the next request.

        The HTTP client of Java asks for HTTP/2 by such a request.
        """
        framing = [header for header in self.headers if header[0] in {b"content-length", b"transfer-encoding"}]
        lines = b"".join(b"%s: %s\r\n" % header for header in framing)
        self.parser = httptools.HttpRequestParser(self)
        self._is_resumed = True
        try:
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % lines)
        finally:
            self._is_resumed = False

    def _note_who_waits(self) -> None:
        """Record whether the current request waits for the client or is being processed."""
        if self.cycle.more_body and not self.pipeline:
            self._connections.wait(self)
        else:
            self._connections.work(self)

    def _is_held(self) -> bool:
        return bool(self._kept or self.pipeline or self._refusal or self._repeating)

    def _is_idle(self) -> bool:
        """Return whether the next byte begins a request, and its response can be written at once."""
        if self._in_head or self._is_skipping or self._kept or self._refusal or self._repeating or self._is_answering():
            return False
        if self._connections.is_full() or self.transport.is_closing() or self.transport.get_write_buffer_size():
            return False
        return self.cycle is None or not self.cycle.more_body

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # Requests that are remembered

    def _is_conditional(self) -> bool:
        """Return whether one whole request was read, and its response depends on what the client has."""
        if self._in_head or self.pipeline or not self._is_answering() or self.cycle.more_body:
            return False
        return any(name == b"if-none-match" for name, _ in self.headers)

    def remember(self, cycle: Any, repeat: Repeat) -> None:
        """Answer the request of this cycle so if it comes again."""
        if self._whole and self._whole[0] is cycle:
            if len(self._repeats) >= MAX_REPEATS:
                del self._repeats[next(iter(self._repeats))]
            self._repeats[self._key(self._whole[1])] = repeat
            self._whole = None

    def _key(self, data: bytes) -> Hashable:
        return data, self.client and self.client[0], self.server

    def _answer_again(self, data: bytes, repeat: Repeat) -> None:
        self._connections.work(self)
        self._deadline = inf
        self._repeating = self.loop.create_task(self._repeat(data, repeat))
        self.tasks.add(self._repeating)
        self._repeating.add_done_callback(self.tasks.discard)

    async def _repeat(self, data: bytes, repeat: Repeat) -> None:
        """Answer a request that was remembered, or let the parser read it."""
        response = None
        try:
            with contextlib.suppress(Exception):  # it is raised again when the request is processed
                response = await repeat.response(self._headers_of_all)
        finally:
            self._repeating = None
        if self.transport.is_closing():
            return
        if response:
            self.transport.write(response)
            if self._is_ending:
                self.transport.close()
            self.on_response_complete()
            return
        self._repeats.pop(self._key(data), None)
        self._kept = data + self._kept
        self._take_in(b"")
        if self._is_ending:
            super().shutdown()

    def _headers_of_all(self) -> Iterable[Header]:
        return *self.server_state.default_headers, *((_CLOSING,) if self._is_ending else ())

    # Refused requests

    def _is_refused(self, refusing: Refusing, data: bytes) -> bool:
        """Return whether data is one complete request that is refused; then it does not reach the parser."""
        return len(data) <= PIECE and self._is_idle() and refusing.refuses(data)

    def _is_to_skip(self, refusing: Refusing) -> bool:
        """Return whether to refuse this request here, because of overload.

        The application refuses all others: behind a response that is not sent yet, with a large body, and those that
        expect another kind of response. It does the same, but a refusal must cost little when most are refused.
        """
        if self._is_answering() or self.pipeline or self.transport.get_write_buffer_size():
            return False
        if self.expect_100_continue or self.parser.should_upgrade():
            return False
        for name, value in self.headers:
            if name == b"transfer-encoding" or (name == b"content-length" and len(value) > MAX_SKIPPED_DIGITS):
                return False
        return refusing.refuses_head(self.parser.get_method(), self.url)

    def _answer_overload(self) -> None:
        """Refuse the current request and keep the connection open: a new one would cost more."""
        keeps = self.parser.should_keep_alive()
        self.transport.write(self._response_to(OVERLOADED, *(() if keeps else (_CLOSING,))))
        if not keeps:
            self._close_gracefully()
        else:
            self._await_a_request()

    def _stopping(self, problem: Problem) -> ValueError:
        """Store a problem, and return an exception that stops the parser."""
        self._refusal = problem
        return ValueError(str(problem))

    def _refuse(self, problem: Problem) -> None:
        """Send an error response after the responses to earlier requests, and close the connection."""
        self._refusal = problem
        self.flow.pause_reading()
        if not self._is_answering():
            self._answer_problem(problem)
        elif self.cycle.more_body and not self.pipeline:
            # The error is in the body of the current request.
            if self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._answer_problem(problem)

    def _answer_problem(self, problem: Problem) -> None:
        log.info("request refused", status=problem.status, reason=str(problem))
        self._connections.dropped(problem.code)
        self.transport.write(self._response_to(problem, _CLOSING))
        if problem is _FULL:
            self._close()  # at once, because there are too many connections
        else:
            self._close_gracefully()

    def _response_to(self, problem: Problem, *more: Header) -> bytes:
        return response_to(problem, self.server_state.default_headers, (*self._for_its_origin(), *more))

    def _for_its_origin(self) -> Iterable[tuple[bytes, bytes]]:
        """Return the CORS headers for an allowed origin, if its header was received."""
        for name, value in self.headers or ():
            if name == b"origin" and value in self._origins:
                return (
                    (b"access-control-allow-origin", value),
                    (b"access-control-expose-headers", ", ".join(EXPOSED).encode()),
                    (b"vary", b"Origin"),
                )
        return ()

    # Timeouts

    def _await_a_request(self) -> None:
        self._connections.wait(self)
        self._expire(self._patience.head if self._in_head else self._patience.idle)

    def _take_the_rest(self) -> None:
        """Read the rest of a body after the response: some clients read the response only after sending the body."""
        if self.expect_100_continue:
            self._close_gracefully()
            return
        self._rest = MAX_REST_BYTES
        self._expire(self._patience.rest)

    def _close_gracefully(self) -> None:
        """Close after `LINGER_TIMEOUT`: closing at once could discard data that the client has not read."""
        self.flow.pause_reading()
        self._deadline = inf
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_TIMEOUT, self._close)

    def _close(self) -> None:
        self.transport.close()
        self._watch_the_unsent()

    def _watch_the_unsent(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._unsent_due = self.loop.time() + self._patience.answer if self._unsent else inf
        self._set_timer(self._unsent_due)

    def _expire(self, seconds: float) -> None:
        self._deadline = self.loop.time() + seconds
        self._set_timer(self._deadline)

    def _set_timer(self, when: float) -> None:
        if when < self._timer_due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = when
            self._timer = self.loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        now, due = self.loop.time(), self._timer_due
        self._timer, self._timer_due = None, inf
        if now > due + LATE:
            self._set_timer(now + LATE)
            return
        if now >= self._unsent_due:
            left = self.transport.get_write_buffer_size()
            if left >= self._unsent:
                self._end("answer_timeout")
                return
            self._watch_the_unsent()
        if now >= self._deadline:
            self._deadline = inf
            self._time_out()
        self._set_timer(min(self._deadline, self._unsent_due))

    def _time_out(self) -> None:
        if self._rest is not None:
            self._close_gracefully()
        elif self._is_answering():
            self._expire(self._patience.head)  # the timeout for the next head has not started
        elif self._in_head:
            self._refuse(Timeout("The head of the request did not arrive in time."))
        elif self._unsent:
            self._end("answer_timeout")
        else:
            self.transport.close()

    def _end(self, reason: str) -> None:
        log.info("connection dropped", reason=reason)
        self._connections.dropped(reason)
        self.transport.abort()
