"""An HTTP/1.1 server, for the control port and for clients that request tokens over HTTP/1.1."""

import asyncio
from http import HTTPStatus
from typing import cast

import httptools

from tocsin_phones.exchange import MAX_BODY_BYTES, Handler, IncomingRequest, Reply


class Http1(asyncio.Protocol):
    """One connection, kept alive; it is in `transports` while it is open. Requests are processed in sequence."""

    def __init__(self, handle: Handler, transports: "set[asyncio.Transport]") -> None:
        self._handle = handle
        self._transports = transports
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._memory: dict[str, float] = {}
        self._url = b""
        self._pairs: list[tuple[str, str]] = []
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._transports.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature of asyncio
        """Forget the transport."""
        self._transports.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        """Parse received data. Invalid HTTP is answered 400 and closes the connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._send(Reply(400))
            self._transport.close()

    def on_message_begin(self) -> None:
        """Start a new request."""
        self._url = b""
        self._pairs = []
        self._body = bytearray()

    def on_url(self, url: bytes) -> None:
        """Add a part of the url."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header."""
        self._pairs.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """Answer `Expect: 100-continue`."""
        if ("expect", "100-continue") in self._pairs:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        if len(self._body) < MAX_BODY_BYTES:
            self._body += body

    def on_message_complete(self) -> None:
        """Handle the request."""
        path, _, query = self._url.decode("latin-1").partition("?")
        headers = dict(self._pairs)
        repeated = len(headers) != len(self._pairs)
        method = self._parser.get_method().decode()
        reply = self._handle(
            IncomingRequest(method, path, query, headers, bytes(self._body), self._memory, repeated=repeated)
        )
        if reply.after:
            asyncio.get_running_loop().call_later(reply.after, self._reply, reply)
        else:
            self._reply(reply)

    def _reply(self, reply: Reply) -> None:
        if reply.fate == "answered":
            self._send(reply)
        elif reply.fate != "hang":
            self._transport.abort()

    def _send(self, reply: Reply) -> None:
        if self._transport.is_closing():
            return
        lines = [f"HTTP/1.1 {reply.status} {_phrase(reply.status)}"]
        lines += [f"{name}: {value}" for name, value in reply.headers]
        if reply.status != HTTPStatus.NO_CONTENT:
            lines.append(f"content-length: {len(reply.body)}")
        self._transport.write("\r\n".join((*lines, "", "")).encode("latin-1", "replace") + reply.body)
        if not self._parser.should_keep_alive():
            self._transport.close()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
