"""The fields of an FCM message. Others are refused as by the service, with the name of the field."""

import json
import re
from collections.abc import Mapping
from typing import Any

from tocsin_phones.exchange import Rejection

TARGETS = ("fid", "token", "topic", "condition")
"""The recipient of a message: exactly one of these."""

MAX_BYTES = 4096
MAX_TOPIC_BYTES = 2048
"""Maximum bytes of a payload, to a device and to a topic."""

MAX_TTL = 2_419_200
"""Four weeks in seconds."""

_MESSAGE = frozenset({"name", "data", "notification", "android", "webpush", "apns", "fcm_options", *TARGETS})
_NOTIFICATION = frozenset({"title", "body", "image"})
_ANDROID = frozenset(
    {
        "collapse_key",
        "priority",
        "ttl",
        "restricted_package_name",
        "data",
        "notification",
        "fcm_options",
        "direct_boot_ok",
        "bandwidth_constrained_ok",
        "restricted_satellite_ok",
    }
)
_ANDROID_NOTIFICATION = frozenset(
    {
        *("title", "body", "icon", "color", "sound", "tag", "click_action", "channel_id", "ticker", "sticky", "image"),
        *("body_loc_key", "body_loc_args", "title_loc_key", "title_loc_args", "event_time", "local_only"),
        *("notification_priority", "default_sound", "default_vibrate_timings", "default_light_settings"),
        *(
            "vibrate_timings",
            "visibility",
            "notification_count",
            "light_settings",
            "bypass_proxy_notification",
            "proxy",
        ),
    }
)
_APNS = frozenset({"headers", "payload", "fcm_options", "live_activity_token"})
_PRIORITIES = frozenset({"normal", "high", "NORMAL", "HIGH"})
_TTL = re.compile(r"([0-9]{1,9})(?:\.[0-9]{1,9})?s")
_RESERVED = re.compile(r"from|message_type|(google|gcm).*")
_CAPITAL = re.compile(r"[A-Z]")
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"


def check_message(body: Mapping[str, Any]) -> None:
    """Check the body of `messages:send`. Raises `Rejection` with `fieldViolations`."""
    _object(body, "", {"message", "validate_only"})
    message = _object(body.get("message"), "message", _MESSAGE)
    if [isinstance(message.get(name), str) for name in TARGETS].count(True) != 1:
        raise refused_field("message", "Exactly one of fid, token, topic or condition is required.")
    _check_data(message.get("data", {}), "message.data")
    _strings(_object(message.get("notification", {}), "message.notification", _NOTIFICATION), "message.notification")
    _check_android(message.get("android", {}))
    _check_apns(message.get("apns", {}))
    _check_size(message)


def refused_field(field: str, description: str) -> Rejection:
    """Return the refusal of an invalid field: with `fieldViolations` and without an `FcmError`."""
    violation = {"field": field, "description": description}
    details = [{"@type": _BAD_REQUEST, "fieldViolations": [violation]}]
    return Rejection(400, "INVALID_ARGUMENT", description, details=details)


def _check_android(value: Any) -> None:
    android = _object(value, "message.android", _ANDROID)
    if android.get("priority", "normal") not in _PRIORITIES:
        raise refused_field("message.android.priority", "Invalid value: take NORMAL or HIGH.")
    ttl = android.get("ttl", "0s")
    found = _TTL.fullmatch(ttl) if isinstance(ttl, str) else None
    if not found or float(ttl[:-1]) > MAX_TTL:
        raise refused_field("message.android.ttl", f"Invalid duration: seconds with an s, at most {MAX_TTL}s.")
    _check_data(android.get("data", {}), "message.android.data")
    _object(android.get("notification", {}), "message.android.notification", _ANDROID_NOTIFICATION)


def _check_apns(value: Any) -> None:
    apns = _object(value, "message.apns", _APNS)
    _strings(_object(apns.get("headers", {}), "message.apns.headers", None), "message.apns.headers")
    _object(apns.get("payload", {}), "message.apns.payload", None)


def _check_data(value: Any, where: str) -> None:
    data = _object(value, where, None)
    _strings(data, where)
    if reserved := [key for key in data if _RESERVED.fullmatch(key)]:
        raise refused_field(f"{where}.{reserved[0]}", f"Invalid data payload key: {reserved[0]}")


def _check_size(message: Mapping[str, Any]) -> None:
    android = message.get("android", {})
    parts = [message.get("data"), message.get("notification"), android.get("data"), android.get("notification")]
    most = MAX_BYTES if "token" in message or "fid" in message else MAX_TOPIC_BYTES
    if sum(_size(one) for one in parts if one) > most:
        raise refused_field("message", "Android message is too big")
    if _size(message.get("apns", {}).get("payload", {})) > MAX_BYTES:
        raise refused_field("message.apns.payload", "iOS message is too big")


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def _object(value: Any, where: str, known: frozenset[str] | set[str] | None) -> Mapping[str, Any]:
    """Return an object whose fields are among `known`, in either spelling; with None, any fields are allowed."""
    if not isinstance(value, dict):
        raise refused_field(where, "Invalid value: an object is needed.")
    for name in value if known is not None else ():
        if _CAPITAL.sub(lambda found: f"_{found[0].lower()}", name) not in (known or ()):
            raise refused_field(
                where, f"Invalid JSON payload received. Unknown name \"{name}\" at '{where}': Cannot find field."
            )
    return value


def _strings(value: Mapping[str, Any], where: str) -> None:
    for name, one in value.items():
        if not isinstance(one, str):
            raise refused_field(f"{where}.{name}", f"Invalid value at '{where}.{name}' (TYPE_STRING)")
