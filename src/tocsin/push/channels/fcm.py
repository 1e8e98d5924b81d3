"""Firebase Cloud Messaging (FCM): the HTTP v1 API, one lane per app, for Android phones and iPhones."""

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tocsin.http_client.messages import Answer, Request
from tocsin.http_client.tls import Trust
from tocsin.notifications import to_json
from tocsin.push.channels import Channel, Gone, Later, Outcome, Push, Refused, Shown, Stopped
from tocsin.push.channels.apns import apple_headers
from tocsin.push.channels.google_auth import AccessToken, ServiceAccount
from tocsin.push.channels.payloads import MAX_BYTES, Parts, apple, fitted, ids, notification
from tocsin.push.channels.responses import Way, lane_later, object_of, pause_of, reason_of, settled, text_of, way_of

URL = "https://fcm.googleapis.com"

WINDOW = 200
"""Pushes that may be under way at once: two connections of a hundred streams."""

MAX_TTL = 28 * 24 * 3600
"""Maximum seconds for which FCM keeps a message."""

QUOTA_RETRY_DELAY = 60.0
"""Minimum seconds that FCM asks to wait after a quota was exceeded."""

MIN_RETRY = 10.0
"""Minimum seconds that FCM asks to wait before any retry."""

REGISTRATION = re.compile(r"[A-Za-z0-9_:-]{32,4096}")
INSTALLATION = re.compile(r"[cdef][A-Za-z0-9_-]{21}")
"""An installation id; all other tokens are registration tokens."""

ANSWERS: dict[tuple[int, str], Way] = {
    # The app was deleted, or its token has expired.
    (404, "UNREGISTERED"): "gone",
    # The token is invalid, or of a kind that is not supported.
    (400, "INVALID_ARGUMENT"): "doubtful",
    # A field of the message is invalid; the device is not the cause.
    (400, "fieldViolations"): "refused",
    # The token is of another project: the device or the credentials may be wrong.
    (403, "SENDER_ID_MISMATCH"): "doubtful",
    # Firebase has no valid key for APNs or for web push.
    (401, "THIRD_PARTY_AUTH_ERROR"): "stopped",
    # The service account may not send, or the API is disabled.
    (403, "PERMISSION_DENIED"): "stopped",
    # The access token has expired, or was revoked.
    (401, "UNAUTHENTICATED"): "another token",
    # The quota of the project, per minute.
    (429, "QUOTA_EXCEEDED"): "lane later",
    (429, "RESOURCE_EXHAUSTED"): "lane later",
    (500, "INTERNAL"): "later",
    (503, "UNAVAILABLE"): "later",
    # The project is unknown: such an answer has no code of FCM.
    (404, "NOT_FOUND"): "stopped",
}
"""What an answer means, by status and code. Other codes are looked up in `STATUSES`."""

STATUSES: dict[int, Way] = {
    0: "later",  # no answer: the push may have arrived, and the same tag prevents a second banner
    200: "delivered",
    401: "another token",
    403: "stopped",
    404: "stopped",
    429: "lane later",
}
"""The same for unknown codes. Other statuses from 500 on are retried, and the rest is refused."""


class Fcm(Channel):
    """One app's project. Raises `Refusal` if the credentials file contains no service account."""

    window = WINDOW
    min_retry_delay = MIN_RETRY
    probe_type = "Android"
    phones = ("Android", "iOS")

    def __init__(
        self,
        *,
        credentials_file: Path,
        url: str = URL,
        trust: Trust | None = None,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        account = ServiceAccount.read(credentials_file)
        self._url = f"{url.rstrip('/')}/v1/projects/{account.project}/messages:send"
        self._token = AccessToken(account, trust, clock, elapsed)
        self._clock = clock

    @classmethod
    def stored_token(cls, text: str) -> str | None:
        """Return a registration token or an installation id as it is: both are case-sensitive."""
        return text if REGISTRATION.fullmatch(text) or INSTALLATION.fullmatch(text) else None

    async def ready(self) -> Stopped | Later | None:
        """Fetch an access token if there is none, or if it expires soon; return why there is none."""
        return await self._token.fetch()

    def try_now(self) -> None:
        """Fetch an access token at the next push, even if the last fetch failed just now."""
        self._token.try_now()

    def request(self, push: Push) -> Request | Refused:
        """Return the request of a push, or `Refused` if it is too long even when it is shortened."""
        body = body_of(push, self._clock())
        if isinstance(body, Refused):
            return body
        headers = (("authorization", f"Bearer {self._token.value}"), ("content-type", "application/json"))
        return Request(self._url, headers, body)

    def outcome(self, push: Push, answer: Answer) -> Outcome:  # noqa: ARG002 - as declared by Channel
        """Return what an answer means."""
        code = _code_of(answer) if answer.body else ""
        why = reason_of(answer, code)
        if answer.status == 200:  # noqa: PLR2004 - a success also proves the token
            self._token.accepted()
        match way_of(ANSWERS, STATUSES, answer.status, code):
            case "gone":
                return Gone(why)
            case "later":
                return Later(why, pause_of(answer))
            case "lane later":
                return lane_later(answer, why, QUOTA_RETRY_DELAY)
            case "another token":
                return Later(why, 0.0) if self._token.refused(answer.sent_at) else Stopped(why)
            case way:
                return settled(way, why)


def body_of(push: Push, now: float) -> bytes | Refused:
    """Return the JSON for FCM, at a time in seconds since 1970.

    Return `Refused` if the push is too long even when it is shortened.
    """
    seconds = min(max(int(push.expires_at.timestamp() - now), 0), MAX_TTL)
    limit = MAX_BYTES + len(push.address.token)  # the token is not part of the payload, and may be as long
    body = fitted(push, lambda push, parts: to_json({"message": _message(push, parts, seconds)}), limit)
    return Refused(f"the push has more than {MAX_BYTES} bytes even when it is shortened") if body is None else body


def _message(push: Push, parts: Parts, seconds: int) -> dict[str, Any]:
    name = "fid" if INSTALLATION.fullmatch(push.address.token) else "token"
    message: dict[str, Any] = {name: push.address.token}
    shown = push.shown
    if shown:
        message["notification"] = {"title": shown.title, "body": parts.body}
    if push.address.type == "iOS":
        return {**message, **_for_apple(push, parts)}
    return {**message, "data": _data(push, parts), "android": _for_android(push, shown, seconds)}


def _data(push: Push, parts: Parts) -> dict[str, str]:
    """Return the data for the app. FCM accepts only strings."""
    data: dict[str, str] = {}
    if shown := push.shown:
        data |= {"id": str(push.id), "type": shown.type, "data": parts.data}
        data["link"] = shown.link
    if parts.clear:
        data["clear"] = to_json(ids(parts.clear))
    return {**data, "badge": str(push.badge)}


def _for_android(push: Push, shown: Shown | None, seconds: int) -> dict[str, Any]:
    urgent = shown is not None and shown.preset != "quiet"
    android: dict[str, Any] = {"priority": "high" if urgent else "normal", "ttl": f"{seconds}s"}
    if shown:
        android["notification"] = {"tag": str(push.id)}
        if shown.android_channel:
            android["notification"]["channel_id"] = shown.android_channel
    return android


def _for_apple(push: Push, parts: Parts) -> dict[str, Any]:
    """Return what FCM sends to an iPhone: the headers and payload of APNs, and the data as for Android."""
    headers = dict(apple_headers(push)) | {"apns-collapse-id": str(push.id)}
    payload: dict[str, Any] = {"aps": apple(push, parts)}
    if push.shown is None:
        clear = {"clear": ids(parts.clear)} if parts.clear else {}
        return {"apns": {"headers": headers, "payload": {**payload, **clear}}}
    payload["notification"] = json.loads(notification(push, push.shown, parts.data))
    return {"data": _data(push, parts), "apns": {"headers": headers, "payload": payload}}


def _code_of(answer: Answer) -> str:
    """Return the most specific code of an error: that of FCM, else `fieldViolations`, else the status."""
    error = object_of(answer).get("error")
    if not isinstance(error, Mapping):
        return ""
    details = error.get("details")
    entries = [entry for entry in details if isinstance(entry, Mapping)] if isinstance(details, list) else []
    if code := next((code for entry in entries if (code := text_of(entry.get("errorCode")))), ""):
        return code
    if any(entry.get("fieldViolations") for entry in entries):
        return "fieldViolations"
    status = text_of(error.get("status"))
    # Without a detail, a 400 does not say that the device is wrong.
    return "" if status == "INVALID_ARGUMENT" else status
