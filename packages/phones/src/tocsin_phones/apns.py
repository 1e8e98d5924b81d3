"""The stand-in for Apple's push service: token-based, one stream until a push with a valid token succeeded."""

import json
import re
import time
import uuid
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from tocsin_phones.book import Book
from tocsin_phones.exchange import JSON, Banner, Change, IncomingRequest, ReceivedPush, Rejection, Reply
from tocsin_phones.screens import badge_of, ids_of, part, text
from tocsin_phones.strict_json import MalformedJson, parse_object

MAX_BYTES = 4096
MAX_VOIP_BYTES = 5120
"""Maximum bytes of a payload."""

MAX_COLLAPSE_ID_LENGTH = 64
"""Maximum bytes of an `apns-collapse-id`."""

OLDEST_TOKEN = 3600
NEWEST_UPDATE = 1200
"""Seconds until a provider token expires, and minimum seconds between two on one connection."""

STREAMS = 1000
"""Maximum open requests after a push with a valid token has succeeded."""

SUFFIXES = {
    "alert": "",
    "background": "",
    "controls": "",
    "location": ".location-query",
    "voip": ".voip",
    "complication": ".complication",
    "fileprovider": ".pushkit.fileprovider",
    "mdm": "",
    "liveactivity": ".push-type.liveactivity",
    "pushtotalk": ".voip-ptt",
    "widgets": ".push-type.widgets",
}
"""What each `apns-push-type` adds to the topic."""

REASONS = {
    400: "BadDeviceToken",
    403: "InvalidProviderToken",
    404: "BadPath",
    405: "MethodNotAllowed",
    410: "Unregistered",
    413: "PayloadTooLarge",
    429: "TooManyRequests",
    500: "InternalServerError",
    503: "ServiceUnavailable",
}
"""The default reason of a status."""

_PATH = "/3/device/"
_TOKEN = re.compile(r"(?:[0-9a-fA-F]{2}){8,256}")
_EXPIRATION = re.compile(r"[0-9]{1,19}")
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_AHEAD = 300


class ApnsService:
    """One environment of APNs, with one key of one team, and one app."""

    def __init__(self, book: Book, name: str, key: EllipticCurvePublicKey, ids: tuple[str, str, str]) -> None:
        self.name = name
        self._book = book
        self._key = key
        self._key_id, self._team, self._topic = ids
        self._seen: dict[str, int] = {}

    def handle(self, request: IncomingRequest) -> Reply:
        """Handle a push."""
        return self._book.take(self, request)

    def check(self, request: IncomingRequest, push: ReceivedPush) -> None:
        """Put token, id, payload and change into `push`. Raises `Rejection`."""
        push.id = _id_of(request.headers.get("apns-id"))
        push.token = _token_of(request)
        if request.repeated:
            raise Rejection(400, "DuplicateHeaders")
        self._check_token(request)
        _check_headers(request.headers)
        self._check_topic(request.headers)
        push.payload = _payload_of(request)
        push.change = _change(push.payload, request.headers)

    def success(self, push: ReceivedPush) -> Reply:
        """Return 200 with the push's id, after which the connection may have many streams."""
        headers = (("apns-id", push.id), ("apns-unique-id", str(uuid.uuid4())))
        return Reply(200, headers if self.name == "apns-sandbox" else headers[:1], streams=STREAMS)

    def refusal(self, refused: Rejection, push: ReceivedPush) -> Reply:
        """Return the status with its reason; 410 has the time in milliseconds since when the token is gone."""
        answer: dict[str, Any] = {"reason": refused.reason or REASONS.get(refused.status, "InternalServerError")}
        if refused.status == 410:  # noqa: PLR2004 - only 410 has a time
            answer["timestamp"] = refused.more.get("timestamp", int(time.time() * 1000))
        return Reply(refused.status, (("apns-id", push.id), JSON), json.dumps(answer).encode())

    def _check_token(self, request: IncomingRequest) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Rejection(403, "MissingProviderToken")
        issued = self._seen.get(token)
        if issued is None:
            issued = self._seen[token] = self._issued(token)
        age = time.time() - issued
        if age > OLDEST_TOKEN:
            raise Rejection(403, "ExpiredProviderToken")
        if age < -_AHEAD:
            raise Rejection(403, "InvalidProviderToken")
        before = request.memory.setdefault("issued", issued)
        if issued != before and abs(issued - before) < NEWEST_UPDATE:
            raise Rejection(429, "TooManyProviderTokenUpdates")
        request.memory["issued"] = issued

    def _issued(self, token: str) -> int:
        """Return when a token was issued, in UNIX seconds. Raises `Rejection` if its key or team is another."""
        try:
            header = jwt.get_unverified_header(token)
            claims = jwt.decode(token, self._key, ["ES256"], options={"verify_iat": False})
        except jwt.InvalidTokenError:
            raise Rejection(403, "InvalidProviderToken") from None
        issued = claims.get("iat")
        if header.get("kid") != self._key_id or claims.get("iss") != self._team or type(issued) is not int:
            raise Rejection(403, "InvalidProviderToken")
        return issued

    def _check_topic(self, headers: dict[str, str]) -> None:
        topic = headers.get("apns-topic")
        if not topic:
            raise Rejection(400, "MissingTopic")
        if topic != self._topic + SUFFIXES[headers["apns-push-type"]]:
            raise Rejection(400, "TopicDisallowed")


def _id_of(given: str | None) -> str:
    return given if given and _ID.fullmatch(given) else str(uuid.uuid4())


def _token_of(request: IncomingRequest) -> str:
    if request.method != "POST":
        raise Rejection(405, "MethodNotAllowed")
    if not request.path.startswith(_PATH):
        raise Rejection(404, "BadPath")
    token = request.path.removeprefix(_PATH)
    if not token:
        raise Rejection(400, "MissingDeviceToken")
    if not _TOKEN.fullmatch(token):
        raise Rejection(400, "BadDeviceToken")
    return token.lower()


def _check_headers(headers: dict[str, str]) -> None:
    kind, priority = headers.get("apns-push-type"), headers.get("apns-priority", "10")
    if "apns-id" in headers and not _ID.fullmatch(headers["apns-id"]):
        raise Rejection(400, "BadMessageId")
    if kind not in SUFFIXES:
        raise Rejection(400, "InvalidPushType")
    if priority not in ("10", "5", "1") or (kind == "background" and priority == "10"):
        raise Rejection(400, "BadPriority")
    if not _EXPIRATION.fullmatch(headers.get("apns-expiration", "0")):
        raise Rejection(400, "BadExpirationDate")
    if len(headers.get("apns-collapse-id", "").encode("latin-1")) > MAX_COLLAPSE_ID_LENGTH:
        raise Rejection(400, "BadCollapseId")


def _payload_of(request: IncomingRequest) -> dict[str, Any]:
    voip = request.headers["apns-push-type"] == "voip"
    if len(request.body) > (MAX_VOIP_BYTES if voip else MAX_BYTES):
        raise Rejection(413, "PayloadTooLarge")
    try:
        payload = parse_object(request.body)
    except MalformedJson:
        raise Rejection(400, "PayloadEmpty") from None
    if not isinstance(payload.get("aps"), dict):
        raise Rejection(400, "PayloadEmpty")
    return payload


def _change(payload: dict[str, Any], headers: dict[str, str]) -> Change:
    """Return what the phone shows."""
    key = headers.get("apns-collapse-id", "")
    badge = None if headers["apns-push-type"] == "background" else badge_of(part(payload, "aps", "badge"))
    return Change(banner_of(payload, key), clear_of(payload), badge)


def banner_of(payload: dict[str, Any], key: str) -> Banner | None:
    """Return the banner of a payload for an iPhone; None if it shows nothing."""
    alert = part(payload, "aps", "alert")
    if isinstance(alert, str):
        alert = {"body": alert}
    if not isinstance(alert, dict) or not alert:
        return None
    id_, thread = text(payload, "notification", "id"), text(payload, "aps", "thread-id")
    return Banner(key, id_, text(alert, "title"), text(alert, "body"), thread)


def clear_of(payload: dict[str, Any]) -> Any:
    """Return which banners of an iPhone a payload clears; none unless it wakes the app or its extension."""
    if 1 not in (part(payload, "aps", "content-available"), part(payload, "aps", "mutable-content")):
        return ()
    clear = payload.get("clear")
    return "all" if clear == "all" else ids_of(clear)
