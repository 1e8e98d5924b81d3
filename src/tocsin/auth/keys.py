"""Keys of tokens: secrets, public keys in files or in a JWKS, and the secret of the embedded mode."""

import os
import secrets as randomness
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import InvalidKeyError
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm

from tocsin import secret_files
from tocsin.errors import Malformed, Refusal
from tocsin.files import content_of
from tocsin.setting_types import MIN_SECRET_BYTES
from tocsin.strict_json import parse_object

Speaker = Literal["users", "services"]
PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

ALL_SPEAKERS: frozenset[Speaker] = frozenset({"users", "services"})

SECRET_FILE = "jwt-secret"  # noqa: S105 - the name of a file

MIN_RSA_BITS = 2048
"""Minimum bits of an RSA key (RFC 7518, section 3.3)."""

RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ED25519_ALGORITHMS = ("EdDSA", "Ed25519")
PUBLIC_ALGORITHMS = (*RSA_ALGORITHMS, "ES256", "ES384", *ED25519_ALGORITHMS)
"""The algorithms with public keys."""

_MAX_FILE_BYTES = 65536
_PARTS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_READERS: Mapping[str, Callable[[dict[str, Any]], object]] = {
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "OKP": OKPAlgorithm.from_jwk,
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key, the only algorithms that it verifies, and whose tokens it may sign.

    `is_published`: it was fetched from the issuer.
    """

    material: str | PublicKey
    algorithms: tuple[str, ...]
    speakers: frozenset[Speaker]
    kid: str | None = None
    is_published: bool = False

    def may_have_signed(self, algorithm: object, kid: object) -> bool:
        """Return whether the header of a token names this key. `kid` is compared if both have one."""
        return algorithm in self.algorithms and (self.kid is None or kid is None or self.kid == kid)


def hs256(secret: str, speakers: frozenset[Speaker]) -> Key:
    """Return the key of a secret. Raises `Refusal` if it is a public key."""
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except InvalidKeyError:
        raise Refusal("A secret for tokens must not be a public key or a certificate.") from None
    return Key(secret, ("HS256",), speakers)


def of_pem(path: Path, speakers: frozenset[Speaker]) -> Key:
    """Read a public key, or the public key of a certificate; the rest of the certificate is ignored.

    Raises `Refusal` if the file has no supported key.
    """
    content = _content_of(path)
    if b"PRIVATE KEY-----" in content:
        raise Refusal(
            f"The key file {path} contains a private key: put the public one there, by `openssl pkey -pubout`."
        )
    if content.count(b"-----BEGIN ") > 1:
        raise Refusal(f"The key file {path} contains several keys: use a separate file for each.")
    try:
        material = _public_key_in(content)
    except (ValueError, UnsupportedAlgorithm):
        raise Refusal(
            f"The key file {path} contains no key: put a public key or a certificate in PEM there, `-----BEGIN ...`."
        ) from None
    if isinstance(material, RSAPublicKey) and material.key_size < MIN_RSA_BITS:
        raise Refusal(
            f"The key file {path} contains an RSA key of {material.key_size} bits: use at least {MIN_RSA_BITS}."
        )
    algorithms = _algorithms_of(material)
    if not algorithms:
        raise Refusal(
            f"The key file {path} contains an unsupported kind of key: use RSA, EC on P-256 or P-384, or Ed25519."
        )
    return Key(material, algorithms, speakers)


def of_jwks(document: bytes, speakers: frozenset[Speaker]) -> tuple[Key, ...]:
    """Return the supported keys of a JWKS (RFC 7517).

    Raises `ValueError` if it is not a JWKS, or has no supported key.
    """
    try:
        entries = parse_object(document).get("keys")
    except Malformed:
        raise ValueError("The answer is not a JSON object.") from None
    if not isinstance(entries, list):
        raise ValueError("The answer is not a JWKS: it has no list `keys`.")  # noqa: TRY004 - a value from outside
    keys = tuple(key for entry in entries if isinstance(entry, dict) and (key := _of_jwk(entry, speakers)))
    if not keys:
        raise ValueError("The JWKS has no supported key: RSA from 2048 bits, EC on P-256 or P-384, or Ed25519.")
    return keys


def own_secret(data_dir: Path) -> str:
    """Return the secret of the embedded mode, which is made at the first call.

    Raises `Refusal` if others can read it, or this process cannot.
    """
    path = data_dir / SECRET_FILE
    try:
        if not path.exists():
            secret_files.keep(path, randomness.token_urlsafe(48).encode())
        return _read_secret(path)
    except OSError as error:
        raise Refusal(f"The secret {path} cannot be used: {error.strerror}.") from None


def _content_of(path: Path) -> bytes:
    try:
        return content_of(path)
    except OSError as error:
        raise Refusal(
            f"The key file {path} cannot be read ({error.strerror}): put a public key in PEM there, or correct its"
            " name."
        ) from None


def _public_key_in(content: bytes) -> Any:
    if b"-----BEGIN CERTIFICATE-----" in content:
        return x509.load_pem_x509_certificate(content).public_key()
    return load_pem_public_key(content)


def _algorithms_of(material: object) -> tuple[str, ...]:
    """Return the algorithms of a public key; empty if it is not supported."""
    match material:
        case RSAPublicKey() if material.key_size >= MIN_RSA_BITS:
            return RSA_ALGORITHMS
        case EllipticCurvePublicKey() if isinstance(material.curve, SECP256R1):
            return ("ES256",)
        case EllipticCurvePublicKey() if isinstance(material.curve, SECP384R1):
            return ("ES384",)
        case Ed25519PublicKey():
            return ED25519_ALGORITHMS
        case _:
            return ()


def _named(algorithm: object, among: tuple[str, ...]) -> tuple[str, ...]:
    """Return the algorithms of a key that names one. The two names for Ed25519 are equivalent."""
    if algorithm not in among:
        return ()
    return among if among == ED25519_ALGORITHMS else (str(algorithm),)


def _of_jwk(entry: Mapping[str, Any], speakers: frozenset[Speaker]) -> Key | None:
    """Return the key of an entry; None if it is not for signatures, malformed, or private."""
    material = _material_of(entry)
    algorithms = _algorithms_of(material)
    if "alg" in entry:
        algorithms = _named(entry["alg"], algorithms)
    kid = entry.get("kid")
    if not algorithms or not (kid is None or isinstance(kid, str)) or entry.get("use", "sig") != "sig":
        return None
    return Key(material, algorithms, speakers, kid, is_published=True)


def _material_of(entry: Mapping[str, Any]) -> Any:
    kind = entry.get("kty")
    if not isinstance(kind, str) or kind not in _PARTS or "d" in entry:
        return None
    parts = {name: entry.get(name) for name in _PARTS[kind]}
    if not all(isinstance(part, str) for part in parts.values()):
        return None
    try:
        return _READERS[kind]({"kty": kind, **parts})
    except (InvalidKeyError, ValueError, UnsupportedAlgorithm):
        return None


def _read_secret(path: Path) -> str:
    secret_files.claim(path)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        content = file.read(_MAX_FILE_BYTES)
    try:
        secret = content.decode().strip()
    except UnicodeDecodeError:
        raise Refusal(f"The secret {path} is not text in UTF-8; delete it to get a new one.") from None
    if len(secret) < MIN_SECRET_BYTES:
        raise Refusal(f"The secret {path} is too short; delete it to get a new one.")
    return secret
