"""HTTP on the wire: the server's own refusals in our form, and a bound on what stands before a body."""

import secrets
from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tocsin.api.envelope import OF_EVERY_ANSWER
from tocsin.errors import Malformed
from tocsin.notifications import to_json

LARGEST_HEAD = 2**16
"""Bytes of the longest request line and headers together."""

HANG_UP = "tocsin.hang_up"
"""Where the scope of a request has what ends its connection at once, whatever is still to be sent."""


class Protocol(HttpToolsProtocol):
    """The server's side of a connection."""

    _in_head = False
    _received = 0

    def data_received(self, data: bytes) -> None:
        """Take what came in, and close on a head that does not end."""
        self._received = len(data) + (self._received if self._in_head else 0)
        super().data_received(data)
        if self._in_head and self._received > LARGEST_HEAD and not self.transport.is_closing():
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Begin the head of a request."""
        self._in_head = True
        super().on_message_begin()
        self.scope[HANG_UP] = self.transport.abort  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        """End the head of a request; what is raised here is answered 400."""
        # Headers are counted only where they can be too many: almost never.
        if self._received > LARGEST_HEAD and _size(self.url, self.headers) > LARGEST_HEAD:
            raise ValueError("the head is too large")
        self._in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the signature is the library's
        """Refuse what can't be understood, and close."""
        too_large = self._in_head and self._received > LARGEST_HEAD
        words = f"The headers may have at most {LARGEST_HEAD} bytes." if too_large else "This is not valid HTTP."
        body = to_json({"errors": Malformed(words).errors()}).encode()
        headers: list[tuple[bytes, bytes]] = [
            *OF_EVERY_ANSWER,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            (b"x-request-id", secrets.token_hex(16).encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n%s\r\n%s" % (lines, body))
        self.transport.close()


def _size(url: bytes, headers: Iterable[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(value) + len(": \r\n") for name, value in headers)
