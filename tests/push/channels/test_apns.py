"""APNs: requests, provider tokens, and the meaning of responses."""

import json
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.apns import KEY, made
from tests.support.clock import Clock
from tests.support.issuer import pair
from tests.support.push_services import (
    EXPIRES,
    ID,
    OTHER,
    answer,
    files_in,
    in_seconds,
    phone,
    push,
    push_service,
    shown,
)
from tocsin.errors import Refusal
from tocsin.http_client.messages import Request
from tocsin.http_client.transport import Transport
from tocsin.push.channels import Delivered, Gone, Later, Outcome, Push, Refused, Stopped
from tocsin.push.channels.apns import ANSWERS, MIN_TOKEN_AGE, STATUSES, TOKEN_LIFETIME, Apns, ProviderToken


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def apns(tmp_path: Path, clock: Clock) -> Apns:
    return made(tmp_path, clock=clock, elapsed=clock)


def request(apns: Apns, push: Push) -> Request:
    made = apns.request(push)
    assert isinstance(made, Request)
    return made


def payload(apns: Apns, push: Push) -> Any:
    return json.loads(request(apns, push).body)


def test_apns_push_has_exactly_the_contract_headers(apns: Apns) -> None:
    headers = dict(request(apns, push(phone(), shown())).headers)
    token = headers.pop("authorization").removeprefix("bearer ")
    assert headers == {
        "apns-topic": "com.example.crm",
        "apns-push-type": "alert",
        "apns-priority": "10",
        "apns-expiration": str(int(EXPIRES.timestamp())),
        "apns-id": str(ID),
        "apns-collapse-id": str(ID),
        "content-type": "application/json",
    }
    assert jwt.get_unverified_header(token) == {"alg": "ES256", "kid": "ABC123DEFG"}
    assert jwt.decode(token, KEY.pem, ["ES256"]).keys() == {"iss", "iat"}


@pytest.mark.parametrize(
    ("environment", "host"), [("production", "api.push.apple.com"), ("sandbox", "api.sandbox.push.apple.com")]
)
def test_apns_environments_have_separate_hosts(tmp_path: Path, environment: str, host: str) -> None:
    apns = made(tmp_path, environment=environment)
    assert request(apns, push(phone(), shown())).url == f"https://{host}/3/device/{'ab' * 32}"


def test_apns_payload_separates_alert_from_notification(apns: Apns) -> None:
    assert payload(apns, push(phone(), shown())) == {
        "aps": {
            "alert": {"title": "New note", "body": "Ann wrote:\nhello"},
            "badge": 3,
            "sound": "default",
            "thread-id": "case-6",
            "category": "note",
            "interruption-level": "active",
        },
        "notification": {
            "id": str(ID),
            "type": "note",
            "data": {"user": {"id": 4}},
            "link": "https://crm.example.com/cases/6",
        },
    }


@pytest.mark.parametrize(
    ("preset", "level", "priority", "sound"),
    [
        ("quiet", "passive", "5", None),
        ("normal", "active", "10", "default"),
        ("urgent", "time-sensitive", "10", "default"),
    ],
)
def test_apns_preset_sets_interruption_level_priority_and_sound(
    apns: Apns, preset: str, level: str, priority: str, sound: str | None
) -> None:
    made = request(apns, push(phone(), shown(preset=preset)))
    aps = json.loads(made.body)["aps"]
    assert (aps["interruption-level"], aps.get("sound")) == (level, sound)
    assert dict(made.headers)["apns-priority"] == priority


def test_apns_payload_omits_empty_fields(apns: Apns) -> None:
    said = payload(apns, push(phone(), shown(thread="", category="", link="", mutable=True)))
    assert said["aps"].keys() == {"alert", "badge", "sound", "interruption-level", "mutable-content"}
    assert said["aps"]["mutable-content"] == 1
    assert said["notification"].keys() == {"id", "type", "data", "link"}
    assert said["notification"]["link"] is None


@pytest.mark.parametrize(("clear", "said"), [((OTHER,), [str(OTHER)]), ("all", "all")])
def test_apns_clear_is_a_silent_push_of_type_alert(apns: Apns, clear: Any, said: Any) -> None:
    made = request(apns, push(phone(), None, clear=clear))
    headers = dict(made.headers)
    assert json.loads(made.body) == {"aps": {"badge": 3, "content-available": 1}, "clear": said}
    assert (headers["apns-push-type"], headers["apns-priority"]) == ("alert", "5")


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6000)
DATA = st.dictionaries(st.text(max_size=5), st.text(max_size=3000) | st.integers(), max_size=3).map(json.dumps)


@given(body=TEXT, data=DATA, ids=st.integers(0, 300))
def test_apns_payload_fits_and_is_valid_json(body: str, data: str, ids: int) -> None:
    apns = LIMITED
    sent = push(phone(), shown(body=body, data=data), clear=(OTHER,) * ids)
    made = request(apns, sent)
    assert len(made.body) <= 4096
    said = json.loads(made.body.decode())
    whole, cut = body.replace(" <br> ", "\n"), said["aps"]["alert"]["body"]
    assert cut == whole or (
        cut.endswith("…") and whole.startswith(cut[:-1].rstrip()[:50]) and len(cut) <= len(whole) + 1
    )
    assert cut == whole or whole.startswith(cut[:-1])
    assert said["notification"]["data"] in (json.loads(data), {})


@pytest.fixture(scope="module", autouse=True)
def limited(tmp_path_factory: pytest.TempPathFactory) -> None:
    global LIMITED  # noqa: PLW0603 - hypothesis can't have it from a fixture for each example
    LIMITED = made(tmp_path_factory.mktemp("apns"))


LIMITED: Apns


def test_apns_body_is_truncated_minimally_and_data_kept(apns: Apns) -> None:
    made = request(apns, push(phone(), shown(body="ä" * 4000)))
    said = json.loads(made.body)
    assert 4095 <= len(made.body) <= 4096
    assert said["aps"]["alert"]["body"].strip("ä") == "…"
    assert said["notification"]["data"] == {"user": {"id": 4}}


def test_apns_drops_data_that_leaves_no_room_for_the_body(apns: Apns) -> None:
    said = payload(apns, push(phone(), shown(data=json.dumps({"text": "x" * 5000}))))
    assert said["aps"]["alert"]["body"] == "Ann wrote:\nhello"
    assert said["notification"]["data"] == {}


def test_apns_truncation_splits_no_character(apns: Apns) -> None:
    for more in range(8):
        body = payload(apns, push(phone(), shown(body="x" * more + "👩‍👩‍👧" * 1000)))["aps"]["alert"]["body"]
        assert body[-1] == "…"
        assert body[-2] != "\u200d"


def test_apns_clear_omits_the_oldest_ids_that_do_not_fit(apns: Apns) -> None:
    clear = tuple(UUID(int=number) for number in range(1000))  # the latest first
    made = request(apns, push(phone(), None, clear=clear))
    assert 4096 - 39 < len(made.body) <= 4096
    named = json.loads(made.body)["clear"]
    assert named == [str(id_) for id_ in clear[: len(named)]]


def test_apns_push_that_cannot_fit_is_refused(apns: Apns) -> None:
    assert isinstance(apns.request(push(phone(), shown(type="x" * 5000))), Refused)


def test_apns_provider_token_is_reused_for_40_minutes(apns: Apns, clock: Clock) -> None:
    def token() -> str:
        return dict(request(apns, push(phone(), shown())).headers)["authorization"]

    first = token()
    clock.now += TOKEN_LIFETIME - 1
    assert token() == first
    clock.now += 1
    second = token()
    assert second != first
    assert 20 * 60 <= made_at(second) - made_at(first) <= 60 * 60


def test_apns_provider_token_is_created_lazily_and_kept_20_minutes(clock: Clock) -> None:
    token = ProviderToken(KEY.private, "ABC", "DEF", clock, clock)
    first = token.current()
    clock.now += MIN_TOKEN_AGE - 1
    assert not token.renew()
    assert token.current() == first
    clock.now += 1
    assert token.renew()
    assert token.current() != first


def test_expired_apns_provider_token_is_renewed_once(apns: Apns, clock: Clock) -> None:
    expired = json.dumps({"reason": "ExpiredProviderToken"}).encode()
    sent = push(phone(), shown())
    apns.request(sent)
    clock.now += MIN_TOKEN_AGE
    late = datetime.fromtimestamp(clock.now - 1, UTC)
    for _ in range(3):
        assert isinstance(apns.outcome(sent, answer(403, expired, sent_at=late)), Later)
    fresh = datetime.fromtimestamp(clock.now + 1, UTC)
    assert isinstance(apns.outcome(sent, answer(403, expired, sent_at=fresh)), Stopped)


def issued_by(token: ProviderToken) -> int:
    return made_at(token.header())


def test_apns_provider_token_outlives_a_change_of_the_clock(clock: Clock) -> None:
    elapsed = Clock()
    token = ProviderToken(KEY.private, "ABC", "DEF", clock, elapsed)
    right = issued_by(token)
    token.accepted()
    clock.now += 3600
    assert issued_by(token) == right
    elapsed.now += TOKEN_LIFETIME
    assert issued_by(token) == right + TOKEN_LIFETIME  # the time since then is right, the clock is not
    clock.now -= 3600 - TOKEN_LIFETIME
    assert issued_by(token) == right + TOKEN_LIFETIME


def test_apns_provider_token_of_a_wrong_clock_is_renewed_once_it_is_right(clock: Clock) -> None:
    elapsed = Clock()
    token = ProviderToken(KEY.private, "ABC", "DEF", clock, elapsed)
    right = int(clock.now)
    clock.now += 3600
    wrong = issued_by(token)
    assert token.refused(datetime.fromtimestamp(clock.now + 1, UTC))
    for each in (clock, elapsed):
        each.now += 30
    assert issued_by(token) == wrong  # a new one would be as wrong
    clock.now -= 3600
    assert issued_by(token) == right + 30
    assert issued_by(token) == right + 30


def test_apns_provider_token_refused_after_a_sleep_of_the_machine_is_renewed(clock: Clock) -> None:
    elapsed = Clock()
    token = ProviderToken(KEY.private, "ABC", "DEF", clock, elapsed)
    before = issued_by(token)
    token.accepted()
    clock.now += 7200  # `elapsed` stands still while the machine sleeps
    assert issued_by(token) == before
    assert token.refused(datetime.fromtimestamp(clock.now + 1, UTC))
    assert issued_by(token) == before + 7200


def made_at(authorization: str) -> int:
    said = jwt.decode(authorization.removeprefix("bearer "), KEY.pem, ["ES256"], {"verify_iat": False})
    moment: int = said["iat"]
    return moment


def expected(way: str) -> tuple[type[Outcome], dict[str, Any]]:
    kinds: dict[str, tuple[type[Outcome], dict[str, Any]]] = {
        "delivered": (Delivered, {}),
        "gone": (Gone, {"at": datetime(2026, 1, 1, tzinfo=UTC)}),
        "later": (Later, {"lane": None, "after": None}),
        "lane later": (Later, {"lane": 30.0, "after": 30.0}),
        "refused": (Refused, {"doubtful": False}),
        "doubtful": (Refused, {"doubtful": True}),
        "stopped": (Stopped, {}),
    }
    return kinds[way]


ROWS: list[tuple[int, str, str]] = [(*row, way) for row, way in ANSWERS.items() if way != "another token"]
MORE = [
    (0, "", "later"),
    (200, "", "delivered"),
    (400, "BadDeviceToken", "doubtful"),
    (400, "DeviceTokenNotForTopic", "doubtful"),
    (400, "PayloadEmpty", "refused"),
    (400, "BadTopic", "refused"),
    (403, "NewReason", "stopped"),
    (404, "BadPath", "refused"),
    (405, "MethodNotAllowed", "refused"),
    (410, "", "gone"),
    (413, "PayloadTooLarge", "refused"),
    (429, "NewReason", "later"),
    (502, "", "later"),
    (504, "", "later"),
    (599, "NewReason", "later"),
    (302, "", "later"),
    (407, "", "later"),
    (451, "", "later"),
]


@pytest.mark.parametrize(("status", "reason", "way"), ROWS + MORE)
def test_every_apns_response_maps_to_its_outcome(apns: Apns, status: int, reason: str, way: str) -> None:
    body = json.dumps({"reason": reason, "timestamp": 1767225600000}).encode()
    outcome = apns.outcome(push(phone(), shown()), answer(status, body))
    kind, attributes = expected(way)
    assert type(outcome) is kind
    for name, value in attributes.items():
        assert getattr(outcome, name) == value
    if not isinstance(outcome, Delivered):
        assert (reason or "no answer" if status == 0 else reason) in outcome.reason


def test_apns_outcome_tests_cover_every_documented_status() -> None:
    assert {status for status, *_ in ROWS + MORE} >= STATUSES.keys() - {401}


ODD = [
    b"",
    b"[]",
    b"null",
    b"{",
    b'{"reason":',
    b'{"reason":7}',
    b'{"reason":{}}',
    b"\xff\xfe",
    b"[" * 60000,
    b"<html>",
]


@pytest.mark.parametrize("body", ODD)
@pytest.mark.parametrize("status", [200, 400, 403, 410, 429, 500])
def test_apns_response_without_reason_maps_by_status(apns: Apns, status: int, body: bytes) -> None:
    outcome = apns.outcome(push(phone(), shown()), answer(status, body))
    assert type(outcome) is {200: Delivered, 400: Refused, 403: Stopped, 410: Gone}.get(status, Later)


@pytest.mark.parametrize("timestamp", [None, "x", True, -1e300, 1e300, 10**40, [], float("nan")])
def test_invalid_apns_timestamp_is_ignored(apns: Apns, timestamp: Any) -> None:
    body = json.dumps({"reason": "Unregistered", "timestamp": timestamp}).encode()
    outcome = apns.outcome(push(phone(), shown()), answer(410, body))
    assert isinstance(outcome, Gone)
    assert outcome.at is None


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("17", 17, 17),
        ("0", 1, 1),
        ("999999999", 86400, 86400),
        (format_datetime(in_seconds(7200), usegmt=True), 60, 7200),
        (format_datetime(in_seconds(-120), usegmt=True), 1, 1),
        (format_datetime(in_seconds(9e6), usegmt=True), 86400, 86400),
    ],
    ids=["seconds", "none", "years", "soon", "past", "in months"],
)
def test_apns_retry_after_is_honored_up_to_a_day(apns: Apns, header: str, least: float, most: float) -> None:
    for status in (429, 503):
        outcome = apns.outcome(push(phone(), shown()), answer(status, retry_after=header))
        assert isinstance(outcome, Later)
        assert outcome.after is not None
        assert least <= outcome.after <= most


@pytest.mark.parametrize("header", ["", "soon", "-5", "1.5", "1e9", "٣", "Wed, 99 Foo 2031 00:00:00 GMT", "9" * 400])
def test_invalid_apns_retry_after_is_ignored(apns: Apns, header: str) -> None:
    assert apns.outcome(push(phone(), shown()), answer(503, retry_after=header)) == Later("503", None)


def test_invalid_apns_key_is_rejected_in_one_sentence(tmp_path: Path) -> None:
    for name, content in {
        "public.p8": KEY.pem,
        "rsa.p8": pair("RS256").private_pem,
        "curve.p8": pair("ES384").private_pem,
        "empty.p8": b"",
        "text.p8": b"-----BEGIN PRIVATE KEY-----\nMIG\n-----END PRIVATE KEY-----\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Refusal, match=rf"{name} contains no private key on the curve P-256: .*\.$"):
            made(tmp_path, key_file=tmp_path / name)
    with pytest.raises(Refusal, match=r"cannot be read: No such file or directory\.$"):
        made(tmp_path, key_file=tmp_path / "none.p8")
    with pytest.raises(Refusal, match=r"cannot be read: Is a directory\.$"):
        made(tmp_path, key_file=tmp_path)


@pytest.mark.parametrize("name", ["key_id", "team_id", "topic"])
@pytest.mark.parametrize("value", ["", "a\nb", "ä"])
def test_invalid_apns_setting_is_rejected(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(Refusal, match="for APNs is missing"):
        made(tmp_path, **{name: value})


async def test_apns_push_arrives_over_http_2_unchanged(tmp_path: Path) -> None:
    async with push_service(tmp_path) as service:
        apns = made(tmp_path, url=service.url)
        transport = Transport(apns.window, lone_first=True, ca_file=files_in(tmp_path)[0])
        sent = push(phone(), shown())
        assert await apns.ready() is None
        outcome = apns.outcome(sent, await transport.submit(request(apns, sent)))
        await transport.close()
    assert outcome == Delivered()
    [asked] = service.asked
    assert asked.path == f"/3/device/{'ab' * 32}"
    assert asked.body == request(apns, sent).body
    assert asked.headers["apns-id"] == str(ID)
