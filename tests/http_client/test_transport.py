"""The HTTP/2 client: every request gets one response, and no request is sent twice."""

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.push_services import (
    Asked,
    Behaviour,
    Connection,
    answering,
    files_in,
    listening,
    push_service,
    spellings,
)
from tests.support.servers import free_port
from tests.support.waiting import LONGEST_WAIT, bounded, reaches
from tocsin.errors import Refusal
from tocsin.http_client import curl_handle
from tocsin.http_client.curl_handle import Limits
from tocsin.http_client.messages import Answer, Request
from tocsin.http_client.public_addresses import is_public, origin_of
from tocsin.http_client.transport import Transport

QUICK = Limits(seconds=3.0, connecting=3.0, bytes=1000)
REFUSED_STREAM, INTERNAL_ERROR = 7, 2


def to(url: str, number: int = 0, **more: Any) -> Request:
    return Request(f"{url}/3/device/{number}", (("apns-id", str(number)),), b'{"aps":{}}', **more)


@asynccontextmanager
async def sending(folder: Path, window: int = 100, **more: Any) -> AsyncIterator[Transport]:
    transport = Transport(window, ca_file=files_in(folder)[0], **more)
    try:
        yield transport
    finally:
        await asyncio.wait_for(transport.close(), LONGEST_WAIT)


async def answers(transport: Transport, requests: list[Request]) -> list[Answer]:
    async with bounded():
        return [await answer for answer in transport.submit_many(requests)]


async def test_http2_request_and_response_arrive_unchanged(tmp_path: Path) -> None:
    behaviour = answering(400, b'{"reason":"BadTopic"}', apns_id="X")
    async with push_service(tmp_path, behaviour) as service, sending(tmp_path) as transport:
        answer = await transport.submit(to(service.url, 7))
    assert (answer.status, answer.body, answer.error) == (400, b'{"reason":"BadTopic"}', "")
    assert answer.headers == {"apns-id": "X"}
    [asked] = service.asked
    assert (asked.headers[":method"], asked.path, asked.headers["apns-id"]) == ("POST", "/3/device/7", "7")
    assert asked.body == b'{"aps":{}}'
    assert asked.headers.keys() & {"accept", "expect", "cookie", "accept-encoding"} == set()


async def test_one_connection_carries_all_requests_within_the_window(tmp_path: Path) -> None:
    under_way, most = 0, 0

    async def slow(connection: Connection, stream: int, _asked: Asked) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        connection.say(stream)

    async with push_service(tmp_path, slow) as service, sending(tmp_path, 20) as transport:
        found = await answers(transport, [to(service.url, number) for number in range(200)])
    assert {answer.status for answer in found} == {200}
    assert len(service.asked) == 200
    assert most == 20
    assert len(service.connections) == 1


async def test_max_concurrent_streams_is_not_exceeded(tmp_path: Path) -> None:
    under_way: Counter[int] = Counter()
    most = 0

    async def slow(connection: Connection, stream: int, _asked: Asked) -> None:
        nonlocal most
        under_way[connection.number] += 1
        most = max(most, under_way[connection.number])
        await asyncio.sleep(0.02)
        under_way[connection.number] -= 1
        connection.say(stream)

    async with push_service(tmp_path, slow, streams=5) as service, sending(tmp_path, 50, connections=1) as transport:
        await transport.submit(to(service.url))  # unknown before the first response
        found = await answers(transport, [to(service.url, number) for number in range(60)])
    assert {(answer.status, answer.error) for answer in found} == {(200, "")}
    assert len(service.asked) == 61
    assert most <= 5
    assert len(service.connections) == 1


def never(_connection: Connection, _stream: int, _asked: Asked) -> None:
    """Send no response."""


def hanging_up(connection: Connection, _stream: int, _asked: Asked) -> None:
    connection.hang_up()


def closing(connection: Connection, _stream: int, _asked: Asked) -> None:
    connection.writer.close()


def broken(connection: Connection, stream: int, _asked: Asked) -> None:
    connection.reset(stream, INTERNAL_ERROR)


def cut_off(connection: Connection, stream: int, _asked: Asked) -> None:
    connection.h2.send_headers(stream, [(":status", "200"), ("content-length", "100")])
    connection.h2.send_data(stream, b"half")
    connection.flush()
    connection.reset(stream, INTERNAL_ERROR)


async def dripping(connection: Connection, stream: int, _asked: Asked) -> None:
    connection.h2.send_headers(stream, [(":status", "200")])
    for _ in range(300):
        connection.h2.send_data(stream, b" ")
        connection.flush()
        await asyncio.sleep(0.02)


def nonsense(connection: Connection, _stream: int, _asked: Asked) -> None:
    connection.writer.write(b"HTTP/1.1 500 This is no HTTP/2\r\n\r\n")


def many_headers(connection: Connection, stream: int, _asked: Asked) -> None:
    connection.say(stream, 200, b"", **{f"x-{number}": "x" * 8000 for number in range(60)})


ODD: dict[str, tuple[Behaviour, str]] = {
    "never": (never, "within 3 s"),
    "drips": (dripping, "within 3 s"),
    "is huge": (answering(200, b"x" * 1001), "more than 1000 bytes"),
    "is declared huge": (answering(200, b"x", content_length="99999"), "more than 1000 bytes"),
    "is cut off": (cut_off, ""),
    "resets the stream": (broken, ""),
    "hangs up": (hanging_up, ""),
    "closes": (closing, ""),
    "is nonsense": (nonsense, ""),
    "has endless headers": (many_headers, ""),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if "within" in said or name == "is nonsense" else name
        for name, (_, said) in ODD.items()
    ],
)
async def test_incomplete_response_is_reported_and_not_retried(tmp_path: Path, name: str) -> None:
    behaviour, error = ODD[name]
    async with push_service(tmp_path) as service, sending(tmp_path, limits=QUICK) as transport:
        warm = await transport.submit(to(service.url, 0))  # a connection that was used is what curl would try again
        service.behaviour = behaviour
        began = time.monotonic()
        answer = await transport.submit(to(service.url, 1))
        took = time.monotonic() - began
        service.behaviour = answering()
        assert (await transport.submit(to(service.url, 2))).status == 200
    assert warm.status == 200
    assert answer.status == 0
    assert answer.error
    assert error in answer.error
    assert took < 30
    if name != "has endless headers":  # that is no HTTP/2, and curl may give it another chance
        assert Counter(asked.path for asked in service.asked) == {f"/3/device/{number}": 1 for number in range(3)}


async def test_request_is_not_sent_again_after_any_of_many_resets(tmp_path: Path) -> None:
    hangs_up, _ = ODD["hangs up"]
    async with push_service(tmp_path) as service, sending(tmp_path, limits=QUICK) as transport:
        for number in range(0, 100, 2):
            service.behaviour = answering()
            assert (await transport.submit(to(service.url, number))).status == 200
            service.behaviour = hangs_up
            assert (await transport.submit(to(service.url, number + 1))).status == 0
    assert Counter(asked.path for asked in service.asked) == {f"/3/device/{number}": 1 for number in range(100)}


async def test_response_at_the_size_limit_is_read(tmp_path: Path) -> None:
    behaviour = answering(200, b"x" * 1000)
    async with push_service(tmp_path, behaviour) as service, sending(tmp_path, limits=QUICK) as transport:
        assert (await transport.submit(to(service.url))).body == b"x" * 1000


async def test_compressed_and_redirect_responses_are_returned_unchanged(tmp_path: Path) -> None:
    async with push_service(tmp_path) as service, sending(tmp_path) as transport:
        service.behaviour = answering(302, location=f"{service.url}/elsewhere", set_cookie="a=b; Path=/")
        moved = await transport.submit(to(service.url))
        service.behaviour = answering(200, b"\x1f\x8b not gzip", content_encoding="gzip")
        packed = await transport.submit(to(service.url))
    assert (moved.status, packed.status, packed.body) == (302, 200, b"\x1f\x8b not gzip")
    assert len(service.asked) == 2
    assert "cookie" not in service.asked[1].headers


async def test_transport_uses_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as (port, came):
        for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        async with push_service(tmp_path) as service, sending(tmp_path) as transport:
            assert (await transport.submit(to(service.url))).status == 200
        assert came == []


async def test_untrusted_certificate_is_rejected(tmp_path: Path) -> None:
    async with push_service(tmp_path) as service:
        transport = Transport(10, limits=QUICK)
        answer = await transport.submit(to(service.url))
        other = await transport.submit(to(service.url.replace("localhost", "127.0.0.1")))
        await transport.close()
    assert (answer.status, other.status) == (0, 0)
    assert "certificate" in answer.error
    assert service.asked == []


async def test_certificate_of_another_host_is_rejected(tmp_path: Path) -> None:
    async with push_service(tmp_path) as service, sending(tmp_path) as transport:
        answer = await transport.submit(to(service.url.replace("localhost", "127.0.0.1")))
    assert answer.status == 0
    assert service.asked == []


def test_invalid_trust_anchors_are_rejected_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("hello")

    async def make(name: str) -> None:
        Transport(1, ca_file=tmp_path / name)

    for name, words in {
        "text.pem": "contains no certificates in PEM",
        "none.pem": "cannot be read: No such file",
    }.items():
        with pytest.raises(Refusal, match=words):
            asyncio.run(make(name))


async def test_refused_connection_is_a_result(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with sending(tmp_path, limits=QUICK) as transport:
        found = await answers(transport, [to(f"https://localhost:{port}", number) for number in range(50)])
    assert {answer.status for answer in found} == {0}
    assert all(answer.error for answer in found)


async def test_refused_stream_is_retried_immediately_but_not_endlessly(tmp_path: Path) -> None:
    refused: Counter[str] = Counter()

    def refusing(times: int) -> Behaviour:
        def behave(connection: Connection, stream: int, asked: Asked) -> None:
            refused[asked.path] += 1
            if refused[asked.path] <= times:
                connection.reset(stream, REFUSED_STREAM)
            else:
                connection.say(stream)

        return behave

    async with push_service(tmp_path, refusing(2)) as service, sending(tmp_path) as transport:
        found = await answers(transport, [to(service.url, number) for number in range(10)])
        service.behaviour = refusing(10**6)
        hopeless = await transport.submit(to(service.url, 99))
    assert {answer.status for answer in found} == {200}
    assert {count for path, count in refused.items() if not path.endswith("99")} == {3}
    assert hopeless.status == 0
    assert 3 < refused["/3/device/99"] < 30


async def test_goaway_loses_and_duplicates_no_request(tmp_path: Path) -> None:
    served: Counter[str] = Counter()
    left: set[int] = set()

    def leaving(connection: Connection, stream: int, asked: Asked) -> None:
        """Answer ten requests of each connection, and no later ones."""
        if connection.number in left:
            return
        served[asked.path] += 1
        connection.say(stream)
        if stream >= 19:
            left.add(connection.number)
            connection.go_away(stream)

    async with push_service(tmp_path, leaving) as service, sending(tmp_path, 50) as transport:
        found = await answers(transport, [to(service.url, number) for number in range(100)])
    assert Counter(answer.status for answer in found) == {200: 100}
    assert served == Counter(f"/3/device/{number}" for number in range(100))


async def test_possibly_processed_request_is_not_resent_after_disconnect(tmp_path: Path) -> None:
    def leaving(connection: Connection, _stream: int, _asked: Asked) -> None:
        if len(service.asked) == 21:
            connection.hang_up()

    async with push_service(tmp_path) as service, sending(tmp_path, 20, limits=QUICK) as transport:
        assert (await transport.submit(to(service.url, 999))).status == 200
        service.behaviour = leaving
        found = await answers(transport, [to(service.url, number) for number in range(20)])
    assert {answer.status for answer in found} == {0}
    assert max(Counter(asked.path for asked in service.asked).values()) == 1


async def test_new_connection_carries_one_request_until_the_first_response(tmp_path: Path) -> None:
    first: dict[int, asyncio.Event] = {}
    early: list[str] = []
    last: dict[int, int] = {}

    async def slow_at_first(connection: Connection, stream: int, asked: Asked) -> None:
        if stream > last.get(connection.number, stream):
            return
        if connection.number not in first:
            first[connection.number] = asyncio.Event()
            await asyncio.sleep(0.2)
            first[connection.number].set()
        elif not first[connection.number].is_set():
            early.append(asked.path)
        connection.say(stream)
        if stream == 41:
            last[connection.number] = connection.h2.highest_inbound_stream_id
            connection.go_away(last[connection.number])

    async with push_service(tmp_path, slow_at_first) as service, sending(tmp_path, 10, lone_first=True) as transport:
        found = await answers(transport, [to(service.url, number) for number in range(100)])
    assert Counter(answer.status for answer in found) == {200: 100}
    assert early == []
    assert len(service.connections) > 1


@pytest.mark.parametrize("status", [401, 403])
async def test_rejected_token_does_not_open_the_window(tmp_path: Path, status: int) -> None:
    under_way, most = 0, 0

    async def slow(connection: Connection, stream: int, _asked: Asked) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.005)
        under_way -= 1
        connection.say(stream, status)

    async with push_service(tmp_path, slow) as service, sending(tmp_path, 10, lone_first=True) as transport:
        found = await answers(transport, [to(service.url, number) for number in range(20)])
    assert {answer.status for answer in found} == {status}
    assert most == 1


async def test_close_fails_pending_and_later_requests(tmp_path: Path) -> None:
    async with push_service(tmp_path, never) as service:
        transport = Transport(5, ca_file=files_in(tmp_path)[0])
        left = transport.submit_many([to(service.url, number) for number in range(20)])
        await reaches(lambda: len(service.asked), 5)
        await asyncio.wait_for(transport.close(), LONGEST_WAIT)
        after = transport.submit(to(service.url))
        found = [await asyncio.wait_for(answer, LONGEST_WAIT) for answer in [*left, after]]
    assert {(answer.status, answer.error) for answer in found} == {(0, "the transport is closed")}
    assert len(service.asked) == 5


async def test_close_can_wait_for_requests_in_flight(tmp_path: Path) -> None:
    may_answer = asyncio.Event()

    async def slow(connection: Connection, stream: int, _asked: Asked) -> None:
        await may_answer.wait()
        connection.say(stream)

    async with push_service(tmp_path, slow) as service:
        transport = Transport(5, ca_file=files_in(tmp_path)[0])
        left = transport.submit_many([to(service.url, number) for number in range(10)])
        await reaches(lambda: len(service.asked), 5)
        closing = asyncio.create_task(transport.close(grace=LONGEST_WAIT))
        await asyncio.sleep(0)  # it takes no more requests
        may_answer.set()
        await closing
        found = [await asyncio.wait_for(answer, LONGEST_WAIT) for answer in left]
    assert Counter(answer.status for answer in found) == {200: 5, 0: 5}


async def test_cancelled_request_does_not_affect_others(tmp_path: Path) -> None:
    async with push_service(tmp_path) as service, sending(tmp_path) as transport:
        given_up, wanted = transport.submit_many([to(service.url, 0), to(service.url, 1)])
        given_up.cancel()
        assert (await wanted).status == 200


async def test_invalid_url_is_a_result(tmp_path: Path) -> None:
    async with sending(tmp_path) as transport:
        for url in ("", "https://", "gopher://localhost", "https://[::1", "file:///etc/passwd", "https://a b/"):
            for guarded in (False, True):
                answer = await transport.submit(Request(url, (), b"", guarded))
                assert (answer.status, bool(answer.error)) == (0, True)


# Addresses from untrusted input.

PRIVATE = """\
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.1.2.3 169.254.169.254 172.16.0.1
172.31.255.255 192.0.0.9 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1
240.0.0.1 255.255.255.255 :: ::1 ::7f00:1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:0:0 ::ffff:0:127.0.0.1
64:ff9b::7f00:1 64:ff9b::10.0.0.1 64:ff9b:1::1 100::1 2001::1 2001:0:7f00:1:: 2001:db8::1 2002:7f00:1:: 2002:a00:1::
2002:c0a8:101::1 3fff::1 5f00::1 fc00::1 fd00::1 fe80::1 fe80::1%1 fec0::1 ff02::1 ff0e::1 localhost 2130706433 0x7f.1
""".split()  # noqa: SIM905 - they are easier to read so
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "17.188.143.1",
    "2606:4700::1111",
    "2a00:1450::1",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
]


def test_public_addresses_are_distinguished_from_all_others() -> None:
    assert [address for address in PRIVATE if is_public(address)] == []
    assert [address for address in PUBLIC if not is_public(address)] == []


async def test_ssrf_guard_blocks_every_spelling_of_loopback(tmp_path: Path) -> None:
    with listening() as (port, came):
        urls = spellings(port)
        assert len(urls) >= 60
        async with sending(tmp_path, 10, limits=QUICK) as transport:
            found = await answers(transport, [Request(url, (), b"x", guarded=True) for url in urls])
            assert came == []
            plain = await transport.submit(Request(f"https://127.0.0.1:{port}/", (), b"x"))  # the listener does listen
        assert came
    assert {answer.status for answer in [*found, plain]} == {0}


async def test_ssrf_guard_reports_private_address_with_its_name(tmp_path: Path) -> None:
    async with push_service(tmp_path) as service, sending(tmp_path) as transport:
        assert (await transport.submit(to(service.url, guarded=True))).error == "forbidden address"
        assert (await transport.submit(to("http://localhost:1", guarded=True))).error == "forbidden address"
    assert service.connections == []


async def test_ssrf_guard_applies_to_pooled_connections(tmp_path: Path) -> None:
    async with push_service(tmp_path) as service, sending(tmp_path) as transport:
        assert (await transport.submit(to(service.url, 0))).status == 200
        assert (await transport.submit(to(service.url, 1, guarded=True))).error == "forbidden address"
    assert [asked.path for asked in service.asked] == ["/3/device/0"]


async def test_ssrf_guard_allows_private_address_only_for_allowed_origin(tmp_path: Path) -> None:
    async with push_service(tmp_path) as service, push_service(tmp_path) as other:  # noqa: SIM117 - needs the url
        async with sending(tmp_path, allowed_origins=[service.url]) as transport:
            allowed = await transport.submit(to(service.url, guarded=True))
            refused = await transport.submit(to(other.url, guarded=True))
            upper = await transport.submit(to(service.url.replace("localhost", "LocalHost"), guarded=True))
    assert (allowed.status, refused.error, upper.status) == (200, "forbidden address", 200)


async def test_allowed_origin_may_use_plain_http(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with sending(tmp_path, allowed_origins=[url]) as transport:
        assert (await transport.submit(to(url, guarded=True))).status == 201
    async with sending(tmp_path) as transport:
        assert (await transport.submit(to(url, guarded=True))).error == "forbidden address"
    server.close()
    await server.wait_closed()


async def test_ssrf_guard_detects_dns_rebinding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name first resolves to a public address, and to the loopback when the connection is opened."""
    seen: list[str] = []

    def first_public(address: str) -> bool:
        seen.append(address)
        return len(seen) == 1 or is_public(address)

    monkeypatch.setattr(curl_handle, "is_public", first_public)
    async with push_service(tmp_path) as service, sending(tmp_path) as transport:
        found = await answers(transport, [to(service.url, number, guarded=True) for number in range(3)])
    assert {answer.error for answer in found} == {"forbidden address"}
    assert len(seen) > 1
    assert service.asked == []


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://fcm.googleapis.com/fcm/send/a:b-c", "https://fcm.googleapis.com"),
        ("https://fcm.googleapis.com:443", "https://fcm.googleapis.com"),
        ("HTTPS://FCM.googleapis.com/", "https://fcm.googleapis.com"),
        ("http://push.example:80/x?y=%2f@z", "http://push.example"),
        ("http://push.example:443/", "http://push.example:443"),
        ("https://[::1]:8443/", "https://[::1]:8443"),
        ("https://fcm.googleapis.com:0443/", None),
        ("https://fcm.googleapis.com:/", None),
        ("https://fcm.googleapis.com./", None),
        ("https://fcm.googleapis.com?x", None),
        ("https://fcm.googleapis.com/#x", None),
        ("https://fcm.googleapis.com\n", None),
        ("https://user@fcm.googleapis.com/", None),
        ("https://2130706433/", None),
        ("https://fcm.googleapis.com\\@evil.example/", None),
        ("https://\u017fcm.googleapis.com/", None),
    ],
)
def test_origin_is_serialized_as_in_browsers(url: str, origin: str | None) -> None:
    assert origin_of(url) == origin


# Third-party servers.


@contextmanager
def program(name: str, *words: object, port: int) -> Iterator[None]:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    process = subprocess.Popen([name, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close())
        yield
    finally:
        process.terminate()
        process.wait(LONGEST_WAIT)


def _wait_for(attempt: Callable[[], None]) -> None:
    end = time.monotonic() + LONGEST_WAIT
    while True:
        try:
            return attempt()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


async def test_nghttpd_reports_no_protocol_error(tmp_path: Path) -> None:
    certificate, key = files_in(tmp_path)
    (tmp_path / "htdocs/3/device").mkdir(parents=True)
    (tmp_path / "htdocs/3/device/0").touch()
    port = free_port()
    with program("nghttpd", "-d", tmp_path / "htdocs", port, key, certificate, port=port):
        async with sending(tmp_path, 100, lone_first=True) as transport:
            requests = [to(f"https://localhost:{port}", number % 2) for number in range(2000)]
            found = await answers(transport, requests)
    assert Counter(answer.status for answer in found) == {200: 1000, 404: 1000}


async def test_repeated_goaway_of_nginx_loses_and_duplicates_nothing(tmp_path: Path) -> None:
    certificate, key = files_in(tmp_path)
    port = free_port()
    (tmp_path / "nginx.conf").write_text(f"""\
daemon off; master_process off; error_log {tmp_path}/error.log; pid {tmp_path}/nginx.pid;
events {{ worker_connections 512; }}
http {{
  log_format id '$http_apns_id'; access_log {tmp_path}/access.log id;
  client_body_temp_path {tmp_path}; proxy_temp_path {tmp_path}; fastcgi_temp_path {tmp_path};
  uwsgi_temp_path {tmp_path}; scgi_temp_path {tmp_path};
  server {{
    listen 127.0.0.1:{port} ssl http2; ssl_certificate {certificate}; ssl_certificate_key {key};
    keepalive_requests 100; http2_max_concurrent_streams 100; location / {{ return 200; }}
  }}
}}
""")
    with program("nginx", "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log", port=port):
        async with sending(tmp_path, 100) as transport:
            found = await answers(transport, [to(f"https://localhost:{port}", number) for number in range(3000)])
    served = Counter((tmp_path / "access.log").read_text().split())
    served.pop("-", None)  # of the connection that looked whether it listens
    assert Counter(answer.status for answer in found) == {200: 3000}
    assert served == Counter(map(str, range(3000)))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file goes when the process ends, unless it is killed")
async def test_trust_anchors_leave_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with push_service(tmp_path) as service:
        (tmp_path / "tmp").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
        async with sending(tmp_path) as transport:
            answer = await transport.submit(to(service.url))
            assert answer.status == 200
            assert list((tmp_path / "tmp").iterdir()) == []
