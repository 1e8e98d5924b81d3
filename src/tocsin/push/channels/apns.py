"""Apple's push service (APNs): HTTP/2 with a signed provider token, one lane per app and environment."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from tocsin.errors import Refusal
from tocsin.files import setting_file
from tocsin.http_client.messages import Answer, Request
from tocsin.notifications import to_json
from tocsin.push.channels import Address, Channel, Environment, Gone, Later, Outcome, Push, Refused, Stopped
from tocsin.push.channels.payloads import MAX_BYTES, Parts, apple, fitted, ids, notification
from tocsin.push.channels.private_keys import p256_key_in
from tocsin.push.channels.responses import Way, object_of, pause_of, reason_of, settled, text_of, way_of

PRODUCTION = "https://api.push.apple.com"
SANDBOX = "https://api.sandbox.push.apple.com"

TOKEN_LIFETIME = 40 * 60
"""Seconds after which a new token is made: APNs refuses a token older than an hour."""

MIN_TOKEN_AGE = 20 * 60
"""Minimum seconds between two tokens: APNs answers 429 TooManyProviderTokenUpdates if they change more often."""

TOKEN = re.compile(r"([0-9A-Fa-f]{2}){8,256}")

WINDOW = 1000
"""Streams that APNs allows on a connection."""

ANSWERS: dict[tuple[int, str], Way] = {
    (200, ""): "delivered",
    # The app was deleted, or the phone has a new token. The answer contains the time.
    (410, "Unregistered"): "gone",
    (410, "ExpiredToken"): "gone",
    # Malformed, or of the other environment: the device may be registered wrongly.
    (400, "BadDeviceToken"): "doubtful",
    # The token is of another app: the device or the topic may be wrong.
    (400, "DeviceTokenNotForTopic"): "doubtful",
    # The connection was idle for too long: a retry opens a new one.
    (400, "IdleTimeout"): "later",
    (400, "TopicDisallowed"): "doubtful",
    # The token is older than an hour, or the clock is wrong.
    (403, "ExpiredProviderToken"): "another token",
    # The key, its id or the team is wrong.
    (403, "InvalidProviderToken"): "stopped",
    (403, "MissingProviderToken"): "stopped",
    (403, "UnrelatedKeyIdInToken"): "stopped",
    # The key is valid in the other environment only.
    (403, "BadEnvironmentKeyIdInToken"): "stopped",
    (403, "BadEnvironmentKeyInToken"): "stopped",
    (403, "Forbidden"): "stopped",
    # Too many pushes to this one phone.
    (429, "TooManyRequests"): "later",
    # More than one new token in twenty minutes: APNs refuses this connection for a while.
    (429, "TooManyProviderTokenUpdates"): "lane later",
    # APNs is overloaded or shutting down.
    (500, "InternalServerError"): "later",
    (503, "ServiceUnavailable"): "later",
    (503, "Shutdown"): "later",
}
"""What an answer means, by status and reason. Other reasons are looked up in `STATUSES`."""

STATUSES: dict[int, Way] = {
    0: "later",  # no answer: the push may have arrived, and the same ids prevent a second banner
    200: "delivered",
    401: "stopped",
    403: "stopped",  # every 403 is about the key
    410: "gone",
    429: "later",
}
"""The same for unknown reasons. Other statuses from 500 on are retried, and the rest is refused."""

TOKEN_UPDATES_RETRY_DELAY = 30.0
"""Seconds for which a lane waits after 429 TooManyProviderTokenUpdates, and then tries one push."""

MAX_CLOCK_ERROR = 60.0
"""Seconds by which the clock may differ from the time since the last token, before one of them is taken to be wrong."""


class Apns(Channel):
    """One app in one environment. Raises `Refusal` if the key file contains no key for ES256, or a setting is empty."""

    window = WINDOW
    probe_type = "iOS"
    phones = ("iOS",)
    lone_first = True  # with token authentication, a new connection has one stream until a push succeeded

    def __init__(  # noqa: PLR0913 - each of them is a setting
        self,
        *,
        environment: Environment,
        key_file: Path,
        key_id: str,
        team_id: str,
        topic: str,
        url: str = "",
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("key's id", key_id), ("team's id", team_id), ("topic", topic)):
            if not value.isascii() or not value.isprintable() or not value:
                raise Refusal(f"The {name} for APNs is missing or has invalid characters.")
        self._url = (url or (SANDBOX if environment == "sandbox" else PRODUCTION)).rstrip("/") + "/3/device/"
        self._topic = topic
        self._token = ProviderToken(_key_in(key_file), key_id, team_id, clock, elapsed)

    @classmethod
    def stored_token(cls, text: str) -> str | None:
        """Return a token in lower case: it is hexadecimal."""
        return text.lower() if TOKEN.fullmatch(text) else None

    async def ready(self) -> Stopped | Later | None:
        """Make a new token if it is due."""
        self._token.current()
        return None

    def request(self, push: Push) -> Request | Refused:
        """Return the request of a push, or `Refused` if it is too long even when it is shortened."""
        body = body_of(push)
        if isinstance(body, Refused):
            return body
        return Request(self._url + push.address.token, self._headers(push), body)

    def outcome(self, push: Push, answer: Answer) -> Outcome:  # noqa: ARG002 - as declared by Channel
        """Return what an answer means."""
        said = object_of(answer) if answer.body else {}
        reason = text_of(said.get("reason"))
        why = reason_of(answer, reason)
        match way_of(ANSWERS, STATUSES, answer.status, reason):
            case "gone":
                return Gone(why, _moment(said.get("timestamp")))
            case "later":
                return Later(why, pause_of(answer))
            case "lane later":
                pause = max(pause_of(answer) or 0.0, TOKEN_UPDATES_RETRY_DELAY)
                return Later(why, pause, lane=pause)  # it is not about this push
            case "another token":
                return self._expired(why, answer)
            case way:
                self._judge(way, answer)
                return settled(way, why)

    def alternative(self, push: Push, answer: Answer) -> Address | None:
        """Return the address in the other environment, if this one does not know the token."""
        if answer.status == 200 or text_of(object_of(answer).get("reason")) != "BadDeviceToken":  # noqa: PLR2004
            return None
        was_sandbox = push.address.environment == "sandbox"
        return replace(push.address, environment="production" if was_sandbox else "sandbox")

    def _headers(self, push: Push) -> tuple[tuple[str, str], ...]:
        return (("authorization", self._token.header()), *headers_of(push, self._topic))

    def _judge(self, way: Way, answer: Answer) -> None:
        """Record what an answer says about the token."""
        if way == "delivered":
            self._token.accepted()
        elif way == "stopped":
            self._token.refused(answer.sent_at)

    def _expired(self, why: str, answer: Answer) -> Outcome:
        """Make a new token, unless the push was sent with an older one. If a new one is too old, the clock is wrong."""
        if not self._token.refused(answer.sent_at) or self._token.renew():
            return Later(why, 0.0)
        return Stopped(f"{why}, although the token is new: check the clock")


class ProviderToken:
    """The token that authorises all pushes of a lane.

    `clock` returns seconds since 1970, and can be corrected at any time; `elapsed` returns seconds that only advance.
    The age of a token is measured by `elapsed`: a token that APNs accepted stays valid when the clock changes, and one
    more token within twenty minutes would be refused.
    """

    def __init__(
        self,
        key: EllipticCurvePrivateKey,
        key_id: str,
        team_id: str,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key, self._key_id, self._team_id = key, key_id, team_id
        self._clock, self._elapsed = clock, elapsed
        self._header = ""
        self._issued_at = self._made_at = self._made_after = 0.0
        self._is_accepted = self._is_refused = False

    def current(self) -> str:
        """Return the token, or a new one if it is due."""
        if not self._header or self._age >= TOKEN_LIFETIME:
            self._make()
        elif self._is_refused:
            self.renew()
        return self._header.removeprefix("bearer ")

    def header(self) -> str:
        """Return the value of the header `authorization`."""
        self.current()
        return self._header

    def accepted(self) -> None:
        """Record that APNs accepted the token."""
        self._is_accepted, self._is_refused = True, False

    def refused(self, sent_at: datetime) -> bool:
        """Record that a request sent at a time was refused because of its token; return whether it had this token."""
        if self._made_after > sent_at.timestamp():
            return False
        self._is_accepted, self._is_refused = False, True
        return True

    def renew(self) -> bool:
        """Make a new token if the last one is old enough, or was made by a wrong clock; return whether there is one."""
        is_due = self._age >= MIN_TOKEN_AGE or (self._is_refused and self._is_clock_corrected)
        if is_due:
            self._make()
        return is_due

    @property
    def _age(self) -> float:
        return self._elapsed() - self._made_at

    @property
    def _is_clock_corrected(self) -> bool:
        """Whether the clock differs from the time since the token was made."""
        return abs(self._clock() - self._issued_at - self._age) > MAX_CLOCK_ERROR

    def _make(self) -> None:
        """Make a token. If the clock changed since APNs accepted one, the time since then is right, not the clock."""
        now = self._clock()
        is_wrong = self._is_accepted and self._is_clock_corrected
        self._issued_at = self._issued_at + self._age if is_wrong else now
        self._made_at, self._made_after = self._elapsed(), now
        self._is_refused = False
        claims = {"iss": self._team_id, "iat": int(self._issued_at)}
        self._header = "bearer " + jwt.encode(claims, self._key, "ES256", {"kid": self._key_id, "typ": None})


def headers_of(push: Push, topic: str) -> tuple[tuple[str, str], ...]:
    """Return all headers of a push except `authorization`."""
    id_ = str(push.id)
    return (
        ("apns-topic", topic),
        *apple_headers(push),
        ("apns-id", id_),
        ("apns-collapse-id", id_),
        ("content-type", "application/json"),
    )


def body_of(push: Push) -> bytes | Refused:
    """Return the JSON for an iPhone, or `Refused` if it is too long even when it is shortened."""
    body = fitted(push, _payload, MAX_BYTES)
    return Refused(f"the push has more than {MAX_BYTES} bytes even when it is shortened") if body is None else body


def apple_headers(push: Push) -> tuple[tuple[str, str], ...]:
    """Return type, priority and expiration of a push. A silent push is an alert too, because it sets the badge."""
    urgent = push.shown is not None and push.shown.preset != "quiet"
    return (
        ("apns-push-type", "alert"),
        ("apns-priority", "10" if urgent else "5"),
        ("apns-expiration", str(max(int(push.expires_at.timestamp()), 0))),
    )


def _payload(push: Push, parts: Parts) -> str:
    beside = f',"notification":{notification(push, push.shown, parts.data)}' if push.shown else ""
    if parts.clear:
        beside += f',"clear":{to_json(ids(parts.clear))}'
    return f'{{"aps":{to_json(apple(push, parts))}{beside}}}'


def _moment(timestamp: object) -> datetime | None:
    """Return the time of a number of milliseconds since 1970, None if it is not one."""
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | float):
        return None
    try:
        return datetime.fromtimestamp(timestamp / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _key_in(path: Path) -> EllipticCurvePrivateKey:
    key = p256_key_in(setting_file(path, "The key for APNs"))
    if key is None:
        raise Refusal(
            f"The key file for APNs {path} contains no private key on the curve P-256: use Apple's .p8 file unchanged."
        )
    return key
