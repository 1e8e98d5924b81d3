"""nginx as a cheap stand-in for APNs: it answers 200 to everything and logs each request with its time.

What goes to the sandbox is answered that our key is wrong, so that its lane stops and nothing of it goes out.
"""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tocsin_phones.listening import Authority

_LINE = len("1700000000.000 00000000-0000-7000-8000-000000000001\n")
_FLUSH = 0.1
_CONFIGURATION = """
daemon off; worker_processes 1; pid {outer}/nginx.pid;
events {{ worker_connections 64; }}
http {{
    log_format push '$msec $http_apns_id';
    access_log off;
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {cert}; ssl_certificate_key {key};
        http2_max_concurrent_streams 1000; keepalive_requests 10000000;
        location / {{ access_log {outer}/pushes push buffer=64k flush=100ms; return 200; }}
        location /sandbox/ {{ return 403 '{{"reason":"InvalidProviderToken"}}'; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Apple:
    """A running server: the variables that point the service to it, and its access log."""

    variables: Mapping[str, str]
    notes: Path

    def count(self) -> int:
        """Return how many pushes came, up to a moment ago."""
        return self.notes.stat().st_size // _LINE if self.notes.exists() else 0

    async def arrivals(self) -> list[tuple[str, float]]:
        """Return what came up to now: the notifications' ids, and when, in UNIX seconds."""
        await asyncio.sleep(_FLUSH * 2)
        pairs = (line.split() for line in self.notes.read_text("ascii").splitlines())
        return [(id_, float(at)) for at, id_ in pairs]


@asynccontextmanager
async def apple(outer: Path) -> AsyncIterator[Apple]:
    """Run the server for as long as the block runs, with its files in `outer`."""
    if shutil.which("nginx") is None:
        raise SystemExit("This needs nginx: apt-get install nginx-light.")
    authority = Authority()
    secret = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (outer / "key.p8").write_bytes(secret)
    (outer / "ca.pem").write_bytes(authority.pem)
    cert, key = authority.files(outer)
    port = _free_port()
    (outer / "nginx.conf").write_text(_CONFIGURATION.format(outer=outer, port=port, cert=cert, key=key))
    process = await asyncio.create_subprocess_exec(
        "nginx", "-c", str(outer / "nginx.conf"), "-e", str(outer / "nginx.log")
    )
    try:
        yield Apple(_variables(outer, f"https://127.0.0.1:{port}"), outer / "pushes")
    finally:
        process.terminate()
        await process.wait()


def _variables(outer: Path, url: str) -> dict[str, str]:
    return {
        "TOCSIN_APNS_KEY_FILE": str(outer / "key.p8"),
        "TOCSIN_APNS_KEY_ID": "BENCH00KEY",
        "TOCSIN_APNS_TEAM_ID": "BENCH0TEAM",
        "TOCSIN_APNS_TOPIC": "com.example.bench",
        "TOCSIN_APNS_URL": url,
        "TOCSIN_APNS_SANDBOX_URL": f"{url}/sandbox",
        "TOCSIN_PUSH_CA_FILE": str(outer / "ca.pem"),
    }


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
