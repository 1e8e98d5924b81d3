"""An HTTP/2 server (RFC 9113) over TLS that answers requests immediately, late, or never."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from tocsin_phones.exchange import MAX_BODY_BYTES, Handler, IncomingRequest, Reply

MAX_HEADER_BYTES = 16_384
"""Maximum bytes of the headers of a request."""

LINGER = 1.0
"""Seconds after GOAWAY and the last answer until the connection is closed."""

_CONFIG = H2Configuration(
    client_side=False,
    header_encoding=None,
    validate_outbound_headers=False,  # they are valid, and the checks cost a tenth of the throughput
    normalize_outbound_headers=False,
)
_BEFORE_SETTINGS = 1 << 20
_GOAWAY = 7


@dataclass(slots=True)
class _Incoming:
    headers: list[tuple[bytes, bytes]]
    body: bytearray = field(default_factory=bytearray)


class Http2(asyncio.Protocol):
    """One connection with at most `streams` open requests; it is in `transports` while it is open.

    A stream too many is refused (REFUSED_STREAM) while the client can't know better, and then ends the connection.
    """

    def __init__(self, handle: Handler, streams: int, transports: "set[asyncio.Transport]") -> None:
        self._handle = handle
        self._limit = streams
        self._transports = transports
        self._http = H2Connection(_CONFIG)
        self._transport: asyncio.Transport
        self._open: dict[int, _Incoming] = {}
        self._bodies: dict[int, bytes] = {}
        self._memory: dict[str, float] = {}
        self._last: int | None = None
        self._closing = self._broken = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the settings."""
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._transports.add(self._transport)
        self._http.local_settings = _settings(self._limit)
        self._http.initiate_connection()
        # They take effect when the client has acknowledged them.
        self._http.local_settings = _settings(_BEFORE_SETTINGS)
        self._http.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = self._limit
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature of asyncio
        """Forget the open requests."""
        self._transports.discard(self._transport)
        self._open.clear()
        self._bodies.clear()

    def data_received(self, data: bytes) -> None:
        """Process the client's frames. A violation of the protocol closes the connection."""
        if self._broken:
            return
        try:
            events = self._http.receive_data(data)
        except ProtocolError:
            self._broken = True
            self._flush()
            self._close()
            return
        for event in events:
            if not self._transport.is_closing():
                self._do(event)
        self._flush()

    def _do(self, event: Event) -> None:
        # Later frames in the same bytes may have closed the stream or the connection.
        with contextlib.suppress(ProtocolError):
            self._on(event)

    def _on(self, event: Event) -> None:
        match event:
            case RequestReceived(stream_id=int(stream)):
                self._begin(stream, event.headers)
            case DataReceived(stream_id=int(stream)):
                self._take(stream, event.data or b"", event.flow_controlled_length or 0)
            case StreamEnded(stream_id=int(stream)) if stream in self._open:
                self._end(stream)
            case StreamReset(stream_id=int(stream)):
                self._forget(stream)
            case WindowUpdated():
                for stream in [event.stream_id] if event.stream_id else list(self._bodies):
                    self._pump(stream)
            case ConnectionTerminated():
                self._transport.close()

    def _begin(self, stream: int, headers: list[tuple[bytes, bytes]]) -> None:
        if self._last is not None:
            return  # after GOAWAY: the client knows that it was not processed
        if len(self._open) >= self._limit:
            self._http.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
            return
        self._open[stream] = _Incoming(headers)

    def _take(self, stream: int, data: bytes, length: int) -> None:
        incoming = self._open.get(stream)
        if incoming is not None and len(incoming.body) < MAX_BODY_BYTES:
            incoming.body += data
        if length:
            self._http.acknowledge_received_data(length, stream)

    def _end(self, stream: int) -> None:
        reply = self._handle(_request_of(self._open[stream], self._memory))
        if reply.after:
            asyncio.get_running_loop().call_later(reply.after, self._reply_late, stream, reply)
        else:
            self._reply(stream, reply)

    def _reply_late(self, stream: int, reply: Reply) -> None:
        if stream in self._open and not self._transport.is_closing():
            with contextlib.suppress(ProtocolError):
                self._reply(stream, reply)
            self._flush()

    def _reply(self, stream: int, reply: Reply) -> None:
        match reply.fate:
            case "answered":
                self._send(stream, reply)
            case "reset":
                self._http.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)
                self._forget(stream)
            case "cut":
                self._transport.abort()
            case "goaway":
                self._go_away(stream, reply.body)

    def _send(self, stream: int, reply: Reply) -> None:
        headers = [(b":status", b"%d" % reply.status)]
        headers += [(name.lower().encode(), value.encode()) for name, value in reply.headers]
        self._http.send_headers(stream, headers, end_stream=not reply.body)
        if reply.streams > self._limit:
            self._limit = reply.streams
            self._http.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: reply.streams})
        if reply.body:
            self._bodies[stream] = reply.body
            self._pump(stream)
        else:
            self._forget(stream)

    def _pump(self, stream: int) -> None:
        """Send as much of a reply's body as flow control allows."""
        rest = self._bodies.get(stream, b"")
        while rest and (room := self._room(stream)) > 0:
            self._http.send_data(stream, rest[:room], end_stream=room >= len(rest))
            rest = rest[room:]
        if rest:
            self._bodies[stream] = rest
        elif self._bodies.pop(stream, None):
            self._forget(stream)

    def _room(self, stream: int) -> int:
        return min(self._http.local_flow_control_window(stream), self._http.max_outbound_frame_size)

    def _go_away(self, stream: int, why: bytes) -> None:
        """Refuse this request and all later ones, and close once the earlier ones are answered."""
        self._last = max(stream - 2, 0)
        for refused in [one for one in self._open if one > self._last]:
            self._open.pop(refused)
            self._bodies.pop(refused, None)
        self._flush()
        # Written by hand: after its own GOAWAY, the library sends nothing more on the connection.
        self._transport.write(_goaway_frame(self._last, why))
        self._close_if_done()

    def _forget(self, stream: int) -> None:
        self._open.pop(stream, None)
        self._bodies.pop(stream, None)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._last is not None and not self._open and not self._closing:
            self._close()

    def _close(self) -> None:
        """Close after a delay: otherwise data from the client would cause a reset, which loses answers."""
        self._closing = True
        asyncio.get_running_loop().call_later(LINGER, self._transport.close)

    def _flush(self) -> None:
        if (data := self._http.data_to_send()) and not self._transport.is_closing():
            self._transport.write(data)


def _settings(streams: int) -> Settings:
    return Settings(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
        },
    )


def _request_of(incoming: _Incoming, memory: dict[str, float]) -> IncomingRequest:
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in incoming.headers]
    headers = dict(pairs)
    path, _, query = headers.pop(":path", "").partition("?")
    return IncomingRequest(
        headers.pop(":method", ""),
        path,
        query,
        {name: value for name, value in headers.items() if name[0] != ":"},
        bytes(incoming.body),
        memory,
        repeated=len(pairs) != len(headers) + 2,
    )


def _goaway_frame(last: int, why: bytes) -> bytes:
    payload = last.to_bytes(4, "big") + bytes(4) + why
    return len(payload).to_bytes(3, "big") + bytes((_GOAWAY, 0)) + bytes(4) + payload
