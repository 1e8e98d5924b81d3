"""What all benchmarks share: the service as its user runs it, lean clients, pgbench, medians and the table."""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from tocsin.database import SCHEMA, Connection, connect
from tocsin.embedded import Embedded, url_of
from tocsin.tokens import mint_service, mint_user, own_secret

CONNECTIONS = 16
"""Clients at once, of the service and of pgbench alike."""

_TOCSIN = Path(sys.executable).with_name("tocsin")
_LONGEST_START = 60.0
_LONGEST_STOP = 60.0
_LOOK = 0.005
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RATE = re.compile(r"^tps = ([\d.]+) \(without initial connection time\)$", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: ([1-9]\d*)", re.MULTILINE)


class Options(NamedTuple):
    """How long to measure: `rounds`, each of which measures every subject for `seconds`."""

    rounds: int
    seconds: float


def options(about: str | None, *, rounds: int, seconds: float) -> Options:
    """Read the options of the command line; these are their defaults."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"how often to measure (default: {rounds})")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"how long each time (default: {seconds:g})")
    given = parser.parse_args()
    if given.rounds < 1 or given.seconds < 1:
        parser.error("at least one round of one second")
    return Options(given.rounds, given.seconds)


# The service


@dataclass(frozen=True, slots=True)
class Service:
    """A running `tocsin serve`: where it listens, where its data is, and its first process."""

    host: str
    port: int
    data_dir: Path
    process: asyncio.subprocess.Process

    @property
    def database_url(self) -> str:
        """The url of its embedded PostgreSQL."""
        return url_of(self.data_dir)

    def get(self, path: str, *, user: int) -> bytes:
        """Return the bytes of a user's request."""
        token = mint_user(own_secret(self.data_dir), user, timedelta(hours=1))
        return self._request("GET", path, token, b"")

    def ask_for(self, event_id: str, *, wait: int) -> bytes:
        """Return the bytes of a back end's question what became of an event."""
        return self._request("GET", f"/events/{event_id}?wait={wait}", self._back_end(), b"")

    def post(self, event: Mapping[str, Any]) -> bytes:
        """Return the bytes of a back end's request that posts an event."""
        return self._request("POST", "/events", self._back_end(), json.dumps(event).encode())

    def _back_end(self) -> str:
        return mint_service(own_secret(self.data_dir), "bench", ["events:write"], timedelta(hours=1))

    def _request(self, method: str, path: str, token: str, body: bytes) -> bytes:
        head = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", f"Authorization: Bearer {token}"]
        if body:
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*head, "", ""]).encode() + body


@asynccontextmanager
async def service() -> AsyncIterator[Service]:
    """Run the service on a fresh data folder for as long as the block runs."""
    with folder() as outer:
        async with started(outer / "data") as running:
            yield running


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Make a folder that the server's user can enter, with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="tocsin-bench-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@asynccontextmanager
async def started(data_dir: Path) -> AsyncIterator[Service]:
    """Start the service on a data folder, yield it once it says that it serves, and end it."""
    log = data_dir.with_name("log")
    process = await _spawn(data_dir, log)
    try:
        url = urlsplit(await _serving(process, log))
        yield Service(cast("str", url.hostname), cast("int", url.port), data_dir, process)
    finally:
        await _end(process)
        await _until_gone(data_dir / "postgres/postmaster.pid")


async def _spawn(data_dir: Path, log: Path) -> asyncio.subprocess.Process:
    given = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
    ours = {"TOCSIN_DATA_DIR": str(data_dir), "TOCSIN_PORT": "0", "TOCSIN_LOG_FORMAT": "json"}
    with log.open("wb") as errors:
        return await asyncio.create_subprocess_exec(
            _TOCSIN,
            "serve",
            env={**given, **ours},
            cwd=data_dir.parent,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=errors,
        )


async def _serving(process: asyncio.subprocess.Process, log: Path) -> str:
    end = time.monotonic() + _LONGEST_START
    while process.returncode is None and time.monotonic() < end:
        for line in _lines(log):
            if line["event"] == "serving":
                return str(line["url"])
        await asyncio.sleep(_LOOK)
    raise RuntimeError(f"the service did not start and said: {_lines(log)}")


def _lines(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log that are whole."""
    return [json.loads(line) for line in log.read_bytes().rpartition(b"\n")[0].splitlines() if line.startswith(b"{")]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _LONGEST_STOP)
    except TimeoutError:
        process.kill()
        await process.wait()


async def _until_gone(claim: Path) -> None:
    """Wait until the database has ended too, which a service that ends by force leaves behind for a moment."""
    end = time.monotonic() + _LONGEST_STOP
    while claim.exists() and time.monotonic() < end:
        await asyncio.sleep(_LOOK)


# Clients


class Client(asyncio.Protocol):
    """One connection that is kept, on which one thing is asked at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[tuple[bytes, bytes]] = self._loop.create_future()

    async def ask(self, request: bytes, status: bytes = b"200") -> bytes:
        """Send a request and return the body of its answer; raises `RuntimeError` for any other status."""
        self._answer = self._loop.create_future()
        self._transport.write(request)
        head, body = await self._answer
        if head[9:12] != status:
            raise RuntimeError(f"not {status.decode()}: {head.decode()} {body.decode()}")
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
        if length is None:
            raise RuntimeError(f"an answer of unknown length: {head.decode()}")
        if len(body) >= int(length[1]):
            self._received = b""
            self._answer.set_result((head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits for an answer."""
        if not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the service closed the connection"))
            self._answer.exception()  # nobody may be waiting


@asynccontextmanager
async def clients(service: Service, count: int) -> AsyncIterator[Sequence[Client]]:
    """Lend connections to the service."""
    loop = asyncio.get_running_loop()
    opened = [(await loop.create_connection(Client, service.host, service.port))[1] for _ in range(count)]
    try:
        yield opened
    finally:
        for client in opened:
            client.close()


async def load(
    service: Service, requests: Sequence[bytes], seconds: float, *, status: bytes, accept: Callable[[bytes], bool]
) -> float:
    """Ask these over and over on all connections, each as soon as it was answered; return answers per second.

    Raises `RuntimeError` for an answer of another status, or that is not accepted.
    """
    turns = itertools.cycle(requests)
    async with clients(service, CONNECTIONS) as opened:
        began = time.perf_counter()
        answered = await asyncio.gather(
            *(_ask_until(began + seconds, client, turns, status, accept) for client in opened)
        )
        return sum(answered) / (time.perf_counter() - began)


async def _ask_until(
    end: float, client: Client, turns: Iterator[bytes], status: bytes, accept: Callable[[bytes], bool]
) -> int:
    answered = 0
    while time.perf_counter() < end:
        body = await client.ask(next(turns), status)
        if not accept(body):
            raise RuntimeError(f"an answer that is not as asked for: {body.decode()}")
        answered += 1
    return answered


def has_rows(body: bytes, rows: int = 15) -> bool:
    """Tell whether a page of notifications has this many."""
    return body.count(b'"message_formatted":') == rows


# The database


@asynccontextmanager
async def database(service: Service) -> AsyncIterator[Connection]:
    """Lend a connection to the service's database that finds the service's tables."""
    connection = await connect(service.database_url)
    try:
        yield connection
    finally:
        await connection.close()


async def pgbench(service: Service, script: str, seconds: float) -> float:
    """Run a script of SQL over and over, prepared, with as many clients as the service has; return runs per second."""
    path = service.data_dir.with_name("script.sql")
    path.write_text(script, "utf-8")
    process = await asyncio.create_subprocess_exec(
        Embedded(service.data_dir).binaries / "bin/pgbench",
        *("--no-vacuum", "--protocol", "prepared", "--client", str(CONNECTIONS), "--jobs", "2"),
        *("--time", str(round(seconds)), "--file", path, service.database_url),
        env={**os.environ, "PGOPTIONS": f"-c search_path={SCHEMA} -c timezone=UTC"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode()
    rate = _RATE.search(output)
    if process.returncode or rate is None or _FAILED.search(output):
        raise RuntimeError(f"pgbench failed: {output}")
    return float(rate[1])


# Medians and the table


async def medians(rounds: int, one_round: Callable[[], Awaitable[Mapping[str, float]]]) -> dict[str, float]:
    """Measure this many rounds, each of which measures everything in turn; return the median of each."""
    seen = [await one_round() for _ in range(rounds)]
    names = dict.fromkeys(name for values in seen for name in values)
    found = {name: [values.get(name, 0.0) for values in seen] for name in names}
    for name, values in found.items():
        print(f"  {name}: {', '.join(f'{value:,.4g}' for value in values)}", file=sys.stderr)
    return {name: statistics.median(values) for name, values in found.items()}


def percentile(values: Sequence[float], hundredth: int) -> float:
    """Return the value that this many in a hundred do not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[hundredth - 1]


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the table: what was measured, and against what.

    The limit, if there is one, is on the ratio where there is a reference, else on what was measured.
    """

    what: str
    measured: float
    unit: str
    reference: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def ratio(self) -> float | None:
        """What was measured, in units of the reference."""
        return None if self.reference is None else self.measured / self.reference

    @property
    def kept(self) -> bool:
        """Whether it is within the limit."""
        value = self.measured if self.ratio is None else self.ratio
        return not (
            (self.at_least is not None and value < self.at_least) or (self.at_most is not None and value > self.at_most)
        )

    def cells(self) -> tuple[str, ...]:
        """Return what stands in the table."""
        ratio = "" if self.ratio is None else f"{self.ratio:.3f}"
        return (
            self.what,
            self._amount(self.measured),
            self._amount(self.reference),
            ratio,
            self._limit(),
            self._word(),
        )

    def _amount(self, value: float | None) -> str:
        return "" if value is None else f"{value:,.{0 if value >= 1000 else 1}f} {self.unit}"

    def _limit(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def _word(self) -> str:
        if self.at_least is None and self.at_most is None:
            return ""
        return "yes" if self.kept else "NO"


def show(*claims: Claim) -> None:
    """Print the table, and how busy the machine was: what else runs on it spoils the ratios too."""
    rows = [("what", "measured", "reference", "ratio", "wanted", "kept"), *(claim.cells() for claim in claims)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        right = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *right]))
    busy = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"{os.cpu_count()} processors, load averages after the run: {busy}")
