"""Bearer tokens (RFC 6750, RFC 7519): who calls, a user or a service, and with what rights."""

import base64
import binascii
import contextlib
import os
import re
import secrets as randomness
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt

from tocsin.errors import Malformed, Refusal, Unauthenticated
from tocsin.strict_json import parse_object

SCOPES = frozenset({"events:write", "directory:write", "operations"})
"""The rights of services; a token that holds one of them is a service's."""

SKEW = 30
"""Seconds that the issuer's clock may differ from ours."""

LONGEST_TOKEN = 8192
"""Characters of the longest token that is looked at."""

LONGEST_NAME = 100
"""Characters of the longest name of a service."""

MOST_REMEMBERED = 10_000
"""Verified tokens that are not verified again."""

SECRET_FILE = "jwt-secret"  # noqa: S105 - the name of a file

_LARGEST_ID = 2**31 - 1
_LAST_SECOND = 253_402_300_799  # of the year 9999, where calendars end
_SHORTEST_SECRET = 32
_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_CANONICAL = re.compile(r"[1-9][0-9]{0,9}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_JWS = jwt.PyJWS(algorithms=["HS256"])


@dataclass(frozen=True, slots=True)
class User:
    """A user who calls; `expires` is the token's `exp`, in seconds since 1970."""

    id: int
    expires: int

    @property
    def label(self) -> str:
        """What logs call them."""
        return f"user {self.id}"


@dataclass(frozen=True, slots=True)
class Service:
    """A service that calls, with its rights; with a `company_id` it may address that company alone."""

    name: str
    scopes: frozenset[str]
    company_id: int | None
    expires: int

    @property
    def label(self) -> str:
        """What logs call it."""
        return f"service {self.name}"


@dataclass(frozen=True, slots=True)
class _Key:
    """Something that tokens are signed with, and the only algorithms that it is good for."""

    material: str
    algorithms: tuple[str, ...]


class Verifier:
    """Tells who a token speaks for, if any of the secrets signed it; remembers what it verified until it expires."""

    def __init__(self, secrets: Sequence[str], *, clock: Callable[[], float] = time.time) -> None:
        self._keys = [_hs256(secret) for secret in secrets]
        self._clock = clock
        self._remembered: OrderedDict[str, User | Service] = OrderedDict()

    def verify(self, token: str) -> User | Service:
        """Return who calls. Raises `Unauthenticated`, as for a token that was presented."""
        if len(token) > LONGEST_TOKEN:
            raise _refused("The token is too long.")
        now = self._clock()
        caller = self._remembered.get(token)
        if caller is None:
            caller = self._remember(token, _caller(self._claims(token), now))
        elif caller.expires + SKEW <= now:
            self._remembered.pop(token, None)
            raise _refused("The token has expired.")
        else:
            self._remembered.move_to_end(token)
        return caller

    def _remember(self, token: str, caller: User | Service) -> User | Service:
        self._remembered[token] = caller
        if len(self._remembered) > MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return caller

    def _claims(self, token: str) -> dict[str, Any]:
        if not _TOKEN.fullmatch(token):
            raise _refused("The token is no JWT.")
        try:
            header = parse_object(_decoded(token.partition(".")[0]))
            return parse_object(self._payload(token, header))
        except (jwt.InvalidTokenError, Malformed, binascii.Error):
            raise _refused("The token is no JWT.") from None

    def _payload(self, token: str, header: Mapping[str, Any]) -> bytes:
        if "crit" in header or "b64" in header:
            raise _refused("The token's header has what is not supported here.")
        for key in self._keys:
            if header.get("alg") in key.algorithms:
                with contextlib.suppress(jwt.InvalidSignatureError):
                    payload: bytes = _JWS.decode(token, key.material, algorithms=key.algorithms)
                    return payload
        raise _refused("No key of ours signed the token.")


def caller_of(verifier: Verifier, authorization: str | None) -> User | Service:
    """Return who calls by the header `Authorization`. Raises `Unauthenticated`."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated
    return verifier.verify(token.lstrip(" "))


def mint_user(secret: str, user_id: int, lifetime: timedelta) -> str:
    """Make a user's token."""
    return _mint(secret, lifetime, {"sub": str(user_id)})


def mint_service(
    secret: str, name: str, scopes: Iterable[str], lifetime: timedelta, company_id: int | None = None
) -> str:
    """Make a service's token. Raises `Refusal` for a name that no service can have."""
    if not _names_a_service(name):
        raise Refusal(
            f"A service's name has 1 to {LONGEST_NAME} characters, is no number, and has no control characters."
        )
    bound = {} if company_id is None else {"company_id": company_id}
    return _mint(secret, lifetime, {"sub": name, "scope": " ".join(sorted(scopes)), **bound})


def own_secret(data_dir: Path) -> str:
    """Return the secret of the embedded mode, which is made when it is first asked for.

    Raises `Refusal` where others can read it, or we cannot.
    """
    path = data_dir / SECRET_FILE
    try:
        if not path.exists():
            _keep_secret(path, randomness.token_urlsafe(48))
        return _read_secret(path)
    except OSError as error:
        raise Refusal(f"The secret {path} can't be used: {error.strerror}.") from None


def _hs256(secret: str) -> _Key:
    try:
        _JWS.get_algorithm_by_name("HS256").prepare_key(secret)
    except jwt.InvalidKeyError:
        raise Refusal("A secret for tokens is a public key or a certificate, which is no secret.") from None
    return _Key(secret, ("HS256",))


def _refused(message: str) -> Unauthenticated:
    return Unauthenticated(message, presented=True)


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _caller(claims: Mapping[str, Any], now: float) -> User | Service:
    expires = _second(claims, "exp")
    if expires + SKEW <= now:
        raise _refused("The token has expired.")
    if "nbf" in claims and _second(claims, "nbf") - SKEW > now:
        raise _refused("The token is not valid yet.")
    scopes = _scopes(claims)
    return _service(claims, scopes, expires) if scopes else User(_user_id(claims.get("sub")), expires)


def _second(claims: Mapping[str, Any], name: str) -> int:
    second = claims.get(name)
    if type(second) is not int or not 0 <= second <= _LAST_SECOND:
        raise _refused(f"The token's {name} must be an integer number of seconds.")
    return second


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    scope = claims.get("scope", "")
    if not isinstance(scope, str):
        raise _refused("The token's scope must be a string.")
    return SCOPES.intersection(scope.split(" "))


def _service(claims: Mapping[str, Any], scopes: frozenset[str], expires: int) -> Service:
    name = claims.get("sub")
    if not isinstance(name, str) or not _names_a_service(name):
        raise _refused("The token's sub must be the service's name, not a user's id.")
    company_id = claims.get("company_id")
    if "company_id" in claims and not _is_id(company_id):
        raise _refused("The token's company_id must be a company's integer id.")
    return Service(name, scopes, company_id, expires)


def _names_a_service(name: str) -> bool:
    return 1 <= len(name) <= LONGEST_NAME and not name.strip().isdecimal() and not _CONTROL.search(name)


def _user_id(sub: Any) -> int:
    id_ = int(sub) if isinstance(sub, str) and _CANONICAL.fullmatch(sub) else sub
    if not _is_id(id_):
        raise _refused("The token's sub must be the user's integer id.")
    return int(id_)


def _is_id(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _LARGEST_ID


def _mint(secret: str, lifetime: timedelta, claims: Mapping[str, Any]) -> str:
    now = int(time.time())
    return jwt.encode({**claims, "iat": now, "exp": now + int(lifetime.total_seconds())}, secret, algorithm="HS256")


def _keep_secret(path: Path, secret: str) -> None:
    """Put the secret there whole and on disk, unless somebody else just did."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{randomness.token_hex(8)}")
    try:
        opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(opened, "w", encoding="ascii") as file:
            file.write(secret)
            file.flush()
            os.fsync(opened)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _read_secret(path: Path) -> str:
    # Never through a link: as root we may read from a folder that belongs to somebody else.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8", errors="replace") as file:
        if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise Refusal(
                f"The secret {path} is open to others; close it with `chmod 600`, or delete it to get a new one."
            )
        secret = file.read(LONGEST_TOKEN).strip()
    if len(secret) < _SHORTEST_SECRET:
        raise Refusal(f"The secret {path} is too short; delete it to get a new one.")
    return secret
