"""Web push: encryption, VAPID tokens, allowed endpoints, and the meaning of responses."""

import base64
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tests.support.issuer import pair
from tests.support.push_services import (
    EXPIRES,
    ID,
    OTHER,
    answer,
    answering,
    files_in,
    listening,
    push,
    push_service,
    shown,
    spellings,
)
from tests.support.web_push import AUTH, MOZILLA, OURS, P256DH, POINT, SECRET, browser, opened
from tocsin.errors import Refusal
from tocsin.http_client.messages import Request
from tocsin.http_client.transport import Transport
from tocsin.push.channels import Delivered, Gone, Later, Push, Refused, Unauthorised
from tocsin.push.channels.vapid import FRESH, Vapid
from tocsin.push.channels.web_push import ANSWERS, STATUSES, WebPush, check_subscription, endpoint_of
from tocsin.push.channels.web_push_encryption import Keys, decoded, encoded, encrypted


@pytest.fixture
def web_push() -> WebPush:
    return WebPush([Vapid(OURS.private, "mailto:push@example.com")])


def request(channel: WebPush, sent: Push) -> Request:
    made = channel.request(sent)
    assert isinstance(made, Request), made
    return made


def test_decrypted_web_push_matches_the_contract(web_push: WebPush) -> None:
    made = request(web_push, push(browser(), shown(), clear=(OTHER,)))
    assert made.url == MOZILLA
    assert made.guarded
    assert opened(made.body) == {
        "title": "New note",
        "body": "Ann wrote:\nhello",
        "tag": str(ID),
        "badge": 3,
        "clear": [str(OTHER)],
        "notification": {
            "id": str(ID),
            "type": "note",
            "data": {"user": {"id": 4}},
            "link": "https://crm.example.com/cases/6",
        },
    }


def test_web_push_has_the_required_headers(web_push: WebPush) -> None:
    headers = dict(request(web_push, push(browser(), shown())).headers)
    authorization = headers.pop("authorization")
    assert headers.pop("ttl").isdigit()
    assert headers == {
        "urgency": "normal",
        "topic": base64.urlsafe_b64encode(ID.bytes).decode().rstrip("="),
        "content-encoding": "aes128gcm",
        "content-type": "application/octet-stream",
    }
    assert len(headers["topic"]) == 22
    token, key = authorization.removeprefix("vapid t=").split(", k=")
    said = jwt.decode(token, OURS.pem, ["ES256"], audience="https://updates.push.services.mozilla.com")
    assert said["sub"] == "mailto:push@example.com"
    assert decoded(key) == OURS.private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


@pytest.mark.parametrize(("preset", "urgency"), [("quiet", "low"), ("normal", "normal"), ("urgent", "high")])
def test_web_push_preset_sets_urgency(web_push: WebPush, preset: str, urgency: str) -> None:
    assert dict(request(web_push, push(browser(), shown(preset=preset))).headers)["urgency"] == urgency


def test_web_push_ttl_is_bounded() -> None:
    def ttl(seconds: float) -> str:
        channel = WebPush([Vapid(OURS.private)], clock=lambda: EXPIRES.timestamp() - seconds)
        return dict(request(channel, push(browser(), shown())).headers)["ttl"]

    assert [ttl(seconds) for seconds in (-5, 60, 1e9)] == ["0", "60", str(28 * 86400)]


@given(body=st.text(max_size=5000), data=st.dictionaries(st.text(max_size=5), st.text(max_size=2000), max_size=3))
def test_web_push_payload_fits_and_is_valid_json(body: str, data: dict[str, str]) -> None:
    made = request(WebPush([Vapid(OURS.private)]), push(browser(), shown(body=body, data=json.dumps(data))))
    assert len(made.body) <= 2800 + 86 + 16 + 1
    said, whole = opened(made.body), body.replace(" <br> ", "\n")
    assert said["body"] == whole or (said["body"].endswith("…") and whole.startswith(said["body"][:-1]))
    assert said["notification"]["data"] in (data, {})


def test_web_push_encryption_is_randomized() -> None:
    keys = Keys.read(P256DH, AUTH)
    assert len({encrypted(b"hello", keys) for _ in range(10)}) == 10


def test_vapid_token_is_cached_per_origin_and_renewed_in_time() -> None:
    now = [1.8e9]
    vapid = Vapid(OURS.private, clock=lambda: now[0])
    first = vapid.authorization("https://a.example")
    assert vapid.authorization("https://a.example") == first != vapid.authorization("https://b.example")
    now[0] += FRESH
    assert vapid.authorization("https://a.example") != first
    said = jwt.decode(first.split("=", 1)[1].split(",")[0], options={"verify_signature": False})
    assert 0 < said["exp"] - 1.8e9 <= 86400
    assert said["aud"] == "https://a.example"


def test_vapid_key_is_generated_once_and_reused(tmp_path: Path) -> None:
    path = tmp_path / "folder/vapid.pem"
    [made] = Vapid.make(path)
    assert [made.public] == [key.public for key in Vapid.make(path)] == [key.public for key in Vapid.load(path)]
    assert len(decoded(made.public)) == 65
    assert path.stat().st_mode & 0o777 == 0o600


def test_invalid_vapid_key_is_rejected_in_one_sentence(tmp_path: Path) -> None:
    for name, content in {"public": OURS.pem, "rsa": pair("RS256").private_pem, "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Refusal, match=r"contains no private key on the curve P-256 in PEM\.$"):
            Vapid.load(tmp_path / name)
    with pytest.raises(Refusal, match=r"cannot be read: No such file or directory\.$"):
        Vapid.load(tmp_path / "none")
    with pytest.raises(Refusal, match="must be a `mailto:` or `https:` url"):
        Vapid(OURS.private, "push@example.com")


KINDS: dict[str, Any] = {
    "delivered": Delivered(),
    "gone": Gone("{}"),
    "later": Later("{}"),
    "unauthorised": Unauthorised("{}"),
    "refused": Refused("{}"),
}
ROWS = [
    *((status, reason, way) for (status, reason), way in ANSWERS.items()),
    *((status, "", way) for status, way in STATUSES.items() if status),
    *((status, "", "later") for status in (500, 502, 503, 504)),
    *((status, "", "delivered") for status in (200, 201, 202, 204, 206)),
    *((status, "", "later") for status in (301, 302, 303, 307, 308, 407, 408, 421, 425, 451)),
    *((status, "", "refused") for status in (405, 415, 418, 422)),
    *((403, reason, "unauthorised") for reason in ("BadJwtToken", "ExpiredJwtToken", "BadVapidPublicKey", "other")),
]


@pytest.mark.parametrize(("status", "reason", "way"), ROWS)
def test_every_web_push_response_maps_to_its_outcome(web_push: WebPush, status: int, reason: str, way: str) -> None:
    body = json.dumps({"reason": reason}).encode() if reason else b"anything"
    outcome = web_push.outcome(push(browser(), shown()), answer(status, body))
    expected = KINDS[way]
    why = f"{status} {reason}".strip()
    assert outcome == (type(expected)(why) if hasattr(expected, "reason") else expected)


NOT_SENT = b"permission denied: sender not permitted to send"


@pytest.mark.parametrize(
    ("status", "body", "type_", "outcome"),
    [
        (400, b"UnauthorizedRegistration", "text/plain", Unauthorised("400 UnauthorizedRegistration")),
        (403, NOT_SENT, "text/plain; charset=utf-8", Unauthorised(f"403 {NOT_SENT.decode()}")),
        (403, b"<html>Request blocked</html>", "text/html", Unauthorised("403")),
        (403, b"", "", Unauthorised("403")),
        (403, b'{"error":"x"}', "application/json", Unauthorised("403 x")),
        (401, b'{"errno":109,"error":"Unauthorized"}', "application/json", Unauthorised("401 Unauthorized")),
        (400, b"\xff" * 9000, "text/plain", Refused(f"400 {chr(0xFFFD) * 200}")),
        (410, b"x" * 9000, "text/plain", Gone(f"410 {'x' * 200}")),
    ],
)
def test_web_push_error_quotes_json_or_text_responses(
    web_push: WebPush, status: int, body: bytes, type_: str, outcome: Any
) -> None:
    assert web_push.outcome(push(browser(), shown()), answer(status, body, content_type=type_)) == outcome


def test_web_push_timeout_and_retry_after_are_retried(web_push: WebPush) -> None:
    sent = push(browser(), shown())
    assert web_push.outcome(sent, answer(0)) == Later("no answer: no whole answer within 10 s")
    assert web_push.outcome(sent, answer(429, retry_after="30")) == Later("429", 30.0)


def test_rejected_vapid_token_is_renewed_for_its_origin_only() -> None:
    now = [1.8e9]
    vapid = Vapid(OURS.private, clock=lambda: now[0])
    channel = WebPush([vapid])
    ours, theirs = "https://updates.push.services.mozilla.com", "https://fcm.googleapis.com"
    before = vapid.authorization(ours), vapid.authorization(theirs)
    now[0] += 1
    channel.outcome(push(browser(), shown()), answer(401))
    assert vapid.authorization(ours) != before[0]
    assert vapid.authorization(theirs) == before[1]


GOOD = [
    MOZILLA,
    "https://fcm.googleapis.com/fcm/send/abc:def-ghi",
    "https://web.push.apple.com/QAbc",
    "https://jmt17.google.com/fcm/send/abc",
    "https://fcm.google.com/preprod/wp/abc",
    "https://WEB.PUSH.APPLE.COM/QAbc",
    "https://wns2-par02p.notify.windows.com/w/?token=BQYAAAB%2f",
    "https://fcm.googleapis.com:443/x",
]
BAD = [
    "",
    "http://fcm.googleapis.com/x",
    "https://fcm.googleapis.com:8443/x",
    "https://fcm.googleapis.com.evil.example/x",
    "https://evilfcm.googleapis.com/x",
    "https://a.fcm.googleapis.com/x",
    "https://push.services.mozilla.com.evil.example/",
    "https://evilpush.services.mozilla.com.example/",
    "https://push.apple.com.evil/",
    "https://evilpush.apple.com/",
    "https://push.apple.com/",
    "https://.push.apple.com/",
    "https://a.b.push.apple.com/",
    f"https://{'a' * 64}.push.apple.com/",
    "https://a.jmt17.google.com/",
    "https://user@fcm.googleapis.com/x",
    "https://fcm.googleapis.com@evil.example/x",
    "https://fcm.googleapis.com\\@evil.example/x",
    "https://evil.example/#fcm.googleapis.com",
    "https://evil.example/?fcm.googleapis.com",
    "https://evil.example/.push.apple.com",
    "https://fcm.googleapis.com./x",
    "https://fcm。googleapis.com/x",
    "https://fcm.googleapis.com%2eevil.example/",
    "https://fcm.googleapis.com/" + "x" * 2048,
    " https://fcm.googleapis.com/x",
    "https://fcm.googleapis.com/x\n",
    "//fcm.googleapis.com/x",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("endpoint", GOOD)
def test_known_push_services_are_allowed_as_endpoints(endpoint: str) -> None:
    assert check_subscription(endpoint, P256DH, AUTH) == []


@pytest.mark.parametrize("endpoint", BAD)
def test_other_hosts_are_rejected_as_endpoints(endpoint: str, web_push: WebPush) -> None:
    assert check_subscription(endpoint, P256DH, AUTH) == [("endpoint", "url")]
    assert isinstance(web_push.request(push(browser(endpoint), shown())), Refused)


def test_allowed_origin_may_be_any_endpoint() -> None:
    for origin in ("http://127.0.0.1:8080", "https://push.example.com:8443", "http://[::1]:1"):
        assert check_subscription(f"{origin}/x", P256DH, AUTH, [origin]) == []
        assert check_subscription(f"{origin}/x", P256DH, AUTH) == [("endpoint", "url")]
    assert check_subscription("http://127.0.0.1:8081/x", P256DH, AUTH, ["http://127.0.0.1:8080"]) != []


@pytest.mark.parametrize(
    ("p256dh", "auth", "fields"),
    [
        (P256DH + "=", AUTH + "==", []),
        (base64.b64encode(POINT).decode(), base64.b64encode(SECRET).decode(), []),
        (base64.b64encode(POINT).decode().rstrip("="), encoded(b"\xfb\xff" * 8).translate({45: 43, 95: 47}), []),
        ("", "", ["keys.p256dh", "keys.auth"]),
        (encoded(b"\4" + b"\1" * 64), AUTH, ["keys.p256dh"]),
        (encoded(b"\2" + POINT[1:33]), AUTH, ["keys.p256dh"]),
        (encoded(POINT + b"\0"), AUTH, ["keys.p256dh"]),
        (encoded(b"\0" * 65), AUTH, ["keys.p256dh"]),
        (base64.b64encode(b"\4" + b"\xff" * 64).decode(), AUTH, ["keys.p256dh"]),
        (P256DH, encoded(SECRET[:-1]), ["keys.auth"]),
        (P256DH, encoded(SECRET + b"\0"), ["keys.auth"]),
        (P256DH, AUTH + "\n", ["keys.auth"]),
        (P256DH, AUTH + "=", ["keys.auth"]),
        (P256DH, "ä" * 22, ["keys.auth"]),
    ],
    ids=map(str, range(14)),  # the keys differ in each process
)
def test_invalid_subscription_keys_are_reported(p256dh: str, auth: str, fields: list[str]) -> None:
    assert check_subscription(MOZILLA, p256dh, auth) == [(field, "regex") for field in fields]
    made = WebPush([Vapid(OURS.private)]).request(push(browser(p256dh=p256dh, auth=auth), shown()))
    assert isinstance(made, Refused) == bool(fields)


async def test_loopback_is_rejected_as_endpoint_in_every_spelling() -> None:
    with listening() as (port, came):
        for url in spellings(port):
            assert check_subscription(url, P256DH, AUTH) == [("endpoint", "url")]
        assert came == []


async def test_web_push_arrives_and_can_be_decrypted(tmp_path: Path) -> None:
    async with push_service(tmp_path, answering(201)) as service:
        channel = WebPush([Vapid(OURS.private)], [service.url])
        transport = Transport(10, ca_file=files_in(tmp_path)[0], allowed_origins=[service.url])
        sent = push(browser(f"{service.url}/subscription"), shown())
        assert await channel.ready() is None
        outcome = channel.outcome(sent, await transport.submit(request(channel, sent)))
        await transport.close()
    assert outcome == Delivered()
    assert opened(service.asked[0].body)["title"] == "New note"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://WEB.Push.Apple.com/QAbC?x=Y", "https://web.push.apple.com/QAbC?x=Y"),
        ("HTTPS://web.push.apple.com:443/QAbC", "https://web.push.apple.com/QAbC"),
        ("https://web.push.apple.com", "https://web.push.apple.com"),
        ("nothing of the kind", "nothing of the kind"),
    ],
)
def test_endpoint_url_is_normalized(given: str, kept: str) -> None:
    assert endpoint_of(given) == kept
