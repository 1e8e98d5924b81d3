"""Authentication at push services of browsers (VAPID, RFC 8292): a key, and a signed token per origin."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import jwt
from cachetools import LRUCache
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tocsin import secret_files
from tocsin.errors import Refusal
from tocsin.files import setting_file
from tocsin.push.channels.private_keys import p256_key_in
from tocsin.push.channels.web_push_encryption import encoded

LIFE = 12 * 3600
"""Seconds until a token expires: services accept at most a day, and clocks differ."""

FRESH = 6 * 3600
"""Seconds after which a new token is made."""

MAX_KEYS = 2
"""Maximum keys in a file: the one that pages subscribe with, and the previous one."""

_CACHE_SIZE = 1000
_BLOCK = re.compile(rb"-----BEGIN (?:EC )?PRIVATE KEY-----[^-]*-----END (?:EC )?PRIVATE KEY-----")


class Vapid:
    """A key and its tokens. `subject` is the contact for push services, a `mailto:` or `https:` url."""

    def __init__(self, key: EllipticCurvePrivateKey, subject: str = "", clock: Callable[[], float] = time.time) -> None:
        if subject and not subject.startswith(("mailto:", "https://")):
            raise Refusal("The subject for web pushes must be a `mailto:` or `https:` url.")
        point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.public = encoded(point)
        """The public key that pages subscribe with: 65 bytes in base64url."""
        self.name = self.public[:16]
        """The name of the key in the subscriptions that were made with it."""
        self._key, self._subject, self._clock = key, subject, clock
        self._made: LRUCache[str, tuple[float, str]] = LRUCache(_CACHE_SIZE)

    @classmethod
    def load(cls, path: Path, subject: str = "") -> list[Self]:
        """Read the key from a file in PEM, and the previous key if it follows.

        Raises `Refusal` if there is no key, or more than two.
        """
        content = setting_file(path, "The key for web pushes")
        keys = [p256_key_in(block) for block in _BLOCK.findall(content)[: MAX_KEYS + 1]]
        if not keys or None in keys:
            raise Refusal(f"The key file for web pushes {path} contains no private key on the curve P-256 in PEM.")
        if len(keys) > MAX_KEYS:
            raise Refusal(
                f"The key file for web pushes {path} contains more than two keys: use the new and the previous one."
            )
        return [cls(key, subject) for key in keys if key]

    @classmethod
    def make(cls, path: Path, subject: str = "") -> list[Self]:
        """Make a key unless the file exists, and load the file. Raises `Refusal` if it cannot be written."""
        key = generate_private_key(SECP256R1())
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            secret_files.keep(path, content)
        except OSError as error:
            raise Refusal(f"The key for web pushes {path} cannot be stored: {error.strerror}.") from None
        return cls.load(path, subject)

    def authorization(self, origin: str) -> str:
        """Return the value of the header `authorization` for the push service at an origin."""
        made_at, value = self._made.get(origin, (0.0, ""))
        now = self._clock()
        if not value or not 0 <= now - made_at < FRESH:
            value = f"vapid t={self._token(origin, now)}, k={self.public}"
            self._made[origin] = (now, value)
        return value

    def forget(self, origin: str) -> None:
        """Make a new token for an origin at the next call."""
        self._made.pop(origin, None)

    def _token(self, origin: str, now: float) -> str:
        claims = {"aud": origin, "exp": int(now) + LIFE}
        if self._subject:
            claims["sub"] = self._subject
        return jwt.encode(claims, self._key, "ES256")
