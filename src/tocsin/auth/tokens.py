"""Bearer tokens (RFC 6750, RFC 7519): verifies a token and returns the caller."""

import base64
import binascii
import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jwt
from cachetools import LRUCache
from jwt.algorithms import OKPAlgorithm

from tocsin.auth.claims import CLOCK_SKEW, Expected, ServiceCaller, UserCaller, caller_from, refused
from tocsin.auth.jwks import Jwks
from tocsin.auth.keys import ALL_SPEAKERS, PUBLIC_ALGORITHMS, Key, hs256
from tocsin.errors import Malformed, Unauthenticated, Unavailable
from tocsin.strict_json import parse_object

MAX_TOKEN_LENGTH = 8192
"""Maximum characters of a token."""

CACHE_SIZE = 10_000
"""Maximum verified tokens that are kept."""

_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_JWS = jwt.PyJWS(algorithms=["HS256", *PUBLIC_ALGORITHMS])
_JWS.register_algorithm("Ed25519", OKPAlgorithm())  # the name in RFC 9864 for EdDSA with such a key


class Verifier:
    """Verifies tokens, and keeps verified ones until they expire.

    A key of type `str` is a secret for user and service tokens.
    """

    def __init__(
        self,
        keys: Sequence[str | Key],
        *,
        jwks: Jwks | None = None,
        expected: Expected | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._configured = [hs256(key, ALL_SPEAKERS) if isinstance(key, str) else key for key in keys]
        self._jwks = jwks
        self._fetched: tuple[Key, ...] = ()
        self._expected = expected or Expected()
        self._clock = clock
        self._remembered: LRUCache[str, UserCaller | ServiceCaller] = LRUCache(CACHE_SIZE)
        self.on_withdrawal: Callable[[], None] = lambda: None
        """Called when a key was withdrawn: callers that it verified may still be connected."""

    def take(self, keys: Sequence[Key]) -> None:
        """Verify by these keys from now on. Tokens that were verified before are verified again."""
        before, self._configured = self._configured, list(keys)
        self._forget(before, self._configured)

    def begin(self) -> None:
        """Start to fetch the published keys, if there is a JWKS."""
        if self._jwks:
            self._jwks.freshen()

    async def close(self) -> None:
        """Cancel a fetch of keys."""
        if self._jwks:
            await self._jwks.close()

    async def prepare(self, token: str) -> None:
        """Fetch the key of a token, if the issuer publishes keys and this one is unknown.

        Raises `Unavailable` if it cannot be fetched now. `verify` reports all other errors of the token.
        """
        if self._jwks is None:
            return
        self._jwks.freshen()
        self._use_fetched_keys()
        if token in self._remembered or len(token) > MAX_TOKEN_LENGTH:
            return
        with contextlib.suppress(Unauthenticated):
            header = header_of(token)
            kid, algorithm = header.get("kid"), header.get("alg")
            if algorithm not in PUBLIC_ALGORITHMS or not isinstance(kid, str | None):
                return
            if not any(signings(token, self._configured)):
                await self._fetch_key_of(token, self._jwks, kid, algorithm)

    async def _fetch_key_of(self, token: str, jwks: Jwks, kid: str | None, algorithm: str) -> None:
        """Fetch a key. If that fails, raise `Unauthenticated` for a token that would be refused with any key."""
        try:
            await jwks.refresh_for(kid, algorithm)
        except Unavailable:
            caller_from(_unverified_claims(token), self._clock(), self._expected, published=True)
            raise

    def verify(self, token: str) -> UserCaller | ServiceCaller:
        """Return the caller of a token. Raises `Unauthenticated`."""
        if len(token) > MAX_TOKEN_LENGTH:
            raise refused(f"The token has more than {MAX_TOKEN_LENGTH} characters.")
        now = self._clock()
        self._use_fetched_keys()
        caller = self._remembered.get(token)
        if caller is None:
            caller = self._remembered[token] = self._caller(token, now)
        elif caller.expires + CLOCK_SKEW <= now:
            self._remembered.pop(token, None)
            raise refused("The token has expired.")
        return caller

    def _use_fetched_keys(self) -> None:
        """Use newly fetched keys, and forget what withdrawn keys verified."""
        if self._jwks and self._jwks.keys is not self._fetched:
            before, self._fetched = self._fetched, self._jwks.keys
            self._forget(before, self._fetched)

    def _forget(self, before: Sequence[Key], now: Sequence[Key]) -> None:
        self._remembered.clear()
        if any(key not in now for key in before):
            self.on_withdrawal()

    def _caller(self, token: str, now: float) -> UserCaller | ServiceCaller:
        why = "The token's signature could not be verified."
        for key, claims in signings(token, [*self._configured, *self._fetched]):
            caller = caller_from(claims, now, self._expected, published=key.is_published)
            if caller.speaker in key.speakers:
                return caller
            why = f"The key that signed the token is not for {caller.speaker}."
        raise refused(why)


def required_bearer(authorization: str | None) -> str:
    """Return the bearer token in the header `Authorization`. Raises `Unauthenticated` without one."""
    token = bearer_of(authorization)
    if token is None:
        raise Unauthenticated
    return token


def signings(token: str, keys: Iterable[Key]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield each key that verifies the token's signature, with the claims. Raises `Unauthenticated`."""
    header = header_of(token)
    for key in keys:
        if key.may_have_signed(header.get("alg"), header.get("kid")):
            claims = _claims(token, key)
            if claims is not None:
                yield key, claims


def bearer_of(authorization: str | None) -> str | None:
    """Return the bearer token in the header `Authorization`, or None."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.lstrip(" ") if scheme.lower() == "bearer" else None


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def header_of(token: str) -> dict[str, Any]:
    """Return the header of a token, which is not verified. Raises `Unauthenticated`."""
    if not _TOKEN.fullmatch(token):
        raise refused("The token is not a JWT.")
    try:
        header = parse_object(_decoded(token.partition(".")[0]))
    except (Malformed, binascii.Error):
        raise refused("The token is not a JWT.") from None
    if "crit" in header or "b64" in header:
        raise refused("The token's header has an unsupported parameter (crit or b64).")
    return header


def _claims(token: str, key: Key) -> dict[str, Any] | None:
    """Return the claims of a token, if this key signed it."""
    try:
        return parse_object(_JWS.decode(token, key.material, algorithms=key.algorithms))
    except jwt.InvalidSignatureError:
        return None
    except (jwt.InvalidTokenError, Malformed):
        raise refused("The token is not a JWT.") from None


def _unverified_claims(token: str) -> dict[str, Any]:
    try:
        return parse_object(_decoded(token.split(".")[1]))
    except (Malformed, binascii.Error):
        raise refused("The token is not a JWT.") from None
