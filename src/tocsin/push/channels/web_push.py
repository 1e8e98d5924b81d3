"""Browsers' push services (RFC 8030). Endpoints come from users, so each is checked before a request is sent to it."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from urllib.parse import urlsplit

from tocsin.http_client.messages import Answer, Request
from tocsin.http_client.public_addresses import origin_of
from tocsin.notifications import to_json
from tocsin.push.channels import Address, Channel, Gone, Later, Outcome, Push, Refused, Unauthorised
from tocsin.push.channels.payloads import Parts, fitted, ids, notification
from tocsin.push.channels.responses import Way, object_of, pause_of, reason_of, settled, text_of, way_of
from tocsin.push.channels.vapid import Vapid
from tocsin.push.channels.web_push_encryption import Keys, encoded, encrypted, point_of, secret_of

SERVICES = (
    "fcm.googleapis.com",
    "fcm.google.com",  # this and the next: Chromium outside of Google's stable channel
    "jmt17.google.com",
    ".push.services.mozilla.com",
    ".push.apple.com",
    ".notify.windows.com",
)
"""The hosts of browsers' push services. A leading dot stands for any one label."""

MAX_ENDPOINT_LENGTH = 2048
"""Characters of the longest endpoint."""

MAX_BYTES = 2800
"""Maximum bytes of a payload before encryption: Firefox for Android does not receive larger ones."""

WINDOW = 100
"""Pushes that may be under way at once, to all services together."""

MAX_TEXT_LENGTH = 200
"""Maximum bytes that are read of a reason in plain text."""

MAX_TTL = 28 * 24 * 3600

URGENCIES = {"quiet": "low", "normal": "normal", "urgent": "high"}
"""The header `Urgency` (RFC 8030, section 5.3), by preset."""

ANSWERS: dict[tuple[int, str], Way] = {
    # Apple's and Google's reasons for a subscription that belongs to another VAPID key.
    (400, "VapidPkHashMismatch"): "unauthorised",
    (400, "UnauthorizedRegistration"): "unauthorised",
}
"""What an answer means, by status and reason. Other reasons are looked up in `STATUSES`."""

STATUSES: dict[int, Way] = {
    0: "later",  # no answer: the push may have arrived, and the same topic and tag prevent a second banner
    # Services answer 200, 201, 202 or 204, and a gateway may change it to another 2xx.
    **dict.fromkeys(range(200, 300), "delivered"),
    # The subscription has ended.
    404: "gone",
    410: "gone",
    # The service refuses the token, the key or the subject, or a firewall refuses all requests, or the subscription
    # was made with another key: one answer does not show which. So no subscription is removed in any of these cases,
    # and the lane continues for other services. A retry has a new token.
    401: "unauthorised",
    403: "unauthorised",
    # The request is invalid: a retry would be, too, but the subscription is not the cause.
    400: "refused",
    413: "refused",
    # Too many pushes to this one subscription.
    429: "later",
}
"""The same for all other reasons. Other statuses are decided as for all providers."""


class WebPush(Channel):
    """All browsers. Requests go only to known push services and to `allowed_origins`.

    A subscription belongs to one key. Pages subscribe with the first of `keys`.
    """

    window = WINDOW
    preference = "web_push"
    accepts_silent_push = False

    def __init__(
        self, keys: Sequence[Vapid], allowed_origins: Collection[str] = (), clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._allowed = frozenset(allowed_origins)
        self._clock = clock

    @property
    def public(self) -> str:
        """The public key that pages subscribe with, in base64url."""
        return self._keys[0].public

    def request(self, push: Push) -> Request | Refused:
        """Return the request of a push, or `Refused` if the subscription is wrong or the push is too long."""
        endpoint = push.address.token
        origin = _origin_of(endpoint, self._allowed)
        if origin is None:
            return Refused("the endpoint is not of an allowed push service")
        try:
            keys = _keys_of(push.address.p256dh, push.address.auth)
        except ValueError:
            return Refused("the subscription has no keys to encrypt with")
        plain = plain_of(push)
        if isinstance(plain, Refused):
            return plain
        return Request(endpoint, self._headers(push, origin), encrypted(plain, keys), guarded=True)

    def outcome(self, push: Push, answer: Answer) -> Outcome:
        """Return what an answer means."""
        why = reason_of(answer, _reason(answer))
        match _way(answer):
            case "gone":
                return Gone(why)
            case "later":
                return Later(why, pause_of(answer))
            case "unauthorised":
                self._key_for(push.address).forget(self.service(push.address))
                return Unauthorised(why, pause_of(answer))
            case way:
                return settled(way, why)

    def service(self, address: Address) -> str:
        """Return the origin of an endpoint."""
        return origin_of(address.token) or ""

    def alternative(self, push: Push, answer: Answer) -> Address | None:
        """Return the address with the other key, if there are two and the service refused this one."""
        if _way(answer) != "unauthorised":
            return None
        tried = self._key_for(push.address)
        other = next((key for key in self._keys if key is not tried), None)
        return replace(push.address, server_key=other.name) if other else None

    def _key_for(self, address: Address) -> Vapid:
        return next((key for key in self._keys if key.name == address.server_key), self._keys[0])

    def _headers(self, push: Push, origin: str) -> tuple[tuple[str, str], ...]:
        seconds = min(max(int(push.expires_at.timestamp() - self._clock()), 0), MAX_TTL)
        return (
            ("authorization", self._key_for(push.address).authorization(origin)),
            ("ttl", str(seconds)),
            ("urgency", URGENCIES[push.shown.preset] if push.shown else "low"),
            ("topic", encoded(push.id.bytes)),
            ("content-encoding", "aes128gcm"),
            ("content-type", "application/octet-stream"),
        )


def _way(answer: Answer) -> Way:
    return way_of(ANSWERS, STATUSES, answer.status, _reason(answer))


def _reason(answer: Answer) -> str:
    """Return the service's reason: `reason` of Apple, `error` of Mozilla, or the text of Google."""
    if not answer.body:
        return ""
    if answer.headers.get("content-type", "").startswith("text/plain"):
        return text_of(answer.body[:MAX_TEXT_LENGTH].decode(errors="replace"))
    said = object_of(answer)
    return text_of(said.get("reason")) or text_of(said.get("error"))


def plain_of(push: Push) -> bytes | Refused:
    """Return the JSON that a page decrypts, or `Refused` if it is too long even when it is shortened."""
    plain = fitted(push, _payload, MAX_BYTES)
    return Refused(f"the push has more than {MAX_BYTES} bytes even when it is shortened") if plain is None else plain


def check_subscription(
    endpoint: str, p256dh: str, auth: str, allowed_origins: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Return the errors of a subscription: pairs of a field and a validation code, `url` or `regex`."""
    field_errors: list[tuple[str, str]] = []
    if _origin_of(endpoint, allowed_origins) is None:
        field_errors.append(("endpoint", "url"))
    checks: Mapping[str, Callable[[], bytes]] = {
        "keys.p256dh": lambda: point_of(p256dh),
        "keys.auth": lambda: secret_of(auth),
    }
    for name, check in checks.items():
        try:
            check()
        except ValueError:
            field_errors.append((name, "regex"))
    return field_errors


def endpoint_of(endpoint: str) -> str:
    """Return an endpoint with its origin in normal form, so that two spellings are one device."""
    origin = origin_of(endpoint)
    if origin is None:
        return endpoint
    path = endpoint.find("/", len("https://"))
    return origin + endpoint[path:] if path >= 0 else origin


def _origin_of(endpoint: str, allowed: Collection[str]) -> str | None:
    """Return the origin of an endpoint, or None if requests to it are not allowed."""
    origin = origin_of(endpoint) if len(endpoint) <= MAX_ENDPOINT_LENGTH else None
    if origin is None or origin in allowed:
        return origin
    parts = urlsplit(origin)
    host = parts.hostname or ""
    known = host in SERVICES or host[host.find(".") :] in SERVICES
    return origin if known and parts.scheme == "https" and parts.port is None else None


def _payload(push: Push, parts: Parts) -> str:
    shown = push.shown
    clear = f',"clear":{to_json(ids(parts.clear) if parts.clear != "all" else [])}'  # pages expect a list
    if shown is None:
        return f'{{"badge":{push.badge}{clear}}}'
    words = f'"title":{to_json(shown.title)},"body":{to_json(parts.body)},"tag":"{push.id}"'
    return f'{{{words},"badge":{push.badge}{clear},"notification":{notification(push, shown, parts.data)}}}'


@lru_cache(1000)
def _keys_of(p256dh: str, auth: str) -> Keys:
    return Keys.read(p256dh, auth)
