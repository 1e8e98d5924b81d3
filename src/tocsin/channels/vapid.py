"""How we show push services who we are (VAPID, RFC 8292): one key of ours, and a signed token for each origin."""

import contextlib
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Self

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from tocsin.channels.encryption import encoded
from tocsin.errors import Refusal

LIFE = 12 * 3600
"""Seconds for which a token is good: services take a day at most, and their clocks are not ours."""

FRESH = 6 * 3600
"""Seconds after which a token is made anew."""

_MOST_ORIGINS = 1000


class Vapid:
    """Our key and the tokens made with it; `subject` tells services whom to write to, a url `mailto:` or `https:`."""

    def __init__(self, key: EllipticCurvePrivateKey, subject: str = "", clock: Callable[[], float] = time.time) -> None:
        if subject and not subject.startswith(("mailto:", "https://")):
            raise Refusal("The subject for web pushes is no url `mailto:` or `https:`.")
        point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.public = encoded(point)
        """What pages subscribe with: the 65 bytes of the public key, in base64url."""
        self._key, self._subject, self._clock = key, subject, clock
        self._made: OrderedDict[str, tuple[float, str]] = OrderedDict()

    @classmethod
    def load(cls, path: Path, subject: str = "") -> Self:
        """Read the key from a file in PEM. Raises `Refusal` where there is none."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise Refusal(f"The key for web pushes {path} can't be read: {error.strerror}.") from None
        try:
            key = load_pem_private_key(content, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
            raise Refusal(f"The key file for web pushes {path} holds no private key on the curve P-256 in PEM.")
        return cls(key, subject)

    @classmethod
    def make(cls, path: Path, subject: str = "") -> Self:
        """Make a key, unless the file has one already, and load it. Raises `Refusal` where it can't be kept."""
        key = generate_private_key(SECP256R1())
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            _keep(path, content)
        except OSError as error:
            raise Refusal(f"The key for web pushes {path} can't be kept: {error.strerror}.") from None
        return cls.load(path, subject)

    def authorization(self, origin: str) -> str:
        """Return the header's value for the push service at an origin."""
        made_at, value = self._made.get(origin, (0.0, ""))
        now = self._clock()
        if not value or not 0 <= now - made_at < FRESH:
            value = f"vapid t={self._token(origin, now)}, k={self.public}"
            self._made[origin] = (now, value)
            while len(self._made) > _MOST_ORIGINS:
                self._made.popitem(last=False)
        return value

    def forget(self, origin: str) -> None:
        """Make the next token for an origin anew."""
        self._made.pop(origin, None)

    def _token(self, origin: str, now: float) -> str:
        claims = {"aud": origin, "exp": int(now) + LIFE}
        if self._subject:
            claims["sub"] = self._subject
        return jwt.encode(claims, self._key, "ES256")


def _keep(path: Path, content: bytes) -> None:
    """Put the key there whole and on disk, unless there is one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(opened, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(opened)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
