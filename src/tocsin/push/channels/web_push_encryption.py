"""Encryption of web pushes (RFC 8291), in one record of `aes128gcm` (RFC 8188)."""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ec import ECDH, SECP256R1, EllipticCurvePublicKey, generate_private_key
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

POINT = 65
"""Bytes of an uncompressed point on P-256."""

SECRET = 16
"""Bytes of the secret of a subscription, and of a salt."""

RECORD = 4096
"""The record size; each payload fits into one record."""

_CURVE = SECP256R1()
_BASE64 = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)
_STANDARD = str.maketrans("+/", "-_")
_KEY_INFO = b"Content-Encoding: aes128gcm\0\1"
_NONCE_INFO = b"Content-Encoding: nonce\0\1"
_LAST = b"\2"


@dataclass(frozen=True, slots=True)
class Keys:
    """The public key and the secret of a subscription."""

    public: EllipticCurvePublicKey
    point: bytes
    secret: bytes

    @classmethod
    def read(cls, p256dh: str, auth: str) -> "Keys":
        """Read the keys of a `PushSubscription`. Raises `ValueError`."""
        point = point_of(p256dh)
        return cls(EllipticCurvePublicKey.from_encoded_point(_CURVE, point), point, secret_of(auth))


def point_of(p256dh: str) -> bytes:
    """Return the bytes of a public key. Raises `ValueError` if it is not an uncompressed point on P-256."""
    point = decoded(p256dh)
    if len(point) != POINT:
        raise ValueError(f"A public key has {POINT} bytes.")
    EllipticCurvePublicKey.from_encoded_point(_CURVE, point)
    return point


def secret_of(auth: str) -> bytes:
    """Return the bytes of a secret. Raises `ValueError` if it does not have 16 bytes."""
    secret = decoded(auth)
    if len(secret) != SECRET:
        raise ValueError(f"A secret has {SECRET} bytes.")
    return secret


def encrypted(plain: bytes, keys: Keys) -> bytes:
    """Return the encrypted body of a push, with a new key and a new salt."""
    ours = generate_private_key(_CURVE)
    point = ours.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    salt = secrets.token_bytes(SECRET)
    shared = _mac(keys.secret, ours.exchange(ECDH(), keys.public))
    pseudo_random = _mac(salt, _mac(shared, b"WebPush: info\0" + keys.point + point + b"\1"))
    key, nonce = _mac(pseudo_random, _KEY_INFO)[:16], _mac(pseudo_random, _NONCE_INFO)[:12]
    head = salt + RECORD.to_bytes(4) + bytes([POINT]) + point
    return head + AESGCM(key).encrypt(nonce, plain + _LAST, None)


def encoded(content: bytes) -> str:
    """Return bytes in base64url without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    """Return the bytes of base64url or base64, with or without padding. Raises `ValueError` for other text."""
    bare = text.rstrip("=").translate(_STANDARD)
    if not _BASE64.fullmatch(bare) or len(text) - len(bare) not in (0, -len(bare) % 4):
        raise ValueError("This is not base64url.")
    try:
        content = base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))
    except binascii.Error:
        raise ValueError("This is not base64url.") from None
    return content


def _mac(key: bytes, message: bytes) -> bytes:
    """Return HMAC-SHA-256. It is both steps of HKDF (RFC 5869), because all outputs are at most one hash long."""
    return hmac.digest(key, message, hashlib.sha256)
