"""The service as in production, its database, and cheap clients."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from tocsin.auth.keys import own_secret
from tocsin.auth.minting import mint_service, mint_user
from tocsin.db.connections import Connection, connect
from tocsin.postgres.supervisor import url_of

_TOCSIN = Path(sys.executable).with_name("tocsin")
_LONGEST_START = 60.0
_LONGEST_STOP = 60.0
_LOOK = 0.005
_WITHOUT_BODY = (b"204", b"304")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Service:
    """A running `tocsin serve`: its address, its data folder and its main process."""

    host: str
    port: int
    data_dir: Path
    process: asyncio.subprocess.Process

    @property
    def database_url(self) -> str:
        """The url of its embedded PostgreSQL."""
        return url_of(self.data_dir)

    def get(self, path: str, *, user: int, tag: str | None = None) -> bytes:
        """Return the bytes of a user's request; with the `ETag` that the user has, if any."""
        return self._request("GET", path, self._of_user(user), b"", **({"If-None-Match": tag} if tag else {}))

    def put(self, path: str, *, user: int) -> bytes:
        """Return the bytes of a user's change that needs no body."""
        return self._request("PUT", path, self._of_user(user), b"")

    def ask_for(self, event_id: str, *, wait: int) -> bytes:
        """Return the bytes of a back end's question what became of an event."""
        return self._request("GET", f"/events/{event_id}?wait={wait}", self._back_end(), b"")

    def post(self, event: Mapping[str, Any], **headers: str) -> bytes:
        """Return the bytes of a back end's request that posts an event."""
        return self._request("POST", "/events", self._back_end(), json.dumps(event).encode(), **headers)

    def post_batch(self, events: Sequence[Mapping[str, Any]]) -> bytes:
        """Return the bytes of a back end's request that posts many events."""
        return self._request("POST", "/events/batch", self._back_end(), json.dumps({"events": events}).encode())

    def post_import(self, lines: bytes) -> bytes:
        """Return the bytes of a back end's import of these lines."""
        headers = {"Content-Type": "application/x-ndjson"}
        return self._request("POST", "/directory/import", self._back_end(), lines, **headers)

    def of_user(self, method: str, path: str, user: int, given: Any = None) -> bytes:
        """Return the bytes of any request of a user."""
        return self._request(method, path, self._of_user(user), b"" if given is None else json.dumps(given).encode())

    def of_back_end(self, method: str, path: str, given: Any = None) -> bytes:
        """Return the bytes of any request of a back end."""
        return self._request(method, path, self._back_end(), b"" if given is None else json.dumps(given).encode())

    def _of_user(self, user: int) -> str:
        return mint_user(own_secret(self.data_dir), user, timedelta(hours=1))

    def _back_end(self) -> str:
        scopes = ["events:write", "directory:write"]
        return mint_service(own_secret(self.data_dir), "bench", scopes, timedelta(hours=1))

    def _request(self, method: str, path: str, token: str, body: bytes, **headers: str) -> bytes:
        head = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", f"Authorization: Bearer {token}"]
        if body:
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        head += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*head, "", ""]).encode() + body


@asynccontextmanager
async def service() -> AsyncIterator[Service]:
    """Run the service on a fresh data folder for as long as the block runs."""
    with folder() as outer:
        async with started(outer / "data") as running:
            yield running


@asynccontextmanager
async def database(service: Service) -> AsyncIterator[Connection]:
    """Provide a connection to the service's database, with the search path of the service."""
    connection = await connect(service.database_url)
    try:
        yield connection
    finally:
        await connection.close()


async def in_inboxes(connection: Connection, event_id: str) -> None:
    """Wait until an event is in the last inbox; its status would wait for its pushes, too."""
    while await connection.fetchval("select exists (select from jobs where id = $1)", event_id):
        await asyncio.sleep(_LOOK)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Create a folder that the server's user can access, with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="tocsin-bench-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@asynccontextmanager
async def started(
    data_dir: Path,
    variables: Mapping[str, str] | None = None,
    command: Sequence[str] = (str(_TOCSIN),),
    arguments: Sequence[str] = ("serve",),
) -> AsyncIterator[Service]:
    """Start the service on a data folder, with further settings; yield it when it is ready, then stop it.

    `arguments` are those of the command. A worker has no address.
    """
    log = data_dir.with_name("log")
    process = await _spawn(data_dir, log, variables or {}, (*command, *arguments))
    try:
        url = urlsplit(await _serving(process, log))
        yield Service(url.hostname or "", url.port or 0, data_dir, process)
    finally:
        await _end(process)
        _wait_for_the_end_of(data_dir / "postgres")


async def _spawn(
    data_dir: Path, log: Path, variables: Mapping[str, str], command: Sequence[str]
) -> asyncio.subprocess.Process:
    given = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
    given.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed service is compiled
    ours = {"TOCSIN_DATA_DIR": str(data_dir), "TOCSIN_PORT": "0", "TOCSIN_LOG_FORMAT": "json"}
    ours["TOCSIN_LIMIT_USER_REQUESTS"] = "none"  # few clients call as often as many
    with log.open("wb") as errors:
        return await asyncio.create_subprocess_exec(
            *command,
            env={**given, **ours, **variables},
            cwd=data_dir.parent,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=errors,
        )


async def _serving(process: asyncio.subprocess.Process, log: Path) -> str:
    end = time.monotonic() + _LONGEST_START
    while process.returncode is None and time.monotonic() < end:
        for line in _lines(log):
            if line["event"] in {"serving", "worker started"}:
                return str(line.get("url", ""))
        await asyncio.sleep(_LOOK)
    raise RuntimeError(f"the service did not start and said: {_lines(log)}")


def _lines(log: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a log."""
    return [json.loads(line) for line in log.read_bytes().rpartition(b"\n")[0].splitlines() if line.startswith(b"{")]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _LONGEST_STOP)
    except TimeoutError:
        process.kill()
        await process.wait()


def _wait_for_the_end_of(database: Path) -> None:
    """Wait until the database has ended, too: a killed service leaves it running for a moment."""
    end = time.monotonic() + _LONGEST_STOP
    while (database / "postmaster.pid").exists() and time.monotonic() < end:
        time.sleep(_LOOK)


class Client(asyncio.Protocol):
    """One persistent connection with one request at a time; `head` is the head of the last response."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.head = b""
        self._received = b""
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[tuple[bytes, bytes]] = self._loop.create_future()

    async def ask(self, request: bytes, *expected: bytes) -> bytes:
        """Send a request and return the body of its answer; raises `RuntimeError` for another status (b"200")."""
        self._answer = self._loop.create_future()
        self._transport.write(request)
        head, body = await self._answer
        self.head = head
        if head[9:12] not in (expected or (b"200",)):
            raise RuntimeError(f"an unexpected answer: {head.decode()} {body.decode()}")
        return body

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = _LENGTH.search(head)
        if length is None and head[9:12] not in _WITHOUT_BODY:
            raise RuntimeError(f"an answer of unknown length: {head.decode()}")
        if length is None or len(body) >= int(length[1]):
            self._received = b""
            self._answer.set_result((head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits for an answer."""
        if not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the service closed the connection"))
            self._answer.exception()  # there may be no waiter


@asynccontextmanager
async def clients(service: Service, count: int) -> AsyncIterator[Sequence[Client]]:
    """Provide connections to the service."""
    loop = asyncio.get_running_loop()
    opened = [(await loop.create_connection(Client, service.host, service.port))[1] for _ in range(count)]
    try:
        yield opened
    finally:
        for client in opened:
            client.close()
