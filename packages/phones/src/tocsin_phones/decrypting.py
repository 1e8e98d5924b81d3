"""The browser's side of an encrypted push: `aes128gcm` of RFC 8188 with the keys of RFC 8291."""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

POINT = 65
"""Bytes of an uncompressed point on P-256."""

_SALT, _HEADER = 16, 21
_SMALLEST_RECORD = 18
_LAST = 2


def decrypt(body: bytes, private: ec.EllipticCurvePrivateKey, auth: bytes) -> bytes:
    """Decrypt a push of one record. Raises `ValueError` with one sentence if it is not for this subscription."""
    if len(body) < _HEADER + POINT:
        raise ValueError("The body is shorter than its header.")
    salt, record, length = body[:_SALT], int.from_bytes(body[_SALT:20], "big"), body[20]
    sender, content = body[_HEADER : _HEADER + length], body[_HEADER + length :]
    if length != POINT:
        raise ValueError(f"The keyid has {length} bytes: it must be the sender's public key, of {POINT}.")
    if record < _SMALLEST_RECORD or len(content) > record:
        raise ValueError("The body is not one record of the size that its header says.")
    key, nonce = _keys(private, sender, auth, salt)
    try:
        padded = AESGCM(key).decrypt(nonce, content, None)
    except InvalidTag:
        raise ValueError("The body is encrypted for other keys, or damaged.") from None
    plain, mark = padded.rstrip(b"\0")[:-1], padded.rstrip(b"\0")[-1:]
    if mark != bytes((_LAST,)):
        raise ValueError("The record does not end in the mark of the last one.")
    return plain


def point_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key in the format of browsers."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _keys(private: ec.EllipticCurvePrivateKey, sender: bytes, auth: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """Return the content's key and nonce."""
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), sender)
    shared = private.exchange(ec.ECDH(), public)
    info = b"WebPush: info\0" + point_of(private.public_key()) + sender
    secret = _derive(shared, auth, info, 32)
    return (
        _derive(secret, salt, b"Content-Encoding: aes128gcm\0", 16),
        _derive(secret, salt, b"Content-Encoding: nonce\0", 12),
    )


def _derive(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt, info).derive(secret)
