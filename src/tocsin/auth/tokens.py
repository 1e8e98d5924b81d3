"""Bearer tokens (RFC 6750, RFC 7519): who calls, a user or a service, and with what rights."""

import base64
import binascii
import contextlib
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, get_args

import jwt
from cachetools import LRUCache
from jwt.algorithms import OKPAlgorithm

from tocsin.auth.jwks import Jwks
from tocsin.auth.keys import EVERYBODY, PUBLIC_ALGORITHMS, Key, Speaker, hs256
from tocsin.errors import Malformed, Refusal, Unauthenticated, Unavailable
from tocsin.ids import MAX_ID
from tocsin.settings import Scope
from tocsin.strict_json import parse_object

SCOPES: frozenset[str] = frozenset(get_args(Scope))
"""The rights of services; a token that holds one of them is a service's."""

CLOCK_SKEW = 30
"""Seconds that the issuer's clock may differ from ours."""

MAX_TOKEN_LENGTH = 8192
"""Characters of the longest token that is looked at."""

MAX_NAME_LENGTH = 100
"""Characters of the longest name of a service."""

CACHE_SIZE = 10_000
"""Verified tokens that are not verified again."""

_LAST_SECOND = 253_402_300_799  # of the year 9999, where calendars end
_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_CANONICAL = re.compile(r"[1-9][0-9]{0,9}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*")
_JWS = jwt.PyJWS(algorithms=["HS256", *PUBLIC_ALGORITHMS])
_JWS.register_algorithm("Ed25519", OKPAlgorithm())  # RFC 9864's name for what EdDSA with such a key is


@dataclass(frozen=True, slots=True)
class UserCaller:
    """A user who calls; `expires` and `issued` are the token's `exp` and `iat`, in seconds since 1970."""

    id: int
    expires: int
    issued: float | None = field(default=None, compare=False)
    speaker: ClassVar[Speaker] = "users"

    @property
    def label(self) -> str:
        """What logs call them."""
        return f"user {self.id}"


@dataclass(frozen=True, slots=True)
class ServiceCaller:
    """A service that calls, with its rights; with a `company_id` it may address that company alone."""

    name: str
    scopes: frozenset[str]
    company_id: int | None
    expires: int
    speaker: ClassVar[Speaker] = "services"

    @property
    def label(self) -> str:
        """What logs call it."""
        return f"service {self.name}"


@dataclass(frozen=True, slots=True)
class Expected:
    """What tokens must say, and in which claims they say it.

    `scopes` maps the issuer's names to ours. A claim's name that is not there whole is a path into objects. With
    `only_published`, `iss` and `aud` are demanded of tokens alone that published keys verify.
    """

    issuer: str | None = None
    audience: str | None = None
    only_published: bool = False
    user_claim: str = "sub"
    service_claims: tuple[str, ...] = ("sub",)
    scope_claims: tuple[str, ...] = ("scope",)
    scopes: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Signer:
    """The secret that tokens are made with, and what every one of them says."""

    secret: str
    says: Expected = Expected()


class Verifier:
    """Tells who a token speaks for, if any of the keys signed it; remembers what it verified until it expires.

    A key that is given as text is a secret, for users and services.
    """

    def __init__(
        self,
        keys: Sequence[str | Key],
        *,
        jwks: Jwks | None = None,
        expected: Expected = Expected(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._configured = [hs256(key, EVERYBODY) if isinstance(key, str) else key for key in keys]
        self._jwks = jwks
        self._fetched: tuple[Key, ...] = ()
        self._expected = expected
        self._clock = clock
        self._remembered: LRUCache[str, UserCaller | ServiceCaller] = LRUCache(CACHE_SIZE)
        self.on_withdrawal: Callable[[], None] = lambda: None
        """Called when a key verifies no more, which may have let somebody in who is still there."""

    def take(self, keys: Sequence[Key]) -> None:
        """Verify by these keys from now on, and forget what was verified before."""
        before, self._configured = self._configured, list(keys)
        self._forget(before, self._configured)

    def begin(self) -> None:
        """Fetch the keys that the issuer publishes, if it does, without waiting for them."""
        if self._jwks:
            self._jwks.freshen()

    async def close(self) -> None:
        """Wait no longer for keys that are being fetched."""
        if self._jwks:
            await self._jwks.close()

    async def prepare(self, token: str) -> None:
        """Fetch the key that a token needs, if the issuer publishes keys and this one is not known yet.

        Raises `Unavailable` where it can't be had yet; what else is wrong with the token is for `verify` to say.
        """
        if self._jwks is None:
            return
        self._jwks.freshen()
        self._take_what_was_fetched()
        if token in self._remembered or len(token) > MAX_TOKEN_LENGTH:
            return
        with contextlib.suppress(Unauthenticated):
            header = _header_of(token)
            kid, algorithm = header.get("kid"), header.get("alg")
            if algorithm not in PUBLIC_ALGORITHMS or not isinstance(kid, str | None):
                return
            if not any(self._signings(token, self._configured)):
                await self._fetch_key_of(token, self._jwks, kid, algorithm)

    async def _fetch_key_of(self, token: str, jwks: Jwks, kid: str | None, algorithm: str) -> None:
        """Fetch a key. Where it can't be had, raise `Unauthenticated` for what is refused whoever signed it."""
        try:
            await jwks.refresh_for(kid, algorithm)
        except Unavailable:
            _caller(_unverified_claims(token), self._clock(), self._expected, published=True)
            raise

    def verify(self, token: str) -> UserCaller | ServiceCaller:
        """Return who calls. Raises `Unauthenticated`, as for a token that was presented."""
        if len(token) > MAX_TOKEN_LENGTH:
            raise _refused("The token is too long.")
        now = self._clock()
        self._take_what_was_fetched()
        caller = self._remembered.get(token)
        if caller is None:
            caller = self._remembered[token] = self._caller(token, now)
        elif caller.expires + CLOCK_SKEW <= now:
            self._remembered.pop(token, None)
            raise _refused("The token has expired.")
        return caller

    def _take_what_was_fetched(self) -> None:
        """Forget what was verified by keys that the issuer has withdrawn."""
        if self._jwks and self._jwks.keys is not self._fetched:
            before, self._fetched = self._fetched, self._jwks.keys
            self._forget(before, self._fetched)

    def _forget(self, before: Sequence[Key], now: Sequence[Key]) -> None:
        self._remembered.clear()
        if any(key not in now for key in before):
            self.on_withdrawal()

    def _caller(self, token: str, now: float) -> UserCaller | ServiceCaller:
        refusal = _refused("The token's signature could not be verified.")
        for key, claims in self._signings(token, [*self._configured, *self._fetched]):
            caller = _caller(claims, now, self._expected, published=key.is_published)
            if caller.speaker in key.speakers:
                return caller
            refusal = _refused(f"The key that signed the token is not for {caller.speaker}.")
        raise refusal

    def _signings(self, token: str, keys: Sequence[Key]) -> Iterator[tuple[Key, dict[str, Any]]]:
        """Yield each key that the token's signature fits, with the claims."""
        header = _header_of(token)
        for key in keys:
            if key.may_have_signed(header.get("alg"), header.get("kid")):
                claims = _claims(token, key)
                if claims is not None:
                    yield key, claims


def caller_of(verifier: Verifier, authorization: str | None) -> UserCaller | ServiceCaller:
    """Return who calls by the header `Authorization`. Raises `Unauthenticated`."""
    token = bearer_of(authorization)
    if token is None:
        raise Unauthenticated
    return verifier.verify(token)


def bearer_of(authorization: str | None) -> str | None:
    """Return the token in the header `Authorization`, if it is there for one."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.lstrip(" ") if scheme.lower() == "bearer" else None


def mint_user(by: Signer | str, user_id: int, lifetime: timedelta) -> str:
    """Make a user's token; a signer that is given as text is a secret."""
    signer = _signer(by)
    return _mint(signer, lifetime, {signer.says.user_claim: str(user_id)})


def mint_service(
    by: Signer | str, name: str, scopes: Iterable[str], lifetime: timedelta, company_id: int | None = None
) -> str:
    """Make a service's token. Raises `Refusal` for a name that no service can have."""
    if not _names_a_service(name):
        raise Refusal(
            f"A service's name has 1 to {MAX_NAME_LENGTH} characters, is not a number, and has no control characters."
        )
    signer = _signer(by)
    bound = {} if company_id is None else {"company_id": company_id}
    said = {signer.says.service_claims[0]: name, signer.says.scope_claims[0]: " ".join(sorted(scopes))}
    return _mint(signer, lifetime, {**said, **bound})


def _signer(by: Signer | str) -> Signer:
    return Signer(by) if isinstance(by, str) else by


def _refused(message: str) -> Unauthenticated:
    return Unauthenticated(message, presented=True)


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _header_of(token: str) -> dict[str, Any]:
    if not _TOKEN.fullmatch(token):
        raise _refused("The token is not a JWT.")
    try:
        header = parse_object(_decoded(token.partition(".")[0]))
    except (Malformed, binascii.Error):
        raise _refused("The token is not a JWT.") from None
    if "crit" in header or "b64" in header:
        raise _refused("The token's header has an unsupported parameter (crit or b64).")
    return header


def _claims(token: str, key: Key) -> dict[str, Any] | None:
    """Return what the token says, if this key signed it."""
    try:
        return parse_object(_JWS.decode(token, key.material, algorithms=key.algorithms))
    except jwt.InvalidSignatureError:
        return None
    except (jwt.InvalidTokenError, Malformed):
        raise _refused("The token is not a JWT.") from None


def _unverified_claims(token: str) -> dict[str, Any]:
    try:
        return parse_object(_decoded(token.split(".")[1]))
    except (Malformed, binascii.Error):
        raise _refused("The token is not a JWT.") from None


def _caller(
    claims: Mapping[str, Any], now: float, expected: Expected, *, published: bool
) -> UserCaller | ServiceCaller:
    expires = math.floor(_second(claims, "exp"))
    if expires + CLOCK_SKEW <= now:
        raise _refused("The token has expired.")
    if "nbf" in claims and math.ceil(_second(claims, "nbf")) - CLOCK_SKEW > now:
        raise _refused("The token is not valid yet.")
    if published or not expected.only_published:
        _refuse_others(claims, expected)
    scopes = _scopes(claims, expected)
    if not scopes:
        issued = _second(claims, "iat") if "iat" in claims else None
        return UserCaller(_user_id(claims, expected), expires, issued)
    if _may_be_an_id(_claim(claims, expected.user_claim)):
        raise _refused("The token has both a service scope and a user id.")
    return _service(claims, scopes, expires, expected)


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return what a claim holds, None where there is none; a name that is not there whole is a path into objects."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _refuse_others(claims: Mapping[str, Any], expected: Expected) -> None:
    if expected.issuer is not None and claims.get("iss") != expected.issuer:
        raise _refused("The token's iss is not TOCSIN_JWT_ISSUER.")
    audiences = claims.get("aud")
    if expected.audience is not None and expected.audience not in (
        audiences if isinstance(audiences, list) else [audiences]
    ):
        raise _refused("The token's aud does not contain TOCSIN_JWT_AUDIENCE.")


def _second(claims: Mapping[str, Any], name: str) -> int | float:
    """Return a NumericDate (RFC 7519, section 2), which may have a fraction."""
    second: int | float = claims.get(name, math.nan)
    if type(second) not in {int, float} or not 0 <= second <= _LAST_SECOND:
        raise _refused(f"The token's {name} must be a number of seconds since 1970.")
    return second


def _scopes(claims: Mapping[str, Any], expected: Expected) -> frozenset[str]:
    """Return the rights that a token holds, by their names here; those of other services do not count."""
    named: set[str] = set()
    for name in expected.scope_claims:
        value = _claim(claims, name)
        if isinstance(value, str):
            named.update(value.split(" "))
        elif isinstance(value, list):
            named.update(each for each in value if isinstance(each, str))
        elif value is not None:
            raise _refused(f"The token's {name} must be a string or a list of strings.")
    return SCOPES.intersection(named).union(*(expected.scopes.get(name, ()) for name in named))


def _service(claims: Mapping[str, Any], scopes: frozenset[str], expires: int, expected: Expected) -> ServiceCaller:
    company_id = claims.get("company_id")
    if "company_id" in claims and not _is_id(company_id):
        raise _refused("The token's company_id must be a company's integer id.")
    return ServiceCaller(_service_name(claims, expected), scopes, company_id, expires)


def _service_name(claims: Mapping[str, Any], expected: Expected) -> str:
    """Return the first name that is there and not empty. In `sub` a number is no name: it could be a user's id."""
    for claim in expected.service_claims:
        name = _claim(claims, claim)
        if isinstance(name, list) and len(name) == 1 and claim != "sub":  # as some issuers write `aud`
            name = name[0]
        if name in (None, "", []):
            continue
        if claim != "sub" and type(name) is int:
            name = str(name)
        if isinstance(name, str) and _names_a_service(name, may_be_a_number=claim != "sub"):
            return name
        raise _refused(f"The token has a service scope, but its {claim} is not a service name.")
    raise _refused(f"The token has a service scope but no name in {' or '.join(expected.service_claims)}.")


def _names_a_service(name: str, *, may_be_a_number: bool = False) -> bool:
    return (
        1 <= len(name) <= MAX_NAME_LENGTH
        and not _CONTROL.search(name)
        and (may_be_a_number or not _NUMBER.fullmatch(name))
    )


def _may_be_an_id(value: Any) -> bool:
    if isinstance(value, list):
        return any(_may_be_an_id(each) for each in value)
    return isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value) is not None)


def _user_id(claims: Mapping[str, Any], expected: Expected) -> int:
    name = expected.user_claim
    value = _claim(claims, name)
    if isinstance(value, list) and len(value) == 1 and name != "sub":  # which is a string by RFC 7519
        value = value[0]
    id_: Any = int(value) if isinstance(value, str) and _CANONICAL.fullmatch(value) else value
    if not _is_id(id_):
        scopes = " or ".join(expected.scope_claims)
        raise _refused(
            f"The token is a user token, because its {scopes} has no service scope, and its {name} is not a user's "
            "integer id."
        )
    return int(id_)


def _is_id(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_ID


def _mint(signer: Signer, lifetime: timedelta, claims: Mapping[str, Any]) -> str:
    now = int(time.time())
    said = {} if signer.says.only_published else {"iss": signer.says.issuer, "aud": signer.says.audience}
    said = {name: value for name, value in said.items() if value is not None}
    times = {"iat": now, "exp": now + int(lifetime.total_seconds())}
    return jwt.encode({**said, **claims, **times}, signer.secret, algorithm="HS256")
