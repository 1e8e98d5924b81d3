"""The claims of a token: the caller that they name, a user or a service, and its scopes."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

from tocsin.auth.keys import Speaker
from tocsin.errors import Unauthenticated
from tocsin.ids import is_id
from tocsin.setting_types import Role, Scope

SCOPES: frozenset[str] = frozenset(get_args(Scope))
"""The scopes of services. A token with one of them is a service token."""

ROLES: Mapping[Role, Scope] = {"operator": "operations", "support": "operations:support", "viewer": "operations:read"}
"""The roles of operators with their scopes. Each includes the permissions of those after it."""

CLOCK_SKEW = 30
"""Seconds that the clock of the issuer may differ."""

MAX_NAME_LENGTH = 100
"""Maximum characters of a service's name."""

_LAST_SECOND = 253_402_300_799  # the end of the year 9999
_CANONICAL = re.compile(r"[1-9][0-9]{0,9}")
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*")


@dataclass(frozen=True, slots=True)
class UserCaller:
    """A user as caller. `expires` and `issued` are the token's `exp` and `iat`, in seconds since 1970."""

    id: int
    expires: int
    issued: float | None = field(default=None, compare=False)
    speaker: ClassVar[Speaker] = "users"

    @property
    def label(self) -> str:
        """The caller in the log."""
        return f"user {self.id}"


@dataclass(frozen=True, slots=True)
class ServiceCaller:
    """A service as caller, with its scopes. With a `company_id`, it may access only that company."""

    name: str
    scopes: frozenset[str]
    company_id: int | None
    expires: int
    speaker: ClassVar[Speaker] = "services"

    @property
    def label(self) -> str:
        """The caller in the log."""
        return f"service {self.name}"

    @property
    def account(self) -> str:
        """The name under which requests are counted: for each company by itself, so that none sees those of another."""
        return self.name if self.company_id is None else f"{self.name} of company {self.company_id}"


@dataclass(frozen=True, slots=True)
class OperatorCaller(ServiceCaller):
    """A person who is signed in to the console. `name` is their `sub` at the identity provider."""

    full_name: str | None = None

    @property
    def label(self) -> str:
        """The caller in the log."""
        return f"operator {self.name}"


@dataclass(frozen=True, slots=True)
class Expected:
    """The required claims of tokens, and the names of claims.

    `scopes` maps scopes of the issuer to those of Tocsin. A claim's name that does not exist as such is a path into
    objects. With `only_published`, `iss` and `aud` are required only of tokens that published keys verify.
    """

    issuer: str | None = None
    audience: str | None = None
    only_published: bool = False
    user_claim: str = "sub"
    service_claims: tuple[str, ...] = ("sub",)
    scope_claims: tuple[str, ...] = ("scope",)
    scopes: Mapping[str, frozenset[str]] = field(default_factory=dict)


def caller_from(
    claims: Mapping[str, Any], now: float, expected: Expected, *, published: bool
) -> UserCaller | ServiceCaller:
    """Return the caller that the claims of a verified token name. Raises `Unauthenticated`."""
    expires = math.floor(_second(claims, "exp"))
    if expires + CLOCK_SKEW <= now:
        raise refused("The token has expired.")
    if "nbf" in claims and _second(claims, "nbf") - CLOCK_SKEW > now:
        raise refused("The token is not valid yet.")
    if published or not expected.only_published:
        _refuse_others(claims, expected)
    scopes = _scopes(claims, expected)
    if not scopes:
        issued = _second(claims, "iat") if "iat" in claims else None
        return UserCaller(_user_id(claims, expected), expires, issued)
    if _may_be_an_id(claim_of(claims, expected.user_claim)):
        raise refused("The token has both a service scope and a user id.")
    return _service(claims, scopes, expires, expected)


def claim_of(claims: Mapping[str, Any], name: str) -> Any:
    """Return the value of a claim, or None. A name that does not exist as such is a path into objects."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _refuse_others(claims: Mapping[str, Any], expected: Expected) -> None:
    if expected.issuer is not None and claims.get("iss") != expected.issuer:
        raise refused("The token's iss is not TOCSIN_JWT_ISSUER.")
    audiences = claims.get("aud")
    if expected.audience is not None and expected.audience not in (
        audiences if isinstance(audiences, list) else [audiences]
    ):
        raise refused("The token's aud does not contain TOCSIN_JWT_AUDIENCE.")


def _second(claims: Mapping[str, Any], name: str) -> int | float:
    """Return a NumericDate (RFC 7519, section 2), which may have a fraction. Raises `Unauthenticated`."""
    second: int | float = claims.get(name, math.nan)
    if type(second) not in {int, float} or not 0 <= second <= _LAST_SECOND:
        raise refused(f"The token's {name} must be a number of seconds since 1970.")
    return second


def _scopes(claims: Mapping[str, Any], expected: Expected) -> frozenset[str]:
    """Return the scopes of a token, by their names in Tocsin, without those of other services."""
    named: set[str] = set()
    for name in expected.scope_claims:
        value = claim_of(claims, name)
        if isinstance(value, str):
            named.update(value.split(" "))
        elif isinstance(value, list):
            named.update(each for each in value if isinstance(each, str))
        elif value is not None:
            raise refused(f"The token's {name} must be a string or a list of strings.")
    return SCOPES.intersection(named).union(*(expected.scopes.get(name, ()) for name in named))


def _service(claims: Mapping[str, Any], scopes: frozenset[str], expires: int, expected: Expected) -> ServiceCaller:
    company_id = claims.get("company_id")
    if "company_id" in claims and not is_id(company_id):
        raise refused("The token's company_id must be a company's integer id.")
    return ServiceCaller(_service_name(claims, expected), scopes, company_id, expires)


def _service_name(claims: Mapping[str, Any], expected: Expected) -> str:
    """Return the first name that is not empty. In `sub` a number is not a name: it could be the id of a user."""
    for claim in expected.service_claims:
        name = claim_of(claims, claim)
        if isinstance(name, list) and len(name) == 1 and claim != "sub":  # as some issuers write `aud`
            name = name[0]
        if name in (None, "", []):
            continue
        if claim != "sub" and type(name) is int:
            name = str(name)
        if isinstance(name, str) and is_service_name(name, may_be_a_number=claim != "sub"):
            return name
        raise refused(f"The token has a service scope, but its {claim} is not a service name.")
    raise refused(f"The token has a service scope but no name in {' or '.join(expected.service_claims)}.")


def is_service_name(name: str, *, may_be_a_number: bool = False) -> bool:
    """Return whether a service can have this name."""
    return (
        1 <= len(name) <= MAX_NAME_LENGTH
        and not CONTROL_CHARACTER.search(name)
        and (may_be_a_number or not _NUMBER.fullmatch(name))
    )


def _may_be_an_id(value: Any) -> bool:
    if isinstance(value, list):
        return any(_may_be_an_id(each) for each in value)
    return isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value) is not None)


def number_in(value: Any) -> Any:
    """Return the number that a string is, as some issuers write ids; other values as they are."""
    return int(value) if isinstance(value, str) and _CANONICAL.fullmatch(value) else value


def _user_id(claims: Mapping[str, Any], expected: Expected) -> int:
    name = expected.user_claim
    value = claim_of(claims, name)
    if isinstance(value, list) and len(value) == 1 and name != "sub":  # which is a string by RFC 7519
        value = value[0]
    id_ = number_in(value)
    if not is_id(id_):
        scopes = " or ".join(expected.scope_claims)
        raise refused(
            f"The token is a user token, because its {scopes} has no service scope, and its {name} is not a user's "
            "integer id."
        )
    return int(id_)


def refused(message: str) -> Unauthenticated:
    """Return the error of a token that was presented and is not accepted."""
    return Unauthenticated(message, presented=True)
