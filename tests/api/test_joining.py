"""A response is one packet, unless its body comes later than its head."""

import asyncio
import socket
import struct

import pytest

from tests.support.pages import listening
from tests.support.service import HOUR, SECRET, Api
from tests.support.waiting import LONGEST_WAIT
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
