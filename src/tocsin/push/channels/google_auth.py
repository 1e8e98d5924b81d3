"""Access tokens of Google's service accounts (OAuth 2.0, RFC 7523). One fetch serves all callers that wait."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Self
from urllib.parse import urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from tocsin.errors import Malformed, Refusal
from tocsin.files import setting_file
from tocsin.http_client.fetch import FetchError, fetch
from tocsin.http_client.tls import Trust
from tocsin.push.channels import Later, Stopped
from tocsin.push.channels.private_keys import rsa_key_in
from tocsin.push.channels.responses import text_of
from tocsin.retry_delay import growing
from tocsin.strict_json import parse_object

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"

FETCH_TIMEOUT = 10.0
"""Seconds that the fetch of an access token may take."""

MAX_BYTES = 64 * 1024
"""Maximum bytes of the answer."""

EARLY = 300.0
"""Seconds before a token expires at which a new one is fetched."""

USABLE = 30.0
"""Seconds before a token expires until which it is used: a push may take so long."""

MIN_RETRY_DELAY = 10.0
"""Seconds after the first failure until the next try; each further delay is twice as long."""

MAX_RETRY_DELAY = 300.0
"""Maximum seconds between two tries, unless Google asks for more."""

MAX_RETRY_AFTER = 3600.0
"""Maximum seconds that Google can ask to wait (`Retry-After`)."""

_DEFAULT_LIFETIME = 3600.0
_PARTS = ("project_id", "client_email", "private_key", "token_uri")


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """The contents of a service account's file."""

    project: str
    email: str
    token_url: str
    key: RSAPrivateKey = field(repr=False)
    key_id: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file of a service account. Raises `Refusal` if it is not one."""
        try:
            said = parse_object(setting_file(path, "The credentials for FCM"))
        except Malformed:
            raise Refusal(
                f"The credentials file for FCM {path} is not JSON: use the file of a service account unchanged."
            ) from None
        for name in _PARTS:
            if not isinstance(said.get(name), str) or not said[name]:
                raise Refusal(
                    f"The credentials file for FCM {path} is not the file of a service account: it has no `{name}`."
                )
        if not said["token_uri"].startswith(("https://", "http://")):
            raise Refusal(f"The credentials file for FCM {path} has a `token_uri` that is not a url.")
        key_id = said.get("private_key_id")
        key = _key_in(path, said["private_key"])
        named = key_id if isinstance(key_id, str) else ""
        return cls(said["project_id"], said["client_email"], said["token_uri"], key, named)


class AccessToken:
    """The access token of an account.

    `clock` returns seconds since 1970, and can be corrected at any time; `elapsed` returns seconds that only advance.
    The token expires by `elapsed`.
    """

    def __init__(
        self,
        account: ServiceAccount,
        trust: Trust | None = None,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self.value = ""
        self._account, self._trust, self._clock, self._elapsed = account, trust, clock, elapsed
        self._fetched_at = self._renew_at = self._expires_at = 0.0
        self._failed: tuple[float, float, Stopped | Later] | None = None
        self._failures = 0
        self._untried = False
        self._fetching: asyncio.Task[Stopped | Later | None] | None = None

    async def fetch(self) -> Stopped | Later | None:
        """Fetch a token if there is none, or if it expires soon; return why there is none.

        A token that expires soon is used until the new one is there.
        """
        now = self._elapsed()
        if self.value and now < self._renew_at:
            return None
        told = self._kept()
        if told is None and (self._fetching is None or self._fetching.done()):
            self._fetching = asyncio.create_task(self._fetch())
        if self.value and now < self._expires_at - USABLE:
            return None
        if told or self._fetching is None:
            return told
        return await asyncio.shield(self._fetching)

    def try_now(self) -> None:
        """Fetch at the next call, even if the last fetch failed just now."""
        self._failed = None

    def accepted(self) -> None:
        """Record that Google accepted the token."""
        self._untried = False

    def refused(self, sent_at: datetime) -> bool:
        """Record that a request sent at a time was not authorised; return whether a new token may help.

        It does not if this token was fetched for the same reason and was never accepted.
        """
        if not self.value or sent_at.timestamp() < self._fetched_at:
            return True
        if self._untried:
            return False
        self._untried, self.value = True, ""
        return True

    async def _fetch(self) -> Stopped | Later | None:
        began = self._elapsed()
        form = urlencode({"grant_type": GRANT, "assertion": self._assertion(int(self._clock()))}).encode()
        try:
            answer = await fetch(
                self._account.token_url, body=form, seconds=FETCH_TIMEOUT, limit=MAX_BYTES, trust=self._trust
            )
            self._take(answer, began)
        except (FetchError, ValueError) as error:
            return self._fail(self._elapsed(), error)
        self._failed, self._failures = None, 0
        return None

    def _kept(self) -> Stopped | Later | None:
        """Return the result of the last fetch, while it is too early for another."""
        if self._failed is None:
            return None
        (since, pause, told), now = self._failed, self._elapsed()
        if now >= since + pause:
            return None
        return replace(told, lane=since + pause - now) if isinstance(told, Later) else told

    def _take(self, answer: bytes, began: float) -> None:
        try:
            said = parse_object(answer)
        except Malformed:
            raise ValueError("The answer is not a JSON object.") from None
        token, life = said.get("access_token"), said.get("expires_in")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
            raise ValueError("The answer has no `access_token`.")
        seconds = (
            float(life) if isinstance(life, int | float) and 0 < life < 10 * _DEFAULT_LIFETIME else _DEFAULT_LIFETIME
        )
        self.value, self._fetched_at = token, self._clock()
        self._renew_at, self._expires_at = began + max(seconds - EARLY, seconds / 2), began + seconds

    def _fail(self, now: float, error: FetchError | ValueError) -> Stopped | Later:
        """Keep why there is no token: a refusal by Google briefly, other errors longer with each failure."""
        reason = f"no access token for FCM: {_in_words(error)}"
        if isinstance(error, FetchError) and error.status in (400, 401, 403):
            self._failed, self._failures = (now, MIN_RETRY_DELAY, Stopped(reason)), 0
        else:
            self._failures += 1
            asked = min(error.retry_after, MAX_RETRY_AFTER) if isinstance(error, FetchError) else 0.0
            pause = max(growing(self._failures, MIN_RETRY_DELAY, MAX_RETRY_DELAY), asked)
            self._failed = (now, pause, Later(reason, lane=pause))
        return self._failed[2]

    def _assertion(self, now: int) -> str:
        account = self._account
        claims = {"iss": account.email, "scope": SCOPE, "aud": account.token_url, "iat": now, "exp": now + 3600}
        return jwt.encode(claims, account.key, "RS256", {"kid": account.key_id} if account.key_id else None)


def _in_words(error: FetchError | ValueError) -> str:
    """Return why there is no token, with Google's own error if there is one (RFC 6749, section 5.2)."""
    try:
        said = parse_object(error.body) if isinstance(error, FetchError) else {}
    except Malformed:
        said = {}
    words = [text_of(said.get(name)) for name in ("error", "error_description")]
    return ": ".join(filter(None, words)) or str(error)


def _key_in(path: Path, pem: str) -> RSAPrivateKey:
    key = rsa_key_in(pem.encode())
    if key is None:
        raise Refusal(f"The credentials file for FCM {path} has a `private_key` that is not an RSA key in PEM.")
    return key
