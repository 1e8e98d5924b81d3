"""The stand-in for a browser and its push service (RFC 8030, 8291, 8292)."""

import json
import re
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from tocsin_phones.book import Book
from tocsin_phones.decrypting import decrypt, point_of
from tocsin_phones.exchange import JSON, Banner, Change, IncomingRequest, ReceivedPush, Rejection, Reply
from tocsin_phones.screens import badge_of, ids_of, part, text
from tocsin_phones.strict_json import MalformedJson, parse

STREAMS = 100
"""Maximum open requests."""

MAX_BYTES = 4096
"""Maximum bytes of a body."""

MAX_VAPID_LIFETIME = 86_400
"""Maximum lifetime of a VAPID token in seconds."""

REASONS = {
    400: "Invalid request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "No such subscription",
    410: "The subscription was removed",
    413: "Payload too large",
    429: "Too many requests",
    500: "Internal error",
    503: "Service unavailable",
}
"""The default reason of a status."""

_PATH = re.compile(r"/push/([A-Za-z0-9_-]+)")
_VAPID = re.compile(r"vapid +([a-z]+) *= *([A-Za-z0-9._=-]+) *, *([a-z]+) *= *([A-Za-z0-9._=-]+) *", re.IGNORECASE)
_TTL = re.compile(r"[0-9]{1,10}")
_TOPIC = re.compile(r"[A-Za-z0-9_-]{1,32}")
_URGENCIES = frozenset({"very-low", "low", "normal", "high"})
_SKEW = 60


@dataclass(frozen=True, slots=True)
class Subscription:
    """The result of `pushManager.subscribe`, with its secrets. `bound_to` is the only key that may send."""

    endpoint: str
    bound_to: str = ""
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    auth: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def as_json(self) -> dict[str, Any]:
        """Return what the page sends to its server."""
        keys = {"p256dh": _text(point_of(self.key.public_key())), "auth": _text(self.auth)}
        return {"endpoint": self.endpoint, "expirationTime": None, "keys": keys}


class Browser:
    """Any number of browsers at one push service, each with its subscription."""

    name = "browser"

    def __init__(self, book: Book) -> None:
        self._book = book
        self._subscriptions: dict[str, Subscription | None] = {}
        self._seen: dict[str, tuple[float, str]] = {}
        self.origin = ""

    def subscribe(self, application_server_key: str = "") -> Subscription:
        """Create a browser and subscribe it; if a key is given, no other may send to it."""
        name = secrets.token_urlsafe(32)
        made = Subscription(f"{self.origin}/push/{name}", application_server_key.rstrip("="))
        self._subscriptions[made.endpoint] = made
        return made

    def unsubscribe(self, endpoint: str) -> bool:
        """Remove a subscription: pushes to it are answered 410. Return whether it existed."""
        there = self._subscriptions.get(endpoint) is not None
        if there:
            self._subscriptions[endpoint] = None
        return there

    def handle(self, request: IncomingRequest) -> Reply:
        """Handle a push."""
        return self._book.take(self, request)

    def check(self, request: IncomingRequest, push: ReceivedPush) -> None:
        """Put token (the endpoint), id, payload and change into `push`. Raises `Rejection`."""
        push.token = self.origin + request.path + (f"?{request.query}" if request.query else "")
        if not _PATH.fullmatch(request.path) or push.token not in self._subscriptions:
            raise Rejection(404, "No such subscription")
        if request.method != "POST":
            raise Rejection(405, "Method not allowed")
        subscription = self._subscriptions[push.token]
        if subscription is None:
            raise Rejection(410, "The subscription was removed")
        self._check_sender(request.headers.get("authorization"), subscription)
        _check_headers(request.headers)
        push.id = secrets.token_urlsafe(16)
        push.payload = _payload_of(request, subscription)
        push.change = _change(push.payload)

    def success(self, push: ReceivedPush) -> Reply:
        """Return 201, with the location of the message and how long it is kept."""
        return Reply(201, (("location", f"{self.origin}/message/{push.id}"), ("ttl", push.headers["ttl"])))

    def refusal(self, refused: Rejection, push: ReceivedPush) -> Reply:  # noqa: ARG002 - the signature of all providers
        """Return the status with its reason."""
        reason = refused.reason or REASONS.get(refused.status, "Internal error")
        answer = {"code": refused.status, "error": reason, "message": str(refused) or reason}
        headers = (JSON, ("www-authenticate", "vapid")) if refused.status == 401 else (JSON,)  # noqa: PLR2004
        return Reply(refused.status, headers, json.dumps(answer).encode())

    def _check_sender(self, authorization: str | None, subscription: Subscription) -> None:
        if authorization is None:
            raise Rejection(401, "Unauthorized", "Authorization is missing: vapid t=..., k=...")
        if authorization not in self._seen:
            self._seen[authorization] = self._sender(authorization)
        expires, key = self._seen[authorization]
        if not -_SKEW < expires - time.time() <= MAX_VAPID_LIFETIME + _SKEW:
            raise Rejection(403, "Invalid VAPID token", "`exp` is past, or more than 24 hours away.")
        if subscription.bound_to not in ("", key):
            raise Rejection(403, "Other VAPID key", "The subscription belongs to another application server key.")

    def _sender(self, authorization: str) -> tuple[float, str]:
        """Return when a VAPID token expires, and its key. Raises `Rejection` if it is not valid here."""
        found = _VAPID.fullmatch(authorization)
        parts = {found[1]: found[2], found[3]: found[4]} if found else {}
        if set(parts) != {"t", "k"}:
            raise Rejection(401, "Unauthorized", "Authorization is not vapid t=..., k=...")
        key = parts["k"].rstrip("=")
        try:
            public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), _bytes(key))
            claims = jwt.decode(
                parts["t"],
                public,
                ["ES256"],
                audience=self.origin,
                leeway=_SKEW,
                options={"require": ["exp", "aud"], "strict_aud": True},
            )
        except (ValueError, jwt.InvalidTokenError) as error:
            raise Rejection(403, "Invalid VAPID token", str(error)) from None
        if not str(claims.get("sub", "")).startswith(("mailto:", "https://")):
            raise Rejection(403, "Invalid VAPID token", "`sub` must be a mailto: or https: address.")
        return float(claims["exp"]), key


def _check_headers(headers: dict[str, str]) -> None:
    if not _TTL.fullmatch(headers.get("ttl", "")):
        raise Rejection(400, "Invalid TTL", "TTL is missing, or no number of seconds.")
    if headers.get("urgency", "normal") not in _URGENCIES:
        raise Rejection(400, "Invalid Urgency")
    if not _TOPIC.fullmatch(headers.get("topic", "t")):
        raise Rejection(400, "Invalid Topic", "Topic has at most 32 characters of base64url.")


def _payload_of(request: IncomingRequest, subscription: Subscription) -> Any:
    """Return the payload of a push: JSON, else text; None without a body."""
    if len(request.body) > MAX_BYTES:
        raise Rejection(413, "Payload too large")
    if not request.body:
        return None
    if request.headers.get("content-encoding") != "aes128gcm":
        raise Rejection(400, "Invalid Content-Encoding", "Content-Encoding must be aes128gcm.")
    try:
        plain = decrypt(request.body, subscription.key, subscription.auth)
    except ValueError as error:
        raise Rejection(400, "Not decrypted", str(error)) from None
    try:
        return parse(plain)
    except MalformedJson:
        return plain.decode(errors="replace")


def _change(payload: Any) -> Change:
    banner = None
    if text(payload, "title") or text(payload, "body"):
        id_ = text(payload, "notification", "id")
        banner = Banner(text(payload, "tag"), id_, text(payload, "title"), text(payload, "body"))
    clear = part(payload, "clear")
    return Change(banner, "all" if clear == "all" else ids_of(clear), badge_of(part(payload, "badge")))


def _text(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def _bytes(content: str) -> bytes:
    return urlsafe_b64decode(content + "=" * (-len(content) % 4))
