"""Sign-in by OpenID Connect: the authorization code flow with PKCE (OpenID Connect Core 1.0, RFC 7636, RFC 9700)."""

import asyncio
import base64
import hashlib
import hmac
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from urllib.parse import quote, urlencode

import structlog

from tocsin.auth.claims import CLOCK_SKEW, CONTROL_CHARACTER, ROLES, claim_of, number_in
from tocsin.auth.jwks import FETCH_TIMEOUT, MAX_BYTES, Jwks
from tocsin.auth.keys import ALL_SPEAKERS
from tocsin.auth.tokens import header_of, signings
from tocsin.errors import Malformed, Unauthenticated, Unavailable
from tocsin.http_client.fetch import FetchError, fetch
from tocsin.ids import is_id
from tocsin.setting_types import Role, is_safe_url
from tocsin.strict_json import parse_object

DISCOVERY = "/.well-known/openid-configuration"

SECRET_LENGTH = 43
"""Characters of the secret of an attempt: 32 random bytes."""

MAX_CODE_LENGTH = 4096
"""Maximum characters of a code."""

MAX_ID_TOKEN_LENGTH = 65_536
"""Maximum characters of an ID token."""

MAX_SUBJECT_LENGTH, MAX_NAME_LENGTH = 180, 200
"""Maximum characters of a person's `sub`, and of their name, which is cut."""

MAX_EXCHANGES = 4
"""Maximum codes that are exchanged at the same time."""

METADATA_LIFETIME = 3600.0
"""Seconds for which the metadata of the provider are kept."""

RETRY_INTERVAL = 5.0
"""Minimum seconds between two attempts to fetch the metadata."""

_URLS = ("authorization_endpoint", "token_endpoint", "jwks_uri")
"""The URLs of the metadata that a sign-in needs."""

_NAME_CLAIMS = ("name", "preferred_username", "email")

Reason = Literal["expired", "state", "denied", "provider", "role", "company", "busy", "insecure", "unavailable"]
"""Why a sign-in failed, as the console explains it."""

log = structlog.get_logger(__name__)


class SignInError(Exception):
    """A sign-in failed. The message is for the log."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Client:
    """How Tocsin is registered at the provider, and which claims it reads.

    `roles` maps values of the claim to roles; without it, the values are the roles. If `company_claim` is set, it is
    required, and `*` permits all companies. Otherwise the claim `company_id` is used if it is there.
    """

    issuer: str
    id: str
    secret: str | None = field(default=None, repr=False)
    scopes: str = "openid profile"
    role_claim: str = "roles"
    roles: Mapping[str, Role] = field(default_factory=dict)
    company_claim: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """A person whom the provider has authenticated. With a `company_id`, they may access only that company."""

    subject: str
    name: str | None
    role: Role
    company_id: int | None


class Attempt:
    """One sign-in of one browser. All values of it derive from a secret that only this browser has, in a cookie."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    @classmethod
    def new(cls) -> Self:
        """Return another attempt."""
        return cls(secrets.token_urlsafe(32))

    @classmethod
    def of_cookie(cls, secret: str) -> Self:
        """Return the attempt that a browser has under way. Raises `SignInError`."""
        if len(secret) != SECRET_LENGTH:
            raise SignInError("expired", "the browser has no sign-in under way")
        return cls(secret)

    @property
    def state(self) -> str:
        """The value that the provider returns with the code."""
        return self._derived("state")

    @property
    def nonce(self) -> str:
        """The value that the ID token contains."""
        return self._derived("nonce")

    @property
    def verifier(self) -> str:
        """The value that proves to the provider that the code belongs to this browser (RFC 7636)."""
        return self._derived("verifier")

    @property
    def challenge(self) -> str:
        """The hash of the verifier."""
        return _text(hashlib.sha256(self.verifier.encode()).digest())

    def _derived(self, purpose: str) -> str:
        return _text(hmac.digest(self.secret.encode(), f"tocsin sign-in {purpose}".encode(), "sha256"))


@dataclass(frozen=True, slots=True)
class _Metadata:
    authorization_endpoint: str
    token_endpoint: str
    jwks: Jwks
    posts_secret: bool
    sends_issuer: bool


class SignInProvider:
    """An OpenID provider. Its metadata and keys are fetched when they are needed, and kept."""

    def __init__(
        self,
        client: Client,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._clock = clock
        self._monotonic = monotonic
        self._metadata: _Metadata | None = None
        self._fetch_after = 0.0
        self._fetching = asyncio.Lock()
        self._exchanges = 0

    async def close(self) -> None:
        """Cancel a fetch of keys."""
        if self._metadata:
            await self._metadata.jwks.close()

    async def authorization_url(self, attempt: Attempt, redirect_uri: str) -> str:
        """Return the url of the provider that a browser is sent to. Raises `SignInError`."""
        metadata = await self._known()
        query = {
            "response_type": "code",
            "client_id": self._client.id,
            "redirect_uri": redirect_uri,
            "scope": self._client.scopes,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": attempt.challenge,
            "code_challenge_method": "S256",
        }
        separator = "&" if "?" in metadata.authorization_endpoint else "?"
        return f"{metadata.authorization_endpoint}{separator}{urlencode(query)}"

    async def person(self, attempt: Attempt, answer: Mapping[str, str], redirect_uri: str) -> Identity:
        """Return the person of an authorization response, the query of the redirect. Raises `SignInError`."""
        if not hmac.compare_digest(answer.get("state", "").encode(), attempt.state.encode()):
            raise SignInError("state", "the state does not belong to this browser")
        metadata = await self._known()
        issuer = answer.get("iss")
        if issuer not in {None, self._client.issuer} or (issuer is None and metadata.sends_issuer):
            raise SignInError("provider", "the response has no iss, or that of another issuer")
        if "error" in answer:
            reason: Reason = "denied" if answer["error"] == "access_denied" else "provider"
            raise SignInError(reason, f"the provider answered {answer['error'][:100]!r}")
        code = answer.get("code", "")
        if not 1 <= len(code) <= MAX_CODE_LENGTH:
            raise SignInError("provider", "the response has no usable code")
        token = await self._exchange(metadata, code, attempt.verifier, redirect_uri)
        claims = await self._claims(metadata, token)
        self._check(claims, attempt.nonce)
        return self._person(claims)

    async def _known(self) -> _Metadata:
        """Return the metadata of the provider; old ones if it does not answer. Raises `SignInError`."""
        async with self._fetching:
            if self._monotonic() >= self._fetch_after:
                try:
                    self._metadata = await self._discover()
                    self._fetch_after = self._monotonic() + METADATA_LIFETIME
                except (FetchError, Malformed, ValueError) as error:
                    self._fetch_after = self._monotonic() + RETRY_INTERVAL
                    log.warning("OpenID provider cannot be used", issuer=self._client.issuer, reason=str(error))
            if self._metadata is None:
                raise SignInError("provider", "the metadata of the provider could not be fetched")
            return self._metadata

    async def _discover(self) -> _Metadata:
        found = await fetch_metadata(self._client.issuer)
        if found.get("issuer") != self._client.issuer:
            raise ValueError("The metadata's issuer is not TOCSIN_OIDC_ISSUER.")
        for name, reason in unusable_urls(found):
            raise ValueError(f"The metadata's {name} is {reason}.")
        urls = {name: str(found[name]) for name in _URLS}
        methods = found.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        jwks = self._metadata.jwks if self._metadata and self._metadata.jwks.url == urls["jwks_uri"] else None
        return _Metadata(
            urls["authorization_endpoint"],
            urls["token_endpoint"],
            jwks or Jwks(urls["jwks_uri"], ALL_SPEAKERS),
            posts_secret=isinstance(methods, list) and "client_secret_basic" not in methods,
            sends_issuer=found.get("authorization_response_iss_parameter_supported") is True,
        )

    async def _exchange(self, metadata: _Metadata, code: str, verifier: str, redirect_uri: str) -> str:
        """Return the ID token for a code."""
        if self._exchanges >= MAX_EXCHANGES:
            raise SignInError("busy", "too many sign-ins at the same time")
        self._exchanges += 1
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": self._client.id,
            "code_verifier": verifier,
        }
        headers = ["Content-Type: application/x-www-form-urlencoded"]
        if self._client.secret and metadata.posts_secret:
            form["client_secret"] = self._client.secret
        elif self._client.secret:
            named = f"{quote(self._client.id, safe='')}:{quote(self._client.secret, safe='')}"
            headers.append(f"Authorization: Basic {base64.b64encode(named.encode()).decode()}")
        try:
            body = urlencode(form).encode()
            answer = await fetch(
                metadata.token_endpoint, seconds=FETCH_TIMEOUT, limit=MAX_BYTES, body=body, headers=headers
            )
            token = parse_object(answer).get("id_token")
        except FetchError as error:
            raise SignInError("provider", f"the code was not accepted: {error} {_error_in(error.body)}") from None
        except Malformed:
            raise SignInError("provider", "the answer to the code is not JSON") from None
        finally:
            self._exchanges -= 1
        if not isinstance(token, str) or len(token) > MAX_ID_TOKEN_LENGTH:
            raise SignInError("provider", "the answer to the code has no usable ID token")
        return token

    async def _claims(self, metadata: _Metadata, token: str) -> dict[str, Any]:
        """Return the claims of a token that a published key of the provider signed."""
        try:
            header = header_of(token)
            kid, algorithm = header.get("kid"), header.get("alg")
            if not isinstance(algorithm, str) or not isinstance(kid, str | None):
                raise SignInError("provider", "the header of the ID token is not usable")
            metadata.jwks.freshen()
            await metadata.jwks.refresh_for(kid, algorithm)
            for _, claims in signings(token, metadata.jwks.keys):
                return claims
        except (Unauthenticated, Unavailable) as error:
            raise SignInError("provider", f"the ID token could not be verified: {error}") from None
        raise SignInError("provider", "the signature of the ID token could not be verified")

    def _check(self, claims: Mapping[str, Any], nonce: str) -> None:
        """Check the claims of an ID token (OpenID Connect Core 1.0, section 3.1.3.7)."""
        now, audience = self._clock(), claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        authorized = claims.get("azp", self._client.id if len(audiences) == 1 else None)
        expires, issued, given = claims.get("exp"), claims.get("iat"), claims.get("nonce")
        wrong = {
            "iss": claims.get("iss") != self._client.issuer,
            "aud": self._client.id not in audiences,
            "azp": authorized != self._client.id,
            "exp": not _seconds(expires) + CLOCK_SKEW > now,
            "iat": not _seconds(issued) - CLOCK_SKEW <= now,
            "nonce": not isinstance(given, str) or not hmac.compare_digest(given.encode(), nonce.encode()),
        }
        if found := [name for name, is_wrong in wrong.items() if is_wrong]:
            raise SignInError("provider", f"the ID token is not for this sign-in: {', '.join(found)}")

    def _person(self, claims: Mapping[str, Any]) -> Identity:
        subject = claims.get("sub")
        if not isinstance(subject, str) or not _is_subject(subject):
            raise SignInError("provider", f"the sub is not a text of 1 to {MAX_SUBJECT_LENGTH} characters")
        role = self._role(claims)
        if role is None:
            raise SignInError("role", f"{subject!r} has no role in the claim {self._client.role_claim}")
        company_id = self._company_id(claims)
        names = (claims.get(name) for name in _NAME_CLAIMS)
        name = next((CONTROL_CHARACTER.sub("", each) for each in names if isinstance(each, str) and each.strip()), None)
        return Identity(subject, name and name[:MAX_NAME_LENGTH], role, company_id)

    def _company_id(self, claims: Mapping[str, Any]) -> int | None:
        """Return the company that the person is limited to, or None."""
        claim = self._client.company_claim
        given = claim_of(claims, claim or "company_id")
        if given == "*" if claim else "company_id" not in claims:
            return None
        company_id = number_in(given)
        if not is_id(company_id):
            raise SignInError("company", f"the claim {claim or 'company_id'} is not a company's id")
        return int(company_id)

    def _role(self, claims: Mapping[str, Any]) -> Role | None:
        """Return the role with the most permissions, or None."""
        given = claim_of(claims, self._client.role_claim)
        values = given.split(" ") if isinstance(given, str) else given if isinstance(given, list) else []
        named: Mapping[str, Role] = self._client.roles or {role: role for role in ROLES}
        found = {named.get(value) for value in values if isinstance(value, str)}
        return next((role for role in ROLES if role in found), None)


async def fetch_metadata(issuer: str) -> dict[str, Any]:
    """Return the metadata that a provider publishes. Raises `FetchError` and `Malformed`."""
    return parse_object(await fetch(issuer.rstrip("/") + DISCOVERY, seconds=FETCH_TIMEOUT, limit=MAX_BYTES))


def unusable_urls(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names of required URLs that are missing or unusable, and why."""
    for name in _URLS:
        value = metadata.get(name)
        if value is None:
            yield name, "missing"
        elif not isinstance(value, str) or not is_safe_url(value):
            yield name, "not an https URL"


def _seconds(value: Any) -> float:
    """Return a time of a token; one that is missing or not a number is NaN, which compares with nothing."""
    return float(value) if type(value) in {int, float} else math.nan


def _is_subject(text: str) -> bool:
    return 1 <= len(text) <= MAX_SUBJECT_LENGTH and not CONTROL_CHARACTER.search(text)


def _error_in(body: bytes) -> str:
    """Return the `error` of an answer (RFC 6749, section 5.2)."""
    try:
        return json.dumps(parse_object(body).get("error"))[:100]
    except Malformed:
        return ""


def _text(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
