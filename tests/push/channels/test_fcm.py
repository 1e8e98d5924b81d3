"""FCM: requests, access tokens, and the meaning of responses."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.clock import Clock
from tests.support.fcm import KEY, account, made
from tests.support.issuer import pair
from tests.support.push_services import (
    EXPIRES,
    ID,
    OTHER,
    Asked,
    Behaviour,
    Connection,
    PushService,
    answer,
    answering,
    files_in,
    phone,
    push,
    push_service,
    shown,
)
from tests.support.waiting import until
from tocsin.errors import Refusal
from tocsin.http_client.messages import Request
from tocsin.http_client.tls import Trust
from tocsin.http_client.transport import Transport
from tocsin.push.channels import Delivered, Gone, Later, Push, Refused, Stopped, google_auth
from tocsin.push.channels.fcm import ANSWERS, STATUSES, Fcm
from tocsin.push.channels.google_auth import EARLY, MIN_RETRY_DELAY, USABLE

TOKEN = "a:b-" + "x" * 140
INSTALLATION = "c" + "A-_9" * 5 + "z"
DETAIL = "type.googleapis.com/google.firebase.fcm.v1.FcmError"


@pytest.fixture
def fcm(tmp_path: Path) -> Fcm:
    return made(tmp_path, clock=lambda: EXPIRES.timestamp() - 3600)


def android(token: str = TOKEN) -> Any:
    return phone("Android", token)


def request(fcm: Fcm, sent: Push) -> Request:
    made = fcm.request(sent)
    assert isinstance(made, Request)
    return made


def message(fcm: Fcm, sent: Push) -> Any:
    return json.loads(request(fcm, sent).body)["message"]


def test_fcm_message_matches_the_contract(fcm: Fcm) -> None:
    sent = push(android(), shown())
    assert request(fcm, sent).url == "https://fcm.googleapis.com/v1/projects/crm-1/messages:send"
    assert message(fcm, sent) == {
        "token": TOKEN,
        "notification": {"title": "New note", "body": "Ann wrote:\nhello"},
        "data": {
            "id": str(ID),
            "type": "note",
            "data": '{"user":{"id":4}}',
            "link": "https://crm.example.com/cases/6",
            "badge": "3",
        },
        "android": {
            "priority": "high",
            "ttl": "3600s",
            "notification": {"tag": str(ID), "channel_id": "notes"},
        },
    }


@pytest.mark.parametrize(
    ("token", "name"),
    [
        (INSTALLATION, "fid"),
        ("d" + INSTALLATION[1:], "fid"),
        ("a" + INSTALLATION[1:], "token"),
        (INSTALLATION + "x", "token"),
        (INSTALLATION[:-1], "token"),
        (INSTALLATION[:-1] + ":", "token"),
    ],
)
def test_fcm_installation_id_is_distinguished_from_a_token(fcm: Fcm, token: str, name: str) -> None:
    said = message(fcm, push(android(token), shown()))
    assert said[name] == token
    assert len(said.keys() & {"fid", "token"}) == 1


@pytest.mark.parametrize(("preset", "priority"), [("quiet", "normal"), ("normal", "high"), ("urgent", "high")])
def test_fcm_preset_sets_the_priority(fcm: Fcm, preset: str, priority: str) -> None:
    assert message(fcm, push(android(), shown(preset=preset)))["android"]["priority"] == priority


@pytest.mark.parametrize(("clear", "said"), [((OTHER,), f'["{OTHER}"]'), ("all", '"all"')])
def test_fcm_clear_is_a_data_message(fcm: Fcm, clear: Any, said: str) -> None:
    assert message(fcm, push(android(), None, clear=clear)) == {
        "token": TOKEN,
        "data": {"clear": said, "badge": "3"},
        "android": {"priority": "normal", "ttl": "3600s"},
    }


def test_fcm_sends_iphones_the_apns_payload(fcm: Fcm) -> None:
    said = message(fcm, push(phone("iOS", TOKEN), shown()))
    assert said["apns"]["payload"]["aps"] == {
        "alert": {"title": "New note", "body": "Ann wrote:\nhello"},
        "badge": 3,
        "sound": "default",
        "thread-id": "case-6",
        "category": "note",
        "interruption-level": "active",
    }
    assert said["apns"]["headers"]["apns-collapse-id"] == str(ID)
    assert "android" not in said
    silent = message(fcm, push(phone("iOS", TOKEN), None, clear=(OTHER,)))
    assert silent["apns"]["payload"] == {"aps": {"badge": 3, "content-available": 1}, "clear": [str(OTHER)]}
    assert silent["apns"]["headers"]["apns-priority"] == "5"


def test_fcm_sends_iphones_the_notification_beside_aps(fcm: Fcm) -> None:
    said = message(fcm, push(phone("iOS", TOKEN), shown()))
    assert said["apns"]["payload"]["notification"] == {
        "id": str(ID),
        "type": "note",
        "data": {"user": {"id": 4}},
        "link": "https://crm.example.com/cases/6",
    }
    assert said["data"]["data"] == '{"user":{"id":4}}'
    long = message(fcm, push(phone("iOS", TOKEN), shown(data=json.dumps({"text": "x" * 2500}))))
    assert (long["apns"]["payload"]["notification"]["data"], long["data"]["data"]) == ({}, "{}")


@pytest.fixture(scope="module", autouse=True)
def limited(tmp_path_factory: pytest.TempPathFactory) -> None:
    global LIMITED  # noqa: PLW0603 - hypothesis can't have it from a fixture for each example
    LIMITED = made(tmp_path_factory.mktemp("fcm"))


LIMITED: Fcm


@given(
    body=st.text(max_size=6000),
    data=st.dictionaries(st.text(max_size=5), st.text(max_size=3000), max_size=3),
    type_=st.sampled_from(["iOS", "Android"]),
)
def test_fcm_message_fits_and_is_valid_json(body: str, data: dict[str, str], type_: str) -> None:
    made = request(LIMITED, push(phone(type_, TOKEN), shown(body=body, data=json.dumps(data))))
    assert len(made.body) <= 4096 + len(TOKEN)
    said, whole = json.loads(made.body)["message"], body.replace(" <br> ", "\n")
    cut = said["notification"]["body"]
    assert cut == whole or (cut.endswith("…") and whole.startswith(cut[:-1]))
    assert json.loads(said["data"]["data"]) in (data, {})
    if type_ == "iOS":
        assert said["apns"]["payload"]["aps"]["alert"]["body"] == cut


def error(status: int, name: str, *details: Any) -> bytes:
    return json.dumps({"error": {"code": status, "message": "x", "status": name, "details": details}}).encode()


def error_body(status: int, code: str) -> bytes:
    """Return the response body of FCM for a row of the table."""
    if code == "fieldViolations":
        violations = {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [{"field": "x"}]}
        return error(status, "INVALID_ARGUMENT", violations)
    if code in {"NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "PERMISSION_DENIED"}:
        return error(status, code)
    return error(status, "SOME_STATUS", {"@type": DETAIL, "errorCode": code})


KINDS: dict[str, Any] = {
    "delivered": (Delivered, {}),
    "gone": (Gone, {"at": None}),
    "later": (Later, {"after": None, "lane": None}),
    "lane later": (Later, {"after": None, "lane": 60.0}),
    "refused": (Refused, {"doubtful": False}),
    "doubtful": (Refused, {"doubtful": True}),
    "stopped": (Stopped, {}),
    "another token": (Later, {"after": 0.0, "lane": None}),
}
ROWS = [
    *((status, error_body(status, code), way) for (status, code), way in ANSWERS.items()),
    *((status, b"", way) for status, way in STATUSES.items()),
    (400, error(400, "INVALID_ARGUMENT"), "refused"),
    (404, b"<html>Not found</html>", "stopped"),
    (404, error(404, "NOT_FOUND", {"@type": DETAIL, "errorCode": "UNREGISTERED"}), "gone"),
    (413, b"", "refused"),
    (302, b"", "later"),
    (407, b"", "later"),
    (451, b"", "later"),
    (405, b"", "refused"),
    (502, b"<html>", "later"),
    (504, b"", "later"),
]


@pytest.mark.parametrize(("status", "body", "way"), ROWS)
def test_every_fcm_response_maps_to_its_outcome(fcm: Fcm, status: int, body: bytes, way: str) -> None:
    outcome = fcm.outcome(push(android(), shown()), answer(status, body))
    kind, attributes = KINDS[way]
    assert type(outcome) is kind
    for name, value in attributes.items():
        assert getattr(outcome, name) == value


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        b'{"error":7}',
        b'{"error":{"details":{}}}',
        b'{"error":{"details":[7,null,{"errorCode":[]}]}}',
        b'{"error":{"status":{}}}',
        b"\xff",
        b"[" * 60000,
    ],
)
@pytest.mark.parametrize("status", [200, 400, 403, 404, 429, 503])
def test_fcm_response_without_code_maps_by_status(fcm: Fcm, status: int, body: bytes) -> None:
    outcome = fcm.outcome(push(android(), shown()), answer(status, body))
    assert type(outcome) is {200: Delivered, 400: Refused, 403: Stopped, 404: Stopped}.get(status, Later)


@pytest.mark.parametrize(
    ("status", "header", "after", "lane"),
    [(429, "5", 5, 60), (429, "90", 90, 90), (503, "3", 3, None), (503, "30", 30, None), (503, "0", 1, None)],
)
def test_fcm_quota_error_pauses_the_lane_for_at_least_a_minute(
    fcm: Fcm, status: int, header: str, after: float, lane: float | None
) -> None:
    assert fcm.outcome(push(android(), shown()), answer(status, retry_after=header)) == Later(str(status), after, lane)


BROKEN = {
    "not JSON": b"hello",
    "no `private_key`": account(private_key=None),
    "no `project_id`": account(project_id=7),
    "no `token_uri`": account(token_uri=""),
    "a `token_uri` that is not a url": account(token_uri="file:///etc/passwd"),
    "a `private_key` that is not an RSA key": account(private_key=pair("ES256").private_pem.decode()),
    "a `private_key` that is not an RSA key in PEM": account(private_key="MIG"),
}


@pytest.mark.parametrize("words", BROKEN)
def test_invalid_fcm_credentials_are_rejected_in_one_sentence(tmp_path: Path, words: str) -> None:
    with pytest.raises(Refusal, match=rf"account\.json .*{words}.*\.$"):
        made(tmp_path, BROKEN[words])


def test_missing_fcm_credentials_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"cannot be read: No such file or directory\.$"):
        Fcm(credentials_file=tmp_path / "none.json")


def granting(life: int = 3600) -> Behaviour:
    count = 0

    def behave(connection: Connection, stream: int, _asked: Asked) -> None:
        nonlocal count
        count += 1
        body = json.dumps({"access_token": f"token-{count}", "expires_in": life, "token_type": "Bearer"})
        connection.say(stream, 200, body.encode())

    return behave


def at(service: PushService, folder: Path, **more: Any) -> Fcm:
    return made(folder, account(token_uri=f"{service.url}/token"), trust=Trust(files_in(folder)[0]), **more)


def authorization(fcm: Fcm) -> str:
    return dict(request(fcm, push(android(), shown())).headers)["authorization"]


async def test_fcm_access_token_is_shared_and_renewed_before_expiry(tmp_path: Path) -> None:
    clock = Clock()
    async with push_service(tmp_path, granting()) as service:
        fcm = at(service, tmp_path, clock=clock, elapsed=clock)
        assert await asyncio.gather(*(fcm.ready() for _ in range(20))) == [None] * 20
        assert authorization(fcm) == "Bearer token-1"
        clock.now += 3600 - EARLY - 1
        await fcm.ready()
        assert len(service.asked) == 1
        clock.now += 2
        assert await fcm.ready() is None
        await until(lambda: authorization(fcm) == "Bearer token-2")
    form = parse_qs(service.asked[0].body.decode())
    assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    said = jwt.decode(form["assertion"][0], KEY.pem, ["RS256"], audience=f"{service.url}/token")
    assert said["iss"] == "push@crm-1.example"
    assert said["scope"] == "https://www.googleapis.com/auth/firebase.messaging"
    assert 0 < said["exp"] - said["iat"] <= 3600


async def test_an_fcm_access_token_is_used_while_its_renewal_fails(tmp_path: Path) -> None:
    clock = Clock()
    async with push_service(tmp_path, granting()) as service:
        fcm = at(service, tmp_path, clock=clock, elapsed=clock)
        assert await fcm.ready() is None
        service.behaviour = answering(503)
        clock.now += 3600 - EARLY
        assert await fcm.ready() is None
        await until(lambda: len(service.asked) == 2)
        assert authorization(fcm) == "Bearer token-1"
        clock.now += EARLY - USABLE
        assert isinstance(await fcm.ready(), Later)


async def test_an_fcm_access_token_outlives_a_change_of_the_clock(tmp_path: Path) -> None:
    clock, elapsed = Clock(), Clock()
    async with push_service(tmp_path, granting()) as service:
        fcm = at(service, tmp_path, clock=clock, elapsed=elapsed)
        for step in (0, 3600, -7200):
            clock.now += step
            assert await fcm.ready() is None
        assert len(service.asked) == 1


async def test_rejected_fcm_access_token_is_renewed_once(tmp_path: Path) -> None:
    sent, no = push(android(), shown()), error(401, "UNAUTHENTICATED")
    async with push_service(tmp_path, granting()) as service:
        fcm = at(service, tmp_path)
        await fcm.ready()
        early = datetime.now(UTC)
        for _ in range(3):
            assert isinstance(fcm.outcome(sent, answer(401, no)), Later)
        await fcm.ready()
        assert authorization(fcm) == "Bearer token-2"
        assert isinstance(fcm.outcome(sent, answer(401, no, sent_at=early)), Later)
        assert isinstance(fcm.outcome(sent, answer(401, no)), Stopped)
        fcm.outcome(sent, answer(200))
        assert isinstance(fcm.outcome(sent, answer(401, no)), Later)
        assert len(service.asked) == 2


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (answering(400, b'{"error":"invalid_grant"}'), Stopped),
        (answering(401), Stopped),
        (answering(503), Later),
        (answering(404), Later),
        (answering(200, b""), Later),
        (answering(200, b"{}"), Later),
        (answering(200, b'{"access_token":"a\\nb"}'), Later),
        (answering(200, b"x" * 1001), Later),
    ],
)
async def test_failed_fcm_token_request_is_reported_and_not_repeated_immediately(
    tmp_path: Path, behaviour: Behaviour, kind: type[Stopped | Later], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(google_auth, "MAX_BYTES", 1000)
    clock = Clock()
    async with push_service(tmp_path, behaviour) as service:
        fcm = at(service, tmp_path, clock=clock, elapsed=clock)
        for _ in range(3):
            assert type(await fcm.ready()) is kind
        assert len(service.asked) == 1
        service.behaviour = granting()
        clock.now += MIN_RETRY_DELAY
        assert await fcm.ready() is None


async def _waited(fcm: Fcm, service: PushService, clock: Clock) -> float:
    """Let another attempt fail, and return the seconds until the next token request."""
    asked = len(service.asked)
    told = await fcm.ready()
    assert isinstance(told, Later)
    assert told.lane
    assert len(service.asked) == asked + 1
    for share, left in ((0.5, 0.5), (0.49, 0.01)):
        clock.now += told.lane * share
        again = await fcm.ready()
        assert isinstance(again, Later)
        assert again.reason == told.reason
        assert again.lane == pytest.approx(told.lane * left, rel=0.1)
    assert len(service.asked) == asked + 1
    clock.now += told.lane * 0.02
    return told.lane


async def test_fcm_access_token_requests_back_off(tmp_path: Path) -> None:
    clock = Clock()
    async with push_service(tmp_path, answering(503)) as service:
        fcm = at(service, tmp_path, clock=clock, elapsed=clock)
        for longest in (10, 20, 40, 80, 160, 300, 300):
            assert 0.8 * longest <= await _waited(fcm, service, clock) <= longest
        service.behaviour = granting()
        assert await fcm.ready() is None
        clock.now += 3600
        service.behaviour = answering(503)
        assert await _waited(fcm, service, clock) <= MIN_RETRY_DELAY


@pytest.mark.parametrize(
    ("asked", "least", "most"), [("120", 120, 120), ("1", 8, 10), ("999999", 3600, 3600), ("x", 8, 10)]
)
async def test_fcm_access_token_request_honors_retry_after_within_limits(
    tmp_path: Path, asked: str, least: float, most: float
) -> None:
    clock = Clock()
    async with push_service(tmp_path, answering(429, retry_after=asked)) as service:
        assert least <= await _waited(at(service, tmp_path, clock=clock, elapsed=clock), service, clock) <= most


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            b'{"error":"invalid_grant","error_description":"Invalid JWT: not in a reasonable timeframe."}',
            "invalid_grant: Invalid JWT: not in a reasonable timeframe.",
        ),
        (b'{"error":"invalid_grant"}', "invalid_grant"),
        (b'{"error":{"code":400},"error_description":["x"]}', "The answer has the status 400."),
        (b"<html>", "The answer has the status 400."),
        (b'{"error":"a\\n\\u001b[0m' + b"x" * 900 + b'"}', f"a  [0m{'x' * 194}"),
    ],
)
async def test_fcm_access_token_error_is_quoted(tmp_path: Path, body: bytes, said: str) -> None:
    async with push_service(tmp_path, answering(400, body)) as service:
        assert await at(service, tmp_path).ready() == Stopped(f"no access token for FCM: {said}")


async def test_fcm_message_arrives_over_http_2_unchanged(tmp_path: Path) -> None:
    async with push_service(tmp_path, granting()) as service:
        fcm = at(service, tmp_path, url=service.url)
        assert await fcm.ready() is None
        service.behaviour = answering(200, b'{"name":"projects/crm-1/messages/1"}')
        transport = Transport(fcm.window, ca_file=files_in(tmp_path)[0])
        sent = push(android(), shown())
        outcome = fcm.outcome(sent, await transport.submit(request(fcm, sent)))
        await transport.close()
    assert outcome == Delivered()
    asked = service.asked[-1]
    assert asked.path == "/v1/projects/crm-1/messages:send"
    assert asked.headers["authorization"] == "Bearer token-1"
