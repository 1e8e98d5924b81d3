"""Apple's push service (APNs): HTTP/2 with a token of our own key, one lane for each app and environment."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from tocsin.errors import Refusal
from tocsin.files import content_of
from tocsin.http_client.messages import Answer, Request
from tocsin.notifications import to_json
from tocsin.push.channels import Address, Channel, Environment, Gone, Later, Outcome, Push, Refused, Stopped
from tocsin.push.channels.payloads import MAX_BYTES, Parts, apple, fitted, ids, notification
from tocsin.push.channels.private_keys import p256_key_in
from tocsin.push.channels.responses import Way, lane_later, object_of, pause_of, reason_of, settled, text_of, way_of

PRODUCTION = "https://api.push.apple.com"
SANDBOX = "https://api.sandbox.push.apple.com"

TOKEN_LIFETIME = 40 * 60
"""Seconds after which a token is made anew: Apple takes none that is older than an hour."""

MIN_TOKEN_AGE = 20 * 60
"""Seconds between two tokens at least: APNs answers 429 TooManyProviderTokenUpdates if they change more often."""

WINDOW = 1000
"""Streams that Apple allows on a connection."""

ANSWERS: dict[tuple[int, str], Way] = {
    (200, ""): "delivered",
    # The app was deleted, or the phone has another token now: no error, Apple says, and tells since when.
    (410, "Unregistered"): "gone",
    (410, "ExpiredToken"): "gone",
    # Malformed, or of the other environment: it depends on what we think that the device is.
    (400, "BadDeviceToken"): "doubtful",
    # Of another app: the device may be wrong, or our topic.
    (400, "DeviceTokenNotForTopic"): "doubtful",
    # The connection was idle for too long: the next try has a new one.
    (400, "IdleTimeout"): "later",
    (400, "TopicDisallowed"): "doubtful",
    # An hour has passed since it was made, or our clock is wrong.
    (403, "ExpiredProviderToken"): "another token",
    # The key, its id or the team are not what Apple knows.
    (403, "InvalidProviderToken"): "stopped",
    (403, "MissingProviderToken"): "stopped",
    (403, "UnrelatedKeyIdInToken"): "stopped",
    # The key is good for the other environment only.
    (403, "BadEnvironmentKeyIdInToken"): "stopped",
    (403, "BadEnvironmentKeyInToken"): "stopped",
    (403, "Forbidden"): "stopped",
    # Too many to this one phone; the others are not concerned.
    (429, "TooManyRequests"): "later",
    # Apple saw more than one new token in twenty minutes: it takes nothing of this connection for a while.
    (429, "TooManyProviderTokenUpdates"): "lane later",
    # Apple is busy, or goes down: the same push is good later.
    (500, "InternalServerError"): "later",
    (503, "ServiceUnavailable"): "later",
    (503, "Shutdown"): "later",
}
"""What becomes of a push, by status and reason; what is not here goes by its status alone."""

STATUSES: dict[int, Way] = {
    0: "later",  # no answer: it may have arrived, and the same ids keep it from being shown twice
    200: "delivered",
    401: "stopped",
    403: "stopped",  # every 403 is about our key, so a new reason is too
    410: "gone",
    429: "later",
}
"""The same for reasons that are not known; another status from 500 on is for later, and the rest is refused."""

TOKEN_UPDATES_RETRY_DELAY = 300.0
"""Seconds for which a lane waits after too many tokens."""


class Apns(Channel):
    """One app in one environment. Raises `Refusal` where the key file holds no key for ES256, or a setting is empty."""

    window = WINDOW
    probe_type = "iOS"
    lone_first = True  # with token authentication a new connection has one stream until a push succeeded

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
    ) -> None:
        for name, value in (("key's id", key_id), ("team's id", team_id), ("topic", topic)):
            if not value.isascii() or not value.isprintable() or not value:
                raise Refusal(f"The {name} for APNs is missing or has invalid characters.")
        self._url = (url or (SANDBOX if environment == "sandbox" else PRODUCTION)).rstrip("/") + "/3/device/"
        self._topic = topic
        self._token = ProviderToken(_key_in(key_file), key_id, team_id, clock)

    async def ready(self) -> Stopped | Later | None:
        """Make the token if there is none, or an old one."""
        self._token.current()
        return None

    def request(self, push: Push) -> Request | Refused:
        """Make the request of a push; refused is one that is too long even without body and data."""
        body = body_of(push)
        if isinstance(body, Refused):
            return body
        return Request(self._url + push.address.token, self._headers(push), body)

    def outcome(self, push: Push, answer: Answer) -> Outcome:  # noqa: ARG002 - all channels are asked alike
        """Tell what an answer means."""
        said = object_of(answer) if answer.body else {}
        reason = text_of(said.get("reason"))
        why = reason_of(answer, reason)
        match way_of(ANSWERS, STATUSES, answer.status, reason):
            case "gone":
                return Gone(why, _moment(said.get("timestamp")))
            case "later":
                return Later(why, pause_of(answer))
            case "lane later":
                return lane_later(answer, why, TOKEN_UPDATES_RETRY_DELAY)
            case "another token":
                return self._expired(why, answer)
            case way:
                return settled(way, why)

    def alternative(self, push: Push, answer: Answer) -> Address | None:
        """Try a token that its environment does not know in the other one."""
        if answer.status == 200 or text_of(object_of(answer).get("reason")) != "BadDeviceToken":  # noqa: PLR2004
            return None
        was_sandbox = push.address.environment == "sandbox"
        return replace(push.address, environment="production" if was_sandbox else "sandbox")

    def _headers(self, push: Push) -> tuple[tuple[str, str], ...]:
        return (("authorization", self._token.header()), *headers_of(push, self._topic))

    def _expired(self, why: str, answer: Answer) -> Outcome:
        """Take a new token, unless there is one since the push was sent; a fresh one is too old by a wrong clock."""
        if self._token.made_after(answer.sent_at) or self._token.renew():
            return Later(why, 0.0)
        return Stopped(f"{why}, although the token is new: check the clock")


class ProviderToken:
    """The token that authorises all pushes of a lane; `clock` counts seconds since 1970."""

    def __init__(
        self, key: EllipticCurvePrivateKey, key_id: str, team_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._key, self._key_id, self._team_id = key, key_id, team_id
        self._clock = clock
        self._header = ""
        self._made_at = 0.0

    def current(self) -> str:
        """Return the token, made anew when it is due."""
        if not self._header or not 0 <= self._clock() - self._made_at < TOKEN_LIFETIME:
            self._make()
        return self._header.removeprefix("bearer ")

    def header(self) -> str:
        """Return the value of `authorization`."""
        self.current()
        return self._header

    def renew(self) -> bool:
        """Make another, if the last one is old enough; tells whether there is a new one."""
        due = self._clock() - self._made_at >= MIN_TOKEN_AGE
        if due:
            self._make()
        return due

    def made_after(self, moment: datetime) -> bool:
        """Tell whether the token is younger than what was sent then."""
        return bool(self._header) and self._made_at > moment.timestamp()

    def _make(self) -> None:
        self._made_at = self._clock()
        claims = {"iss": self._team_id, "iat": int(self._made_at)}
        self._header = "bearer " + jwt.encode(claims, self._key, "ES256", {"kid": self._key_id, "typ": None})


def headers_of(push: Push, topic: str) -> tuple[tuple[str, str], ...]:
    """Return all headers of a push but the one that authorises it."""
    id_ = str(push.id)
    return (
        ("apns-topic", topic),
        *apple_headers(push),
        ("apns-id", id_),
        ("apns-collapse-id", id_),
        ("content-type", "application/json"),
    )


def body_of(push: Push) -> bytes | Refused:
    """Return what an iPhone gets, as JSON; refused is a push that is too long even without body and data."""
    body = fitted(push, lambda parts: _payload(push, parts), MAX_BYTES)
    return Refused(f"the push has more than {MAX_BYTES} bytes even without its body and data") if body is None else body


def apple_headers(push: Push) -> tuple[tuple[str, str], ...]:
    """Return the headers that tell Apple how to treat a push; a silent one is an alert too, as it has a badge."""
    hurry = push.shown is not None and push.shown.preset != "quiet"
    return (
        ("apns-push-type", "alert"),
        ("apns-priority", "10" if hurry else "5"),
        ("apns-expiration", str(max(int(push.expires_at.timestamp()), 0))),
    )


def _payload(push: Push, parts: Parts) -> str:
    beside = f',"notification":{notification(push, push.shown, parts.data)}' if push.shown else ""
    if parts.clear:
        beside += f',"clear":{to_json(ids(parts.clear))}'
    return f'{{"aps":{to_json(apple(push, parts))}{beside}}}'


def _moment(timestamp: object) -> datetime | None:
    """Return the moment of a number of milliseconds since 1970."""
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | float):
        return None
    try:
        return datetime.fromtimestamp(timestamp / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _key_in(path: Path) -> EllipticCurvePrivateKey:
    try:
        content = content_of(path)
    except OSError as error:
        raise Refusal(f"The key for APNs {path} can't be read: {error.strerror}.") from None
    key = p256_key_in(content)
    if key is None:
        raise Refusal(
            f"The key file for APNs {path} holds no private key on the curve P-256: use Apple's .p8 file unchanged."
        )
    return key
