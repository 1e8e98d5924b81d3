"""The parsers of outside input, with the promises that they keep for any bytes, and valid samples."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any, NamedTuple

import httpx
import jwt
from pydantic_core import PydanticCustomError

from tests.support import imports
from tests.support.built_in import CATALOGUE
from tests.support.events import SAMPLES
from tests.support.issuer import jwks, pair
from tocsin.api.drafts import posted
from tocsin.api.parameters import integer
from tocsin.api.requests import subject_of
from tocsin.auth.claims import SCOPES, ServiceCaller, UserCaller
from tocsin.auth.keys import ALL_SPEAKERS, of_jwks
from tocsin.auth.tokens import Verifier, bearer_of
from tocsin.catalogue.rendering import has_only_allowed_tags
from tocsin.errors import FieldError, Invalid, Malformed, Unauthenticated
from tocsin.ids import MAX_ID, parsed_uuid
from tocsin.inbox import cursor_of, position_in
from tocsin.notifications import moment_of, to_json
from tocsin.preferences import Operator, changes_of, merged
from tocsin.push.channels.web_push import SERVICES, check_subscription, endpoint_of
from tocsin.push.device_formats import PHONES
from tocsin.strict_json import parse_object
from tocsin.transfer.lines import Line, LineParser
from tocsin.validation import VALIDATION_CODES

SECRET = "a-secret-for-tests-only-0123456789abcdef"
NOW = 1_900_000_000
LANGUAGES = ("en", "da", "de")

_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")
_CRM = ServiceCaller("crm", SCOPES, None, NOW)
_JWS = jwt.PyJWS(algorithms=["HS256"])


class Parser(NamedTuple):
    """What it does with any bytes, without an exception, and samples that it accepts."""

    check: Callable[[bytes], None]
    samples: Sequence[bytes]


def are_in_form(field_errors: Sequence[FieldError]) -> bool:
    """Return whether errors can be answered: known codes, bounded fields, messages that can be sent."""
    answer = Invalid(field_errors).answer()
    json.dumps(answer).encode()
    return all(error.code in VALIDATION_CODES and len(error.field) < 500 and error.message for error in field_errors)


def ids(data: bytes) -> None:
    """UUIDs have one form, subjects are in stored form, and integers are what they say."""
    text = data.decode("utf-8", "replace")
    if found := parsed_uuid(text):
        assert str(found) == text.lower()
    if (subject := subject_of(text)) is not None:
        assert subject_of(subject) == subject
    with suppress(PydanticCustomError):
        assert integer(text) == int(text[:20]) or len(text) > 20
    if moment := moment_of(text):
        assert moment.tzinfo is UTC
        assert moment_of(moment.isoformat()) == moment


def cursors(data: bytes) -> None:
    """A cursor is a place of an inbox, or zeros."""
    made, at = position_in(data.decode("utf-8", "replace"))
    assert 0 <= made < 2**63
    assert 0 <= at < 2**63
    assert position_in(cursor_of(made, at)) == (made, at)


def tokens(data: bytes) -> None:
    """Nothing that these bytes are is a token but what the secret signed; of phones, one form is kept."""
    text = data.decode("utf-8", "replace")
    bearer_of(text)
    for name in ("claims", text):
        with suppress(Unauthenticated):
            Verifier([SECRET], clock=lambda: NOW).verify(name)
            raise AssertionError(name)
    for channel in PHONES.values():
        if (stored := channel.stored_token(text)) is not None:
            assert channel.stored_token(stored) == stored
            assert "\0" not in stored


def claims(data: bytes) -> None:
    """Signed claims name a caller with an id or a name that the directory and the log can hold, or are refused."""
    token = _JWS.encode(data, SECRET, algorithm="HS256")
    try:
        caller = Verifier([SECRET], clock=lambda: NOW).verify(token)
    except Unauthenticated as refusal:
        json.dumps(refusal.answer()).encode("ascii")
        return
    assert caller.expires + 30 > NOW
    if isinstance(caller, UserCaller):
        assert 1 <= caller.id <= MAX_ID
    else:
        assert 1 <= len(caller.name) <= 100
        assert not _CONTROL.search(caller.name)
        assert caller.scopes <= SCOPES
        assert caller.company_id is None or 1 <= caller.company_id <= MAX_ID


def events(data: bytes) -> None:
    """An event is refused with errors in the contract's form, or can be stored and rendered in every language."""
    with suppress(Malformed):
        made = posted(parse_object(data), _CRM, CATALOGUE)
        if made.draft is None:
            assert made.field_errors
            assert are_in_form(made.field_errors)
            return
        event = made.draft.checked
        (to_json(event.data) + to_json(event.params) + "".join(event.subjects)).encode()
        assert "\0" not in to_json(event.data)
        if not event.unfilled:
            for language in LANGUAGES:
                words = CATALOGUE.render(event.kind, language, event.data, event.params)
                assert "<script" not in words.message_formatted
                CATALOGUE.render(event.kind, language, event.data, event.params, erased=True)


def lines(data: bytes) -> None:
    """A line is refused with errors in the contract's form, or can be stored as JSON."""
    for company_id in (None, 1):
        found = LineParser(CATALOGUE, company_id).read(1, data)
        if isinstance(found, Line):
            json.loads(f"{{{found.body}}}" if found.part == "notification" else found.body)
            found.body.encode()
            assert "\0" not in found.body
            assert found.user_id is None or 1 <= found.user_id <= MAX_ID
        else:
            assert found
            assert are_in_form(found)


_OPERATOR = Operator(CATALOGUE)


def preferences(data: bytes) -> None:
    """Changes of preferences are refused, or can be stored, and decide about every kind."""
    with suppress(Malformed):
        errors: list[FieldError] = []
        changes = changes_of(parse_object(data), _OPERATOR, errors)
        if errors:
            assert are_in_form(errors)
            return
        chosen = json.loads(to_json(merged({}, changes)))
        now = datetime.now(UTC)
        made = _OPERATOR.preferences(chosen, chosen.get("time_zone") or "UTC")
        made.shown(now)
        for kind in CATALOGUE.kinds:
            made.decide(kind, "push", now)


class _Tags(HTMLParser):
    """Records what a browser would make of HTML, but for text."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if attrs or tag not in {"p", "strong", "em", "br"}:
            self.others.append(tag)

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    def handle_decl(self, decl: str) -> None:
        self.others.append(decl)

    def handle_pi(self, data: str) -> None:
        self.others.append(data)


def html(data: bytes) -> None:
    """HTML with only the allowed tags has no others for another parser."""
    text = data.decode("utf-8", "replace")
    if has_only_allowed_tags(text):
        tags = _Tags()
        tags.feed(text)
        tags.close()
        assert tags.others == []


def endpoints(data: bytes) -> None:
    """An endpoint that is accepted leads another parser to a known host, too."""
    text = data.decode("utf-8", "replace")
    if not any(field == "endpoint" for field, _ in check_subscription(text, "", "")):
        for url in (httpx.URL(text), httpx.URL(endpoint_of(text))):
            assert (url.scheme, url.port, url.userinfo, url.fragment) == ("https", None, b"", "")
            assert url.host in SERVICES or url.host[url.host.index(".") :] in SERVICES
        assert endpoint_of(endpoint_of(text)) == endpoint_of(text)


def key_sets(data: bytes) -> None:
    """A key set has public keys for signatures, or is refused."""
    with suppress(ValueError, Malformed):
        for key in of_jwks(data, ALL_SPEAKERS):
            assert key.algorithms
            assert "none" not in key.algorithms
            assert key.is_published
            assert not hasattr(key.material, "private_numbers")


def _json(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


_UUID = b"65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88"

PARSERS = {
    "ids": Parser(ids, [_UUID, b"lead:" + _UUID, b"key:a", b"42", b"2030-01-31T08:00:00.5+01:00"]),
    "cursors": Parser(cursors, [b"6433a1b2c3d4e-17", b"0-0", b"17"]),
    "tokens": Parser(
        tokens,
        [
            b"aa" * 32, b"dGVzdA:APA91bH-_" * 8, b"c" + b"Ab1_-" * 4 + b"x", b"Bearer a.b.c",
            jwt.encode({"sub": "4", "exp": NOW + 60}, "another-secret-0123456789abcdef0123456789").encode(),
            jwt.encode({"sub": "4", "exp": NOW + 60}, "", algorithm="none").encode(),
        ],
    ),
    "claims": Parser(
        claims,
        _json(
            {"sub": "4", "exp": NOW + 60, "iat": NOW, "nbf": NOW - 1.5},
            {"sub": 4, "exp": NOW + 60},
            {"sub": "crm", "exp": NOW + 60, "scope": "events:write operations", "company_id": 7},
            {"sub": "crm", "exp": NOW + 60, "scope": ["directory:write"]},
        ),
    ),
    "events": Parser(
        events,
        _json(
            *(sample["event"] for sample in SAMPLES.values()),
            {
                "type": "custom", "notify": {"users": [1], "teams": [7], "except": [2], "unknown": "skip"}, "data": {},
                "params": {"body": "Hello"}, "about": ["order:42"], "key": "a", "id": _UUID.decode(),
                "deliver_at": "2026-12-31T08:00:00Z",
            },
        ),
    ),
    "lines": Parser(
        lines,
        _json(
            imports.user(1, locale="da", time_zone="Europe/Copenhagen", email="a@b.c", active=True, company_id=1),
            imports.team(7, 1, 2),
            imports.device(1, registered_at="2020-01-31 08:00:00"),
            imports.notification(1, read=True),
        ),
    ),
    "html": Parser(html, [b"<p><strong>A</strong> &amp; b<br><em>c</em></p>", b"a &lt; b"]),
    "endpoints": Parser(
        endpoints,
        [
            b"https://fcm.googleapis.com/fcm/send/c0ffee",
            b"https://Updates.push.services.mozilla.com:443/wpush/v2/a-b?c=d",
        ],
    ),
    "key sets": Parser(key_sets, [jwks(*(pair(name) for name in ("ES256", "RS256", "EdDSA")))]),
    "preferences": Parser(
        preferences,
        _json(
            {"kinds": {"note": {"push": False, "web_push": True, "urgent": None}, "custom": None}},
            {
                "quiet_hours": [{"days": ["mon", "sun"], "from": "20:00", "to": "07:30"}],
                "paused_until": "2030-01-31 08:00:00", "time_zone": "Europe/Copenhagen",
            },
        ),
    ),
}  # fmt: skip
