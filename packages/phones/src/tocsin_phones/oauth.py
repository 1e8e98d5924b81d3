"""The stand-in for Google's token endpoint: it exchanges an assertion of the service account for an access token."""

import json
import secrets
import time
from dataclasses import dataclass
from urllib.parse import parse_qsl

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from tocsin_phones.book import Book
from tocsin_phones.exchange import JSON, IncomingRequest, ReceivedPush, Rejection, Reply

GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
SCOPES = frozenset(
    {
        "https://www.googleapis.com/auth/firebase.messaging",
        "https://www.googleapis.com/auth/cloud-platform",
    }
)
"""The scopes that allow sending messages."""

LIFETIME = 3600
"""Maximum seconds that an assertion or an access token is valid."""

_AHEAD = 300


@dataclass(frozen=True, slots=True)
class OAuthAccount:
    """The service account of the stand-in."""

    email: str
    key_id: str
    key: RSAPublicKey
    project: str


class OAuth:
    """The endpoint and its access tokens. Its requests are recorded as pushes of `oauth`."""

    name = "oauth"

    def __init__(self, book: Book, account: OAuthAccount) -> None:
        self._book = book
        self._account = account
        self._given: dict[str, float] = {}
        self.url = ""

    def handle(self, request: IncomingRequest) -> Reply:
        """Handle a request for an access token."""
        return self._book.take(self, request)

    def knows(self, token: str) -> bool:
        """Return whether an access token is valid."""
        return self._given.get(token, 0) > time.time()

    def check(self, request: IncomingRequest, push: ReceivedPush) -> None:
        """Check the assertion. Raises `Rejection`."""
        push.token = self._account.email
        if request.method != "POST":
            raise Rejection(405, "method_not_allowed")
        if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            raise Rejection(400, "invalid_request", "The body must be a form.")
        form = dict(parse_qsl(request.body.decode("latin-1")))
        if form.get("grant_type") != GRANT:
            raise Rejection(400, "unsupported_grant_type", "Invalid grant_type.")
        self._check_assertion(form.get("assertion", ""))

    def success(self, push: ReceivedPush) -> Reply:  # noqa: ARG002 - the signature of all providers
        """Return a new access token."""
        token = "ya29." + secrets.token_urlsafe(32)
        self._given[token] = time.time() + LIFETIME
        answer = {"access_token": token, "expires_in": LIFETIME - 1, "token_type": "Bearer"}
        return Reply(200, (JSON,), json.dumps(answer).encode())

    def refusal(self, refused: Rejection, push: ReceivedPush) -> Reply:  # noqa: ARG002 - the signature of all providers
        """Return the status with its error (RFC 6749, section 5.2)."""
        reason = refused.reason or ("invalid_grant" if refused.status < 500 else "internal_failure")  # noqa: PLR2004
        answer = {"error": reason, "error_description": str(refused)}
        return Reply(refused.status, (JSON,), json.dumps(answer).encode())

    def _check_assertion(self, assertion: str) -> None:
        account = self._account
        try:
            header = jwt.get_unverified_header(assertion)
            claims = jwt.decode(
                assertion,
                account.key,
                ["RS256"],
                audience=self.url,
                issuer=account.email,
                leeway=_AHEAD,
                options={"require": ["iat", "exp", "aud", "iss"]},
            )
        except jwt.InvalidTokenError as error:
            raise Rejection(400, "invalid_grant", f"Invalid JWT: {error}") from None
        if header.get("kid") not in (None, account.key_id):
            raise Rejection(400, "invalid_grant", "Invalid JWT Signature: no such key.")
        if claims["exp"] - claims["iat"] > LIFETIME:
            raise Rejection(400, "invalid_grant", "Invalid JWT: it must be short-lived (60 minutes).")
        if not SCOPES & set(str(claims.get("scope", "")).split()):
            raise Rejection(400, "invalid_scope", "Invalid OAuth scope: none with which messages can be sent.")
