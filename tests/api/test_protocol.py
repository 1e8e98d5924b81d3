"""Invalid HTTP and request heads that are too large."""

import asyncio
import json
import re

import pytest

from tests.support.answers import codes_of, exchanged, sealed
from tests.support.pages import listening
from tests.support.service import HOUR, SECRET, Api
from tests.support.waiting import LONGEST_WAIT
from tocsin.api.protocol import MAX_HEAD_BYTES
from tocsin.auth.minting import mint_service


class TestRawHttp:
    @pytest.mark.parametrize(
        "sent",
        [
            b"\x00\x01\x02\r\n\r\n",
            b"G\xc3\xa4T / HTTP/1.1\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"GET /healthz HTTP/9.9\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nX y: z\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
            b"GET /healthz HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n",
            b"GET /healthz\r\n\r\n",
        ],
    )
    async def test_invalid_http_is_answered_with_a_problem(self, idle: Api, sent: bytes) -> None:
        async with listening(idle) as port:
            answer = await exchanged(port, sent)
        assert codes_of(answer) == (400, [("malformed", None)])
        assert sealed(answer)

    async def test_request_head_size_is_limited(self, idle: Api) -> None:
        line = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        async with listening(idle) as port:
            large, endless = b"X: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", b"X: " + b"x" * MAX_HEAD_BYTES
            many = b"".join(b"X-%d: x\r\n" % number for number in range(9000)) + b"\r\n"
            for rest in (large, endless, many):
                answer = await exchanged(port, line + rest)
                assert codes_of(answer) == (431, [("head_too_large", None)])
                assert str(MAX_HEAD_BYTES) in answer.text
            assert (await exchanged(port, line + large[:3] + large[203:])).status_code == 200

    @pytest.mark.parametrize(("size", "status"), [(MAX_HEAD_BYTES, 200), (MAX_HEAD_BYTES + 1, 431)])
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_head_of_64_kib_is_accepted_and_one_byte_more_refused(
        self, idle: Api, method: str, size: int, status: int
    ) -> None:
        line = f"{method} /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: ".encode()
        head = line.ljust(size - len(b"\r\n\r\n"), b"x") + b"\r\n\r\n"
        async with listening(idle) as port:
            answer = await exchanged(port, head)
        assert answer.status_code == status

    async def test_large_body_does_not_count_to_the_head(self, idle: Api) -> None:
        token = mint_service(SECRET, "crm", ["events:write"], HOUR)
        head = f"POST /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n"
        body = json.dumps({"type": "x" * 200_000}).encode()
        sent = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        async with listening(idle) as port:
            assert (await exchanged(port, sent)).status_code == 422

    @pytest.mark.parametrize("segments", ["one segment", "two segments"])
    @pytest.mark.parametrize("framing", ["length", "chunks"])
    async def test_upgrade_is_ignored_and_its_body_is_read(self, api: Api, framing: str, segments: str) -> None:
        """The HTTP client of Java sends such requests. A body must not be read as the next request either."""
        await api.people(1)
        token = mint_service(SECRET, "crm", ["events:write"], HOUR)
        head = (
            f"POST /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        )
        upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
        text = "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
        body = json.dumps({"type": "custom", "notify": {"users": [1]}, "params": {"body": text}}).encode()
        if framing == "length":
            head += f"Content-Length: {len(body)}\r\n"
        else:
            head += "Transfer-Encoding: chunked\r\n"
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        again = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        last = b"GET /notifications HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        async with listening(api) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write((head + upgrade + "\r\n").encode())
            if segments == "two segments":
                await writer.drain()
                await api.call("GET", "/healthz")  # the head has arrived before
            writer.write(body + again + last)
            answers = await asyncio.wait_for(reader.read(), LONGEST_WAIT)
            writer.close()
        assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"202", b"200", b"401"]
