"""The stand-in for Firebase Cloud Messaging, HTTP v1: for one project and its service account."""

import json
import re
import secrets
from typing import Any

from tocsin_phones.apns import banner_of, clear_of
from tocsin_phones.book import Book
from tocsin_phones.exchange import JSON, Banner, Change, IncomingRequest, ReceivedPush, Rejection, Reply
from tocsin_phones.messages import TARGETS, check_message, refused_field
from tocsin_phones.oauth import OAuth
from tocsin_phones.screens import badge_of, ids_of, part, text
from tocsin_phones.strict_json import MalformedJson, parse, parse_object

STREAMS = 100
"""Maximum open requests."""

ERRORS = {
    "UNREGISTERED": (404, "NOT_FOUND"),
    "INVALID_ARGUMENT": (400, "INVALID_ARGUMENT"),
    "SENDER_ID_MISMATCH": (403, "PERMISSION_DENIED"),
    "THIRD_PARTY_AUTH_ERROR": (401, "UNAUTHENTICATED"),
    "QUOTA_EXCEEDED": (429, "RESOURCE_EXHAUSTED"),
    "UNAVAILABLE": (503, "UNAVAILABLE"),
    "INTERNAL": (500, "INTERNAL"),
}
"""The codes of `FcmError`, each with its HTTP status and the name of that status."""

PLAIN = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
"""The names of statuses without an `FcmError`."""

_OF_STATUS = {status: code for code, (status, _) in ERRORS.items()}
_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_PATH = re.compile(r"/v1/projects/([^/]+)/messages:send")
_FID = re.compile(r"[cdef][A-Za-z0-9_-]{21}")
_TOKEN = re.compile(r"[A-Za-z0-9_:-]{32,4096}")


class FcmService:
    """Firebase for one project. Its port also serves `/token`."""

    name = "fcm"

    def __init__(self, book: Book, oauth: OAuth, project: str) -> None:
        self._book = book
        self._oauth = oauth
        self._project = project

    def handle(self, request: IncomingRequest) -> Reply:
        """Handle a message or a request for an access token."""
        return self._oauth.handle(request) if request.path == "/token" else self._book.take(self, request)

    def check(self, request: IncomingRequest, push: ReceivedPush) -> None:
        """Put token, id, payload and change into `push`. Raises `Rejection`."""
        found = _PATH.fullmatch(request.path)
        if not found or request.method != "POST":
            raise Rejection(404, "NOT_FOUND", "The requested URL was not found on this server.")
        self._check_access(request.headers, found[1])
        push.payload = body = _body_of(request)
        message = body.get("message")
        if isinstance(message, dict):
            push.token = next((message[name] for name in TARGETS if isinstance(message.get(name), str)), "")
        check_message(body)
        _check_target(body["message"])
        dry = body.get("validate_only", body.get("validateOnly", False))
        name = "fake_message_id" if dry else f"0:{int(push.at * 1_000_000)}%{secrets.token_hex(8)}"
        push.id = f"projects/{self._project}/messages/{name}"
        push.change = Change() if dry else _change(body["message"])

    def success(self, push: ReceivedPush) -> Reply:
        """Return 200 with the message's name."""
        return Reply(200, (JSON,), json.dumps({"name": push.id}).encode())

    def refusal(self, refused: Rejection, push: ReceivedPush) -> Reply:  # noqa: ARG002 - the signature of all providers
        """Return the status with the error's JSON; for a code of `FcmError`, its details have one."""
        code = refused.reason or _OF_STATUS.get(refused.status, "INTERNAL")
        details: list[dict[str, Any]] = list(refused.more.get("details", ()))
        if code in ERRORS and not details:
            details.append({"@type": _FCM_ERROR, "errorCode": code})
        word = ERRORS[code][1] if code in ERRORS else code if code in PLAIN.values() else PLAIN.get(refused.status)
        error: dict[str, Any] = {"code": refused.status, "message": str(refused) or code, "status": word or "UNKNOWN"}
        if details:
            error["details"] = details
        return Reply(refused.status, (JSON,), json.dumps({"error": error}).encode())

    def _check_access(self, headers: dict[str, str], project: str) -> None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._oauth.knows(token):
            raise Rejection(
                401, "UNAUTHENTICATED", "Request had invalid authentication credentials. Expected OAuth 2 access token."
            )
        if project != self._project:
            raise Rejection(404, "NOT_FOUND", "Requested entity was not found.")


def _body_of(request: IncomingRequest) -> dict[str, Any]:
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise refused_field("", "The body must be declared as application/json.")
    try:
        return parse_object(request.body)
    except MalformedJson as error:
        raise refused_field("", f"Invalid JSON payload received. {error}") from None


def _check_target(message: dict[str, Any]) -> None:
    """Refuse an unknown token as Firebase does: with an `FcmError`, and without a field."""
    token, fid = message.get("token"), message.get("fid")
    if (token is not None and not _TOKEN.fullmatch(token)) or (fid is not None and not _FID.fullmatch(fid)):
        raise Rejection(400, "INVALID_ARGUMENT", "The registration token is not a valid FCM registration token")


def _change(message: dict[str, Any]) -> Change:
    payload = part(message, "apns", "payload")
    if isinstance(payload, dict) and "android" not in message:
        return _change_of_iphone(message, payload)
    android = part(message, "android", "notification")
    words = {**(part(message, "notification") or {}), **(android or {})}
    if text(words, "title") or text(words, "body"):
        tag, id_ = text(android, "tag"), text(message, "data", "id")
        count = part(android, "notification_count") or part(android, "notificationCount")
        # The system shows it without running the app, which gets the data when the user opens the notification.
        return Change(Banner(tag, id_, text(words, "title"), text(words, "body")), badge=badge_of(count))
    return _change_by_data({**message.get("data", {}), **(part(message, "android", "data") or {})})


def _change_of_iphone(message: dict[str, Any], payload: dict[str, Any]) -> Change:
    words = part(message, "notification")
    if words and not part(payload, "aps", "alert"):
        payload = {**payload, "aps": {**(part(payload, "aps") or {}), "alert": words}}
    key = text(message, "apns", "headers", "apns-collapse-id")
    return Change(banner_of(payload, key), clear_of(payload), badge_of(part(payload, "aps", "badge")))


def _change_by_data(data: dict[str, Any]) -> Change:
    """Return what the app does with a data message."""
    return Change(clear=_cleared(text(data, "clear")), badge=badge_of(data.get("badge")))


def _cleared(clear: str) -> Any:
    try:
        value = parse(clear.encode()) if clear else []
    except MalformedJson:
        return ()
    return "all" if value == "all" else ids_of(value)
