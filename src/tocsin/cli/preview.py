"""Previews: the pushes of a sample of a kind, made like real pushes and not sent."""

import difflib
import json
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from tocsin.catalogue import Catalogue, Checked
from tocsin.errors import Invalid, Refusal
from tocsin.notifications import body_of, to_json
from tocsin.push.channels import Address, Push, Refused, apns, fcm, web_push
from tocsin.push.content import Composer, Content
from tocsin.push.deliveries import Delivery, DeliveryKey

TOPIC = "com.example.app"
"""The topic for APNs if none is set."""

ID = UUID("01900000-0000-7000-8000-000000000001")
"""The id of every previewed notification, so that previews can be compared."""

TOKENS = {
    "iOS": "0" * 64,
    "Android": "token-of-an-android-phone",
    "Web": "https://updates.push.services.mozilla.com/wpush/v2/preview",
}
"""The tokens by type of device; no device has them."""

BADGE = 1


def previewed(  # noqa: PLR0913 - what a caller may say
    catalogue: Catalogue,
    kind: str,
    locale: str,
    content: Content,
    *,
    topic: str = TOPIC,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Return `{"apns": {"headers", "body"}, "fcm", "web_push"}` for the sample of a kind.

    The header `authorization` is left out, and the payload of web push is decrypted. Raises `Refusal` for an unknown
    kind, a kind without a valid sample, and a notification that is too long for a push.
    """
    now = now or datetime.now(UTC)
    pushes = pushes_of(catalogue, kind, locale, content, now)
    iphone = pushes["iOS"]
    return {
        "apns": {"headers": dict(apns.headers_of(iphone, topic)), "body": _opened(apns.body_of(iphone))},
        "fcm": _opened(fcm.body_of(pushes["Android"], now.timestamp())),
        "web_push": _opened(web_push.plain_of(pushes["Web"])),
    }


def pushes_of(catalogue: Catalogue, kind: str, locale: str, content: Content, now: datetime) -> dict[str, Push]:
    """Return the push of a kind's sample for each type of device: `iOS`, `Android`, `Web`. Raises `Refusal`."""
    types: tuple[Literal["iOS", "Android", "Web"], ...] = ("iOS", "Android", "Web")
    delivery = _delivery(catalogue, _sample(catalogue, kind), locale, now)
    shown = Composer(catalogue, content).shown(delivery)
    return {
        type_: Push(ID, Address(TOKENS[type_], type_, "production", "default", now), BADGE, delivery.expires_at, shown)
        for type_ in types
    }


def pretty(shown: dict[str, Any]) -> str:
    """Return JSON with two spaces per level, without escapes of letters."""
    return json.dumps(shown, ensure_ascii=False, indent=2)


def _sample(catalogue: Catalogue, kind: str) -> Checked:
    """Return the event of a kind's sample, validated as if it were posted. Raises `Refusal`."""
    if kind not in catalogue.kinds:
        raise Refusal(f"Unknown kind {kind!r}: {_instead(catalogue, kind)}.")
    if kind not in catalogue.samples:
        raise Refusal(f"The kind {kind!r} has no sample to preview: {_instead(catalogue, kind)}.")
    event = catalogue.samples[kind]["event"]
    try:
        return catalogue.check(event["type"], event.get("data"), event.get("params"))
    except Invalid as invalid:
        field_errors = ", ".join(found.message.rstrip(".") for found in invalid.field_errors)
        raise Refusal(f"The sample of {kind!r} does not match the kind in your catalogue: {field_errors}.") from None


def _instead(catalogue: Catalogue, kind: str) -> str:
    """Return which kinds to use instead: the variants, similar names, or else all."""
    variants = [name for name in catalogue.samples if name.startswith(f"{kind}/")]
    near = variants or difflib.get_close_matches(kind, catalogue.samples, n=3)
    return f"use {' or '.join(near)}" if near else f"use one of {', '.join(catalogue.samples)}"


def _delivery(catalogue: Catalogue, event: Checked, locale: str, now: datetime) -> Delivery:
    """Return a delivery of the event, as the first notification of its user."""
    language = catalogue.language_of(locale)
    data, params = to_json(event.data), to_json(event.params)
    kept = {"id": ID, "kind": event.kind, "erased": False, "data": data, "params": params}
    body = body_of(catalogue, kept, language)
    return Delivery(DeliveryKey(ID, ID), 1, now, now, locale, language, event.kind, params, body, unread=BADGE)


def _opened(payload: bytes | Refused) -> Any:
    """Return a payload as JSON. Raises `Refusal` if it was refused."""
    if isinstance(payload, Refused):
        raise Refusal(f"The notification cannot be pushed: {payload.reason}.")
    return json.loads(payload)
