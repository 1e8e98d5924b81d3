"""A response is one packet, unless its body comes later than its head."""

import asyncio
import logging
import socket
import struct
from typing import Any, cast

import pytest
from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tests.support.pages import listening
from tests.support.service import HOUR, SECRET, Api
from tests.support.waiting import LONGEST_WAIT
from tocsin.api.joining import Joining, is_whole, write_whole
from tocsin.api.protocol import _Flow
from tocsin.auth.minting import mint_service, mint_user

_DATA_SEGMENTS_IN = 152
"""The offset of the number of packets with data that arrived, in the kernel's `struct tcp_info`."""


def packets(writer: asyncio.StreamWriter) -> int:
    """Return how many packets with data this client has received."""
    info = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    count: int = struct.unpack_from("I", info, _DATA_SEGMENTS_IN)[0]
    return count


@pytest.mark.parametrize(
    ("request_line", "end"),
    [
        (b"GET /healthz HTTP/1.1", b"}"),
        (b"HEAD /healthz HTTP/1.1", b"\r\n\r\n"),
        (b"GET /none HTTP/1.1", b"}"),
        (b"GET /healthz?%s HTTP/1.1" % (b"x" * 70_000), b"}"),
    ],
)
async def test_head_and_body_of_a_response_are_one_packet(idle: Api, request_line: bytes, end: bytes) -> None:
    async with listening(idle) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_line + b"\r\nHost: x\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(end), LONGEST_WAIT)
        assert packets(writer) == 1
        writer.close()
        await writer.wait_closed()


async def test_head_of_a_stream_does_not_wait_for_its_first_event(idle: Api) -> None:
    await idle.people(1)
    head = (
        f"GET /notifications/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {mint_user(SECRET, 1, HOUR)}\r\n\r\n"
    )
    async with listening(idle) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode())
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LONGEST_WAIT)
        assert answer.startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()


async def test_interim_response_does_not_wait_for_the_final_one(idle: Api) -> None:
    head = b"POST /events HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
    token = mint_service(SECRET, "crm", ["events:write"], HOUR).encode()
    async with listening(idle) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"Authorization: Bearer " + token + b"\r\nContent-Type: application/json\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LONGEST_WAIT) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await asyncio.wait_for(reader.readuntil(b"}"), LONGEST_WAIT)).startswith(b"HTTP/1.1 422")
        writer.close()
        await writer.wait_closed()


class Transport(asyncio.Transport):
    """A transport that keeps what is written, one entry per system call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.calls.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


def cycle_on(transport: Transport, method: str = "GET", *, keep_alive: bool = True) -> RequestResponseCycle:
    loop, log = asyncio.get_running_loop(), logging.getLogger(__name__)
    return RequestResponseCycle(
        cast("Any", {"method": method}),
        cast("asyncio.Transport", Joining(transport, loop)),
        _Flow(transport, lambda: False),
        log,
        log,
        access_log=False,
        default_headers=[(b"date", b"Mon, 30 Nov 2026 00:00:00 GMT")],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: None,
    )


def start(status: int, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [*headers]}


async def sent(cycle: RequestResponseCycle, begun: Message, body: bytes) -> None:
    await cycle.send(cast("Any", begun))
    await cycle.send(cast("Any", {"type": "http.response.body", "body": body}))
    await asyncio.sleep(0)


WHOLE = (
    (start(200, (b"content-length", b"2"), (b"etag", b'"1"')), b"{}"),
    (start(200, (b"content-length", b"0")), b""),
    (start(204, (b"x-request-id", b"1")), b""),
    (start(304, (b"etag", b'"1"')), b""),
    (start(503, (b"retry-after", b"5"), (b"content-length", b"70000")), b"x" * 70_000),
)


class TestWhole:
    """A complete response is written by one call, as the server would write it by two messages."""

    @pytest.mark.parametrize(("begun", "body"), WHOLE)
    async def test_bytes_are_those_of_the_server(self, begun: Message, body: bytes) -> None:
        usual, whole = Transport(), Transport()
        await sent(cycle_on(usual), begun, body)
        cycle = cycle_on(whole)
        assert is_whole(begun)
        assert write_whole(cycle, begun, body)
        assert whole.calls == [b"".join(usual.calls)]
        assert cycle.response_started
        assert cycle.response_complete
        assert cycle.message_event.is_set()

    @pytest.mark.parametrize(("begun", "body"), WHOLE)
    async def test_server_writes_what_needs_more_than_the_bytes(self, begun: Message, body: bytes) -> None:
        transport = Transport()
        disconnected, started = cycle_on(transport), cycle_on(transport)
        disconnected.disconnected = started.response_started = True
        slow = cycle_on(transport)
        slow.flow.pause_writing()
        for cycle in (cycle_on(transport, "HEAD"), cycle_on(transport, keep_alive=False), disconnected, started, slow):
            assert not write_whole(cycle, begun, body)
        assert transport.calls == []

    @pytest.mark.parametrize("value", [b"1\r\nset-cookie: a=b", b"1\n2", b"1\r2", b"1\0", b"\x7f"])
    async def test_header_with_control_characters_is_refused(self, value: bytes) -> None:
        transport, begun = Transport(), start(304, (b"etag", value))
        cycle = cycle_on(transport)
        assert not write_whole(cycle, begun, b"")
        with pytest.raises(RuntimeError, match="Invalid HTTP header value"):
            await sent(cycle, begun, b"")
        assert transport.calls == []

    @pytest.mark.parametrize(
        ("begun", "body"),
        [
            (start(200, (b"content-length", b"3")), b"{}"),
            (start(304), b"{}"),
            (start(408, (b"content-length", b"2"), (b"connection", b"close")), b"{}"),
            (start(200, (b"content-length", b"2"), (b"transfer-encoding", b"chunked")), b"{}"),
        ],
    )
    async def test_server_decides_about_lengths_and_connections(self, begun: Message, body: bytes) -> None:
        transport = Transport()
        assert not write_whole(cycle_on(transport), begun, body)
        assert transport.calls == []

    def test_stream_is_not_kept_for_its_end(self) -> None:
        assert not is_whole(start(200, (b"content-type", b"text/event-stream")))
