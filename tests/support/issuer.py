"""A token issuer: keys, tokens, and a JWKS site with scripted errors."""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS = (*RSA, "ES256", "ES384", "EdDSA", "Ed25519")
READERS: dict[str, Any] = {
    **dict.fromkeys(RSA, RSAAlgorithm),
    **dict.fromkeys(("ES256", "ES384"), ECAlgorithm),
    **dict.fromkeys(("EdDSA", "Ed25519"), OKPAlgorithm),
}
_JWS = jwt.PyJWS()
_JWS.register_algorithm("Ed25519", OKPAlgorithm())
MAKERS: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(RSA, lambda: rsa.generate_private_key(65537, 2048)),
    "RSA of 1024 bits": lambda: rsa.generate_private_key(65537, 1024),  # noqa: S505 - to be refused
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    **dict.fromkeys(("EdDSA", "Ed25519"), ed25519.Ed25519PrivateKey.generate),
    "Ed448": ed448.Ed448PrivateKey.generate,
}


@dataclass(frozen=True)
class Pair:
    """A private key with its public one."""

    private: Any
    algorithm: str
    kid: str

    def sign(self, header: dict[str, Any] | None = None, /, **claims: Any) -> str:
        """Make a token of user 4 for an hour, with the key's id; a claim or a header that is None is left out."""
        said = {"sub": "4", "exp": int(time.time()) + 3600, **claims}
        named = {"kid": self.kid, **(header or {})}
        payload = {name: value for name, value in said.items() if value is not None}
        return _JWS.encode(
            json.dumps(payload).encode(),
            self.private,
            self.algorithm,
            {name: value for name, value in named.items() if value is not None},
        )

    @property
    def pem(self) -> bytes:
        public: bytes = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return public

    @property
    def private_pem(self) -> bytes:
        private: bytes = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return private

    def file(self, folder: Path) -> Path:
        path = folder / f"{self.kid}.pem"
        path.write_bytes(self.pem)
        return path

    def jwk(self, **more: Any) -> dict[str, Any]:
        """Return the public key as an entry of a JWKS."""
        public = READERS[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        return {**public, "kid": self.kid, "use": "sig", "alg": self.algorithm, **more}


@cache
def pair(algorithm: str, kid: str = "one") -> Pair:
    """Return a key pair, the same for the same arguments."""
    return Pair(MAKERS[algorithm](), algorithm, kid)


def jwks(*pairs: Pair) -> bytes:
    return json.dumps({"keys": [pair.jwk() for pair in pairs]}).encode()


def certificate(of: Pair, host: str) -> bytes:
    """Return a certificate of this key for a host, signed by itself."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    since = datetime.now(UTC) - timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, of.private.public_key(), 1)
        .not_valid_before(since)
        .not_valid_after(since + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    )
    return made.sign(of.private, None if of.algorithm in {"EdDSA", "Ed25519"} else SHA256()).public_bytes(Encoding.PEM)


Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def responding(body: bytes, status: str = "200 OK", *headers: str) -> Answer:
    """Return a handler that sends this response."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()

    return answer


async def hanging(writer: asyncio.StreamWriter) -> None:
    """Send nothing until all clients have timed out."""
    assert writer
    await asyncio.sleep(60)


async def dripping(writer: asyncio.StreamWriter) -> None:
    """Answer one byte at a time, without an end."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(1000):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def endless(writer: asyncio.StreamWriter) -> None:
    """Send an endless response."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


async def endless_headers(writer: asyncio.StreamWriter) -> None:
    """Send endless headers."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Header: " + b"x" * 1000 + b"\r\n")
        await writer.drain()


async def hanging_up(writer: asyncio.StreamWriter) -> None:
    """Close the connection without a response."""
    writer.close()


class Site:
    """A real HTTP server on the loopback, whose `answer` can be changed; `asked` counts requests."""

    def __init__(self, answer: Answer, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.asked = 0
        self.port = port
        self._tls = tls
        self._tasks: set[asyncio.Task[None] | None] = set()

    @property
    def url(self) -> str:
        return f"http{'s://localhost' if self._tls else '://127.0.0.1'}:{self.port}/jwks.json"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            if task:
                task.cancel()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            await self.answer(writer)
        self._tasks.discard(asyncio.current_task())
        writer.close()
