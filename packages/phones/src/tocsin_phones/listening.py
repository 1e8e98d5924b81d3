"""Sockets: TLS with the stand-ins' certificate authority, and negotiation of the HTTP version."""

import asyncio
import contextlib
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tocsin_phones.exchange import Handler
from tocsin_phones.http1 import Http1
from tocsin_phones.http2 import Http2

LIFETIME = timedelta(days=90)
"""The lifetime of a certificate; a new one is made at each start."""

CLOSE_TIMEOUT = 1.0
"""Seconds that a stop waits for connections to close."""

NAMES = (
    x509.DNSName("localhost"),
    x509.IPAddress(ip_address("127.0.0.1")),
    x509.IPAddress(ip_address("::1")),
)


class Listener:
    """The ports of the stand-ins and their connections."""

    def __init__(self, authority: "Authority", host: str) -> None:
        self._authority = authority
        self._host = host
        self._servers: list[asyncio.Server] = []
        self._tls_connections: set[asyncio.Transport] = set()
        self._plain_connections: set[asyncio.Transport] = set()

    async def open(self, handle: Handler, port: int, *, streams: int, old: bool) -> int:
        """Listen with TLS for HTTP/2, and for HTTP/1.1 if `old`; return the port. Raises `OSError`."""

        def factory() -> asyncio.Protocol:
            return _Choosing(
                Http2(handle, streams, self._tls_connections), Http1(handle, self._tls_connections) if old else None
            )

        server = await asyncio.get_running_loop().create_server(
            factory, self._host, port, ssl=self._authority.context(old=old), backlog=1024
        )
        return self._port_of(server)

    async def open_plainly(self, handle: Handler, port: int) -> int:
        """Listen for HTTP/1.1 without TLS, and return the port. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Http1(handle, self._plain_connections), self._host, port)
        return self._port_of(server)

    async def close(self) -> None:
        """Stop listening, and close all connections."""
        for server in self._servers:
            server.close()
        self.cut()
        for transport in list(self._plain_connections):
            transport.abort()
        # A connection in its TLS handshake is in neither set, so the wait has a limit.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.gather(*(server.wait_closed() for server in self._servers))
        self._servers.clear()

    def cut(self) -> None:
        """Close all connections except those to plain ports."""
        for transport in list(self._tls_connections):
            transport.abort()

    def _port_of(self, server: asyncio.Server) -> int:
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port


class _Choosing(asyncio.Protocol):
    """A connection until its HTTP version is negotiated."""

    def __init__(self, new: Http2, old: Http1 | None) -> None:
        self._new = new
        self._old = old

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        protocol = self._new if chosen == "h2" else self._old
        if protocol is None:
            transport.close()
            return
        cast("asyncio.Transport", transport).set_protocol(protocol)
        protocol.connection_made(transport)


class Authority:
    """A certificate authority with a new key, and a certificate for this host."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tocsin phones, for tests alone")])
        self._key = ec.generate_private_key(ec.SECP256R1())
        own = _signing(key, name, name, key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self._root = own.add_extension(_usage(ca=True), critical=True).sign(key, SHA256())
        self._leaf = (
            _signing(key, name, x509.Name([]), self._key.public_key())
            .add_extension(x509.SubjectAlternativeName(NAMES), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(key, SHA256())
        )

    @property
    def pem(self) -> bytes:
        """The certificate of the authority, for clients."""
        return self._root.public_bytes(Encoding.PEM)

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Write the certificate of the host and its key, for another server; return both paths."""
        cert, key = folder / "host.pem", folder / "host.key"
        cert.write_bytes(self._leaf.public_bytes(Encoding.PEM))
        key.write_bytes(self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cert, key

    def context(self, *, old: bool) -> ssl.SSLContext:
        """Return the TLS context of a server, for TLS 1.2 or newer."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2", "http/1.1"] if old else ["h2"])
        secret = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with tempfile.TemporaryDirectory() as folder:  # `ssl` reads keys only from files
            file = Path(folder) / "leaf.pem"
            file.write_bytes(secret + self._leaf.public_bytes(Encoding.PEM))
            context.load_cert_chain(file)
        return context


def _signing(
    key: ec.EllipticCurvePrivateKey, issuer: x509.Name, subject: x509.Name, public: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
