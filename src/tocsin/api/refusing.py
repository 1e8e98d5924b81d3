"""Refusals that cost little: their responses, and requests that are refused before anything is made for them."""

import asyncio
import contextlib
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus

import httptools

from tocsin.api.connections import is_reserved
from tocsin.api.middleware import OF_EVERY_ANSWER
from tocsin.capacity import Capacity, kind_of
from tocsin.errors import Overloaded, Problem
from tocsin.ids import new_request_id
from tocsin.notifications import to_json

OVERLOADED = Overloaded()

Header = tuple[bytes, bytes]

_SPECIAL = frozenset({b"expect", b"origin", b"transfer-encoding"})
"""Headers of requests for which these bytes or the usual response are not enough."""

MAX_HEADS, MAX_HEAD_BYTES = 1_000, 2_000
"""Maximum heads of requests that are remembered, and maximum bytes of each."""


class Refusing:
    """Decides for all connections of a server which requests are refused because of overload.

    It has a parser of its own, which reads as those of connections do, but makes nothing of a request except what the
    decision needs.
    """

    def __init__(self, capacity: Capacity, prefix: str = "") -> None:
        self._capacity, self._prefix = capacity, prefix.encode()
        self._parser = httptools.HttpRequestParser(self)
        self._kinds: dict[tuple[bytes, int], str] = {}  # by the head and the length of the body
        self._answers: list[tuple[asyncio.Transport, bytes]] = []

    @property
    def is_needed(self) -> bool:
        """Whether requests may have to be refused."""
        return self._capacity.is_refusing

    def refuses(self, data: bytes) -> bool:
        """Return whether these bytes are exactly one complete request that is refused, and count it if so.

        All others are read by the parser of their connection: requests in parts, pipelined or invalid ones, and those
        that need another response.
        """
        kind = self._kind_in(data)
        if kind is None or self._capacity.has_room(kind):
            return False
        self._capacity.refuse(kind)
        return True

    def answer(self, transport: asyncio.Transport, response: bytes) -> None:
        """Send the response to a refused request, after all that is read in this turn of the event loop."""
        if not self._answers:
            asyncio.get_running_loop().call_soon(self.send_answers)
        self._answers.append((transport, response))

    def send_answers(self) -> None:
        """Send the responses that wait for the end of the turn."""
        answers, self._answers = self._answers, []
        for transport, response in answers:
            if not transport.is_closing():
                transport.write(response)

    def _kind_in(self, data: bytes) -> str | None:
        """Return the kind of the one complete request in these bytes; None if they are not one that is refused here.

        A body whose length is in the head does not change how the request is read. So one with the same head and the
        same length as an earlier one, of which nothing but its body followed the head, is not parsed again.
        """
        head, _, rest = data.partition(b"\r\n\r\n")
        kind = self._kinds.get((head, len(rest)))
        if kind is None and (kind := self._read(data)) and self._body_size == len(rest) and len(head) < MAX_HEAD_BYTES:
            if len(self._kinds) >= MAX_HEADS:
                self._kinds.clear()
            self._kinds[head, len(rest)] = kind
        return kind

    def _read(self, data: bytes) -> str | None:
        self._begun = self._complete = self._hosts = self._body_size = 0
        self._is_special = self._keeps_open = False
        self._url = b""
        with contextlib.suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._parser.feed_data(data)
            if self._begun == self._complete == 1 and self._keeps_open:
                return self._kind_read()
        self._parser = httptools.HttpRequestParser(self)  # which has not read a part of another request
        return None

    def _kind_read(self) -> str | None:
        if self._hosts != 1 or self._is_special or self._parser.get_http_version() != "1.1":
            return None
        return self._kind_of(self._parser.get_method(), self._url)

    def refuses_head(self, method: bytes, url: bytes) -> bool:
        """Return whether a request with this head is refused; count it in both cases."""
        kind = self._kind_of(method, url)
        return kind is not None and self._capacity.refuses(kind)

    def _kind_of(self, method: bytes, url: bytes) -> str | None:
        """Return the kind of a request, or None if it is not refused here."""
        path = url.removeprefix(self._prefix)
        if method == b"HEAD" or is_reserved(path):
            return None
        return kind_of(str(method, "ascii"), str(path.partition(b"?")[0], "latin-1"))

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        """Count a request."""
        self._begun += 1

    def on_url(self, url: bytes) -> None:
        """Keep the target of the request."""
        self._url += url

    def on_header(self, name: bytes, _: bytes) -> None:
        """Note what the decision depends on."""
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        elif name in _SPECIAL:
            self._is_special = True

    def on_body(self, body: bytes) -> None:
        """Count the bytes of the body."""
        self._body_size += len(body)

    def on_message_complete(self) -> None:
        """Count a complete request, and note whether its connection stays open, which is not known later."""
        self._complete += 1
        self._keeps_open = self._parser.should_keep_alive()


def response_to(
    problem: Problem, default_headers: Iterable[Header], more: Iterable[Header] = (), request_id: str = ""
) -> bytes:
    """Return the response to a request that is refused, with these headers besides the usual ones."""
    begin = _beginning_of_overload if problem is OVERLOADED else _beginning_of
    head, body = begin(problem, tuple(default_headers))
    lines = b"".join(b"%s: %s\r\n" % header for header in more)
    return b"%s%s\r\n%s\r\n%s" % (head, (request_id or new_request_id()).encode(), lines, body)


def _beginning_of(problem: Problem, default_headers: tuple[Header, ...]) -> tuple[bytes, bytes]:
    """Return the head of responses with this problem, as far as the request id, and their body."""
    body = to_json({"errors": problem.errors()}).encode()
    headers = [
        *default_headers,
        *OF_EVERY_ANSWER,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *((name.lower().encode(), value.encode()) for name, value in problem.headers.items()),
    ]
    status = HTTPStatus(problem.status)
    lines = b"".join(b"%s: %s\r\n" % header for header in headers)
    return b"HTTP/1.1 %d %s\r\n%sx-request-id: " % (status, status.phrase.encode(), lines), body


_beginning_of_overload = lru_cache(maxsize=1)(_beginning_of)
"""The same, made once for each change of the default headers, which have the time."""
