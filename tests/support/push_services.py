"""Failing push services: HTTP/2 over TLS on the loopback, with a record of requests."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from tests.support.issuer import certificate, pair
from tocsin.http_client.messages import Answer
from tocsin.push.channels import Address, Push, Shown

ID = UUID("0190a5b4-9b5f-7cc3-8d3e-0123456789ab")
OTHER = UUID("0190a5b4-9b5f-7cc3-8d3e-0123456789ac")
EXPIRES = datetime(2031, 1, 2, 3, 4, 5, tzinfo=UTC)
OURS = pair("ES256", "push-service")


@dataclass(frozen=True)
class Asked:
    """A request as the service saw it; `connection` counts from 0."""

    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        return self.headers[":path"]


@dataclass
class Connection:
    """One connection of a client; `h2` speaks for it."""

    number: int
    h2: h2.connection.H2Connection
    writer: asyncio.StreamWriter

    def say(self, stream: int, status: int = 200, body: bytes = b"", **headers: str) -> None:
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        with contextlib.suppress(h2.exceptions.ProtocolError):  # it may be closed already
            self.h2.send_headers(stream, [(":status", str(status)), *named], end_stream=not body)
            while body:
                size = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(body))
                if not size:
                    break
                self.h2.send_data(stream, body[:size], end_stream=size == len(body))
                body = body[size:]
        self.flush()

    def reset(self, stream: int, code: int) -> None:
        self.h2.reset_stream(stream, code)
        self.flush()

    def go_away(self, last: int) -> None:
        self.writer.write(GoAwayFrame(0, last_stream_id=last).serialize())  # and go on with the streams there are

    def hang_up(self) -> None:
        """Reset the connection."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())


Behaviour = Callable[[Connection, int, Asked], Awaitable[None] | None]


def answering(status: int = 200, body: bytes = b"", **headers: str) -> Behaviour:
    def behave(connection: Connection, stream: int, _asked: Asked) -> None:
        connection.say(stream, status, body, **headers)

    return behave


@dataclass
class PushService:
    """A service whose `behaviour` can be changed; `asked` is in the order of arrival."""

    behaviour: Behaviour
    port: int = 0
    streams: int = 100
    asked: list[Asked] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        spoken = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection = Connection(len(self.connections), spoken, writer)
        self.connections.append(connection)
        with contextlib.suppress(OSError, asyncio.CancelledError, h2.exceptions.ProtocolError):
            spoken.initiate_connection()
            spoken.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: self.streams})
            connection.flush()
            await self._converse(connection, reader)
        writer.close()

    async def _converse(self, connection: Connection, reader: asyncio.StreamReader) -> None:
        heads: dict[int, dict[str, str]] = {}
        bodies: dict[int, bytes] = {}
        while received := await reader.read(65536):
            for event in connection.h2.receive_data(received):
                match event:
                    case h2.events.RequestReceived():
                        heads[event.stream_id] = dict(event.headers)  # type: ignore[arg-type]
                        bodies[event.stream_id] = b""
                    case h2.events.DataReceived():
                        bodies[event.stream_id] += event.data
                        connection.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    case h2.events.StreamEnded():
                        asked = Asked(heads.pop(event.stream_id), bodies.pop(event.stream_id), connection.number)
                        self.asked.append(asked)
                        coming = self.behaviour(connection, event.stream_id, asked)
                        if coming is not None:
                            self.tasks.add(asyncio.ensure_future(coming))
            connection.flush()


@asynccontextmanager
async def push_service(
    folder: Path, behaviour: Behaviour | None = None, *, streams: int = 100
) -> AsyncIterator[PushService]:
    service = PushService(behaviour or answering(), streams=streams)
    server = await asyncio.start_server(service.serve, "localhost", 0, ssl=context_in(folder), family=socket.AF_INET)
    service.port = server.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        server.close()
        for task in service.tasks:
            task.cancel()
        await asyncio.gather(*service.tasks, return_exceptions=True)


def files_in(folder: Path) -> tuple[Path, Path]:
    """Return the files of the certificate, which is its own anchor, and of its key."""
    shown, key = folder / "push-service.pem", folder / "push-service.key"
    if not shown.exists():
        shown.write_bytes(certificate(OURS, "localhost"))
        key.write_bytes(OURS.private_pem)
    return shown, key


def context_in(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files_in(folder))
    context.set_alpn_protocols(["h2"])
    return context


@contextmanager
def listening() -> Iterator[tuple[int, list[object]]]:
    """Listen on the loopback, with IPv4 and IPv6 if available; yields the port and the clients that connected."""
    came: list[object] = []
    loop = asyncio.get_running_loop()
    sockets = [socket.create_server(("127.0.0.1", 0))]
    port: int = sockets[0].getsockname()[1]
    with contextlib.suppress(OSError):
        sockets.append(socket.create_server(("::1", port), family=socket.AF_INET6))
    for opened in sockets:
        loop.add_reader(opened, _accept, opened, came)
    try:
        yield port, came
    finally:
        for opened in sockets:
            loop.remove_reader(opened)
            opened.close()


def _accept(opened: socket.socket, came: list[object]) -> None:
    accepted, address = opened.accept()
    accepted.close()
    came.append(address)


def shown(**more: Any) -> Shown:
    values: dict[str, Any] = {
        "type": "note",
        "title": "New note",
        "body": "Ann wrote: <br> hello",
        "data": '{"user":{"id":4}}',
        "link": "https://crm.example.com/cases/6",
        "thread": "case-6",
        "category": "note",
        "android_channel": "notes",
        "preset": "normal",
    }
    return Shown(**values | more)


def push(address: Address, words: Shown | None = None, **more: Any) -> Push:
    values: dict[str, Any] = {"id": ID, "address": address, "badge": 3, "expires_at": EXPIRES, "shown": words}
    return Push(**values | more)


def phone(type_: str = "iOS", token: str = "ab" * 32, **more: Any) -> Address:
    values: dict[str, Any] = {"environment": "production", "app": "default", "registered_at": EXPIRES, "type": type_}
    return Address(token, **values | more)


def answer(status: int, body: bytes = b"", *, sent_at: datetime | None = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    error = "" if status else "no whole answer within 10 s"
    return Answer(status, named, body, sent_at or datetime.now(UTC), error)


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def spellings(port: int) -> list[str]:
    hosts = [
        *(
            "localhost",
            "localhost.",
            "LOCALHOST",
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "127.0.1",
            "127.0.0.2",
            "0",
            "0.0.0.0",  # noqa: S104 - not a listening address
        ),
        *("2130706433", "0x7f000001", "0x7f.1", "0x7f.0.0.1", "017700000001", "0177.0.0.1", "127.0.0.0x1", "0x7F.1"),
        *(
            "[::1]",
            "[::]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[::ffff:0:0]",
        ),
        *("[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::1%25lo]", "[fe80::1%25lo]", "%6c%6f%63%61%6c%68%6f%73%74"),
        *("ⓛocalhost", "localhost%00", "127。0。0。1", "127.0.0.1%2f", "①②⑦.0.0.1", "lo\tcalhost", "localhost\\"),
        *(
            "fcm.googleapis.com@localhost",
            "fcm.googleapis.com:x@127.0.0.1",
            "fcm.googleapis.com%40localhost",
            "a:b@[::1]",
        ),
    ]
    urls = [f"https://{host}:{port}/x" for host in hosts]
    return [
        *urls,
        *(
            f"{scheme}://127.0.0.1:{port}/"
            for scheme in ("http", "HTTP", "ws", "wss", "ftp", "gopher", "dict", "telnet")
        ),
        *(
            f"https://{start}127.0.0.1:{port}/"
            for start in ("fcm.googleapis.com#@", "fcm.googleapis.com?@", "#", "/", "\\")
        ),
        *(f"https:{slashes}127.0.0.1:{port}/" for slashes in ("", "/", "///", "\\\\", "/\\")),
        *(f"{odd}https://127.0.0.1:{port}/" for odd in (" ", "\t", "\n", "url:", "view-source:")),
        f"127.0.0.1:{port}",
        f"//127.0.0.1:{port}/",
    ]
