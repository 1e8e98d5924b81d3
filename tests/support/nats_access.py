"""NATS as operators secure it: a CA, certificates of servers and clients, and credentials of users."""

import base64
import json
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

OPERATOR, ACCOUNT, USER = 14 << 3, 0, 20 << 3
"""The first bytes of public keys: in base32 they begin with O, A and U."""

_SEED = 18 << 3


class Authority:
    """A CA, which keeps its certificate and those that it makes in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = folder / f"{name}.pem"
        made = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        may_sign = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        made = made.add_extension(may_sign, critical=True)
        self.certificate.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return the files of a certificate for 127.0.0.1, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        made = self._builder(subject, key).add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        certificate, private = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(made.public_bytes(Encoding.PEM))
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        ssl.create_default_context().load_cert_chain(certificate, private)
        return certificate, private

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        made = x509.CertificateBuilder(
            self._name,
            subject,
            key.public_key(),
            x509.random_serial_number(),
            now - timedelta(hours=1),
            now + timedelta(hours=1),
        )
        for each in (
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),  # Python 3.13 asks for it
        ):
            made = made.add_extension(each, critical=False)
        return made


def operator_configuration() -> tuple[str, str]:
    """Return the configuration of a server that trusts an operator, and the credentials of a user."""
    operator, account, user = (Ed25519PrivateKey.generate() for _ in range(3))
    of_operator = _token(operator, OPERATOR, _public(operator, OPERATOR), "operator")
    of_account = _token(operator, OPERATOR, _public(account, ACCOUNT), "account", limits=_NO_LIMITS)
    of_user = _token(account, ACCOUNT, _public(user, USER), "user", subs=-1, data=-1, payload=-1)
    configuration = (
        f"operator: {of_operator}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {_public(account, ACCOUNT)}: {of_account} }}\n"
    )
    seed = _seed(user, USER)
    credentials = (
        f"-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    return configuration, credentials


_NO_LIMITS = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1) | {"wildcards": True}


def _token(signer: Ed25519PrivateKey, kind: int, subject: str, type_: str, **nats: object) -> str:
    head = {"typ": "JWT", "alg": "ed25519-nkey"}
    claims = {
        "jti": "1",
        "iat": int(datetime.now(UTC).timestamp()),
        "iss": _public(signer, kind),
        "name": type_,
        "sub": subject,
        "nats": {"type": type_, "version": 2, **nats},
    }
    text = ".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
    return f"{text}.{_base64(signer.sign(text.encode()))}"


def _public(key: Ed25519PrivateKey, kind: int) -> str:
    return _base32(bytes([kind]) + key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def _seed(key: Ed25519PrivateKey, kind: int) -> str:
    raw = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return _base32(bytes([_SEED | kind >> 5, (kind & 31) << 3]) + raw)


def _base32(raw: bytes) -> str:
    crc = 0
    for byte in raw:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return base64.b32encode(raw + crc.to_bytes(2, "little")).decode().rstrip("=")


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
