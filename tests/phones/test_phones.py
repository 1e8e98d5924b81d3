"""The stand-ins of push services: strict like the real ones, and with scripted errors."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import ssl
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import http_ece  # type: ignore[import-untyped]
import httpx
import jwt
import pycurl
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event, RemoteSettingsChanged, ResponseReceived, StreamReset
from h2.settings import SettingCodes

from tests.support.waiting import LONGEST_WAIT, bounded
from tocsin_phones import Phones, Ports

TOKEN = "ab" * 32
FID = "c" + "x" * 21
ID = "0192e4a0-0000-7000-8000-000000000001"
OTHER = "0192e4a0-0000-7000-8000-000000000002"


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Phones]:
    async with Phones() as phones:
        yield phones


@pytest.fixture
def phones(running: Phones) -> Phones:
    running.forget()
    return running


class Sender:
    """A client of the stand-ins with the credentials that they wrote."""

    def __init__(self, phones: Phones, folder: Path) -> None:
        self.phones = phones
        self.env = phones.credentials(folder)
        self.ca = self.env["TOCSIN_PUSH_CA_FILE"]
        self.p8 = Path(self.env["TOCSIN_APNS_KEY_FILE"]).read_text("utf-8")
        self.account = json.loads(Path(self.env["TOCSIN_FCM_CREDENTIALS_FILE"]).read_text("utf-8"))
        self.http = self.client()
        self.vapid_key = ec.generate_private_key(ec.SECP256R1())
        self.access = ""
        self.provider = f"bearer {self.provider_token()}"

    def client(self) -> httpx.AsyncClient:
        trust = ssl.create_default_context(cafile=self.ca)
        return httpx.AsyncClient(http1=False, http2=True, verify=trust, timeout=LONGEST_WAIT)

    def provider_token(self, age: float = 0, **changed: Any) -> str:
        claims = {"iss": changed.get("iss", self.env["TOCSIN_APNS_TEAM_ID"]), "iat": int(time.time() - age)}
        kid = changed.get("kid", self.env["TOCSIN_APNS_KEY_ID"])
        return jwt.encode(claims, changed.get("key", self.p8), "ES256", headers={"kid": kid})

    def apns_headers(self, **changed: str | None) -> dict[str, str]:
        headers = {
            "authorization": self.provider,
            "apns-topic": self.env["TOCSIN_APNS_TOPIC"],
            "apns-push-type": "alert",
            "apns-priority": "10",
            **{name.replace("_", "-"): value for name, value in changed.items()},
        }
        return {name: value for name, value in headers.items() if value is not None}

    async def apns(self, payload: Any = None, token: str = TOKEN, **changed: str | None) -> httpx.Response:
        body = payload if isinstance(payload, bytes) else json.dumps(payload or alert("Hello")).encode()
        url = f"{self.env['TOCSIN_APNS_URL']}/3/device/{token}"
        return await self.http.post(url, content=body, headers=self.apns_headers(**changed))

    def assertion(self, **changed: Any) -> str:
        now = int(time.time())
        claims = {
            "iss": self.account["client_email"],
            "aud": self.account["token_uri"],
            "iat": now,
            "exp": now + 3600,
            "scope": "https://www.googleapis.com/auth/firebase.messaging",
            **changed,
        }
        key = claims.pop("key", self.account["private_key"])
        return jwt.encode(claims, key, "RS256", headers={"kid": claims.pop("kid", self.account["private_key_id"])})

    async def ask_for_access(self, assertion: str, grant: str = "jwt-bearer") -> httpx.Response:
        form = {"grant_type": f"urn:ietf:params:oauth:grant-type:{grant}", "assertion": assertion}
        return await self.http.post(self.account["token_uri"], data=form)

    async def fcm(self, message: Any, **more: Any) -> httpx.Response:
        if not self.access:
            self.access = (await self.ask_for_access(self.assertion())).json()["access_token"]
        url = f"{self.env['TOCSIN_FCM_URL']}/v1/projects/{self.account['project_id']}/messages:send"
        headers = {"authorization": f"Bearer {self.access}"}
        return await self.http.post(url, json={"message": message, **more}, headers=headers)

    @property
    def vapid_public(self) -> str:
        return text(self.vapid_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))

    def vapid(self, **changed: Any) -> str:
        claims = {
            "aud": self.env["TOCSIN_WEB_PUSH_ORIGINS"],
            "exp": int(time.time()) + 3600,
            "sub": "mailto:crm@example.com",
            **changed,
        }
        key = claims.pop("key", self.vapid_key)
        return f"vapid t={jwt.encode(claims, key, 'ES256')}, k={self.vapid_public}"

    async def web(self, subscription: Any, payload: Any, **changed: str | None) -> httpx.Response:
        body = payload if isinstance(payload, bytes) else encrypted(subscription, json.dumps(payload).encode())
        headers = {
            "authorization": self.vapid(),
            "ttl": "60",
            "content-encoding": "aes128gcm",
            **{name.replace("_", "-"): value for name, value in changed.items()},
        }
        given = {name: value for name, value in headers.items() if value is not None}
        return await self.http.post(subscription["endpoint"], content=body, headers=given)


@pytest.fixture
async def sender(phones: Phones, tmp_path: Path) -> AsyncIterator[Sender]:
    sender = Sender(phones, tmp_path / "credentials")
    async with sender.http:
        yield sender


@pytest.fixture
async def control(phones: Phones) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=phones.control_url, timeout=60) as client:
        yield client


def text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def alert(title: str, id_: str = ID, **aps: Any) -> dict[str, Any]:
    return {"aps": {"alert": {"title": title, "body": "Body"}, **aps}, "notification": {"id": id_}}


def encrypted(subscription: Any, plain: bytes) -> bytes:
    keys = {name: base64.urlsafe_b64decode(value + "==") for name, value in subscription["keys"].items()}
    key = ec.generate_private_key(ec.SECP256R1())
    made: bytes = http_ece.encrypt(plain, private_key=key, dh=keys["p256dh"], auth_secret=keys["auth"])
    return made


def titles(phones: Phones, token: str) -> list[str]:
    return [banner["title"] for banner in phones.screen(token)["banners"]]


# APNs


async def test_apns_push_is_recorded_and_shown(sender: Sender, phones: Phones) -> None:
    answer = await sender.apns(alert("Hello", badge=3), apns_id=OTHER, apns_collapse_id=ID)
    assert (answer.status_code, answer.content, answer.http_version) == (200, b"", "HTTP/2")
    assert answer.headers["apns-id"] == OTHER
    [push] = phones.pushes("apns", TOKEN)
    assert (push["id"], push["status"], push["payload"]["aps"]["badge"]) == (OTHER, 200, 3)
    assert push["headers"]["apns-collapse-id"] == ID
    assert "authorization" not in push["headers"]
    assert push["visible"] == phones.screen(TOKEN)["banners"][0]
    assert phones.screen(TOKEN)["badge"] == 3


async def test_apns_id_is_generated_if_missing(sender: Sender, phones: Phones) -> None:
    answer = await sender.apns()
    assert str(uuid.UUID(answer.headers["apns-id"])) == phones.pushes()[0]["id"]


@pytest.mark.parametrize(
    ("changed", "status", "reason"),
    [
        ({"authorization": None}, 403, "MissingProviderToken"),
        ({"authorization": "bearer nonsense"}, 403, "InvalidProviderToken"),
        ({"apns_topic": None}, 400, "MissingTopic"),
        ({"apns_topic": "com.example.other"}, 400, "TopicDisallowed"),
        ({"apns_topic": "com.example.crm", "apns_push_type": "voip"}, 400, "TopicDisallowed"),
        ({"apns_push_type": None}, 400, "InvalidPushType"),
        ({"apns_push_type": "loud"}, 400, "InvalidPushType"),
        ({"apns_priority": "7"}, 400, "BadPriority"),
        ({"apns_push_type": "background"}, 400, "BadPriority"),
        ({"apns_push_type": "background", "apns_priority": None}, 400, "BadPriority"),
        ({"apns_expiration": "tomorrow"}, 400, "BadExpirationDate"),
        ({"apns_collapse_id": "x" * 65}, 400, "BadCollapseId"),
        ({"apns_id": ID.upper()}, 400, "BadMessageId"),
        ({"token": ""}, 400, "MissingDeviceToken"),
        ({"token": "xyz"}, 400, "BadDeviceToken"),
        ({"token": "<abcd abcd>"}, 400, "BadDeviceToken"),
        ({"payload": b""}, 400, "PayloadEmpty"),
        ({"payload": b"{}"}, 400, "PayloadEmpty"),
        ({"payload": b'{"aps": {}, "more": "' + b"x" * 4096 + b'"}'}, 413, "PayloadTooLarge"),
    ],
)
async def test_apns_rejects_what_apple_rejects(
    sender: Sender, phones: Phones, changed: dict[str, Any], status: int, reason: str
) -> None:
    answer = await sender.apns(**changed)
    assert (answer.status_code, answer.json()) == (status, {"reason": reason})
    [push] = phones.pushes()
    assert (push["status"], push["reason"], push["visible"]) == (status, reason, None)


async def test_apns_accepts_largest_payload_and_background_push(sender: Sender) -> None:
    head, tail = b'{"aps": {}, "more": "', b'"}'
    assert (await sender.apns(head + b"x" * (4096 - len(head + tail)) + tail)).status_code == 200
    quiet = {"apns_push_type": "background", "apns_priority": "5", "apns_collapse_id": "x" * 64}
    assert (await sender.apns({"aps": {"content-available": 1}}, **quiet)).status_code == 200


async def test_apns_rejects_other_paths_and_methods(sender: Sender) -> None:
    url = sender.env["TOCSIN_APNS_URL"]
    answers = [await sender.http.get(f"{url}/3/device/{TOKEN}"), await sender.http.post(f"{url}/4/device/{TOKEN}")]
    assert [(one.status_code, one.json()["reason"]) for one in answers] == [
        (405, "MethodNotAllowed"),
        (404, "BadPath"),
    ]


async def test_apns_rejects_duplicate_headers(sender: Sender) -> None:
    headers = [*sender.apns_headers().items(), ("apns-topic", "com.example.crm")]
    answer = await sender.http.post(f"{sender.env['TOCSIN_APNS_URL']}/3/device/{TOKEN}", content=b"{}", headers=headers)
    assert answer.json() == {"reason": "DuplicateHeaders"}


async def test_apns_provider_token_needs_key_team_and_recent_iat(sender: Sender) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    wrong: list[dict[str, Any]] = [{"kid": "OTHERKEY00"}, {"iss": "OTHERTEAM0"}, {"key": stranger}, {"age": -3600}]
    for changed in wrong:
        answer = await sender.apns(authorization=f"bearer {sender.provider_token(**changed)}")
        assert (answer.status_code, answer.json()["reason"]) == (403, "InvalidProviderToken"), changed
    answer = await sender.apns(authorization=f"bearer {sender.provider_token(age=3605)}")
    assert (answer.status_code, answer.json()["reason"]) == (403, "ExpiredProviderToken")


async def test_apns_rejects_too_frequent_provider_token_updates(sender: Sender) -> None:
    answers = [
        await sender.apns(authorization=f"bearer {sender.provider_token(age=age)}") for age in (2400, 2399, 1150, 1149)
    ]
    assert [answer.status_code for answer in answers] == [200, 429, 200, 429]
    assert answers[1].json()["reason"] == "TooManyProviderTokenUpdates"
    async with sender.client() as sender.http:
        assert (await sender.apns(authorization=f"bearer {sender.provider_token(age=1149)}")).status_code == 200


async def test_apns_sandbox_is_a_separate_service(sender: Sender, phones: Phones) -> None:
    phones.answer("apns", status=400, reason="BadDeviceToken")
    url = f"{sender.env['TOCSIN_APNS_SANDBOX_URL']}/3/device/{TOKEN}"
    answer = await sender.http.post(url, json=alert("Hello"), headers=sender.apns_headers())
    assert answer.status_code == 200
    assert (await sender.apns()).status_code == 400
    assert [push["provider"] for push in phones.pushes()] == ["apns-sandbox", "apns"]


# One stream until a push succeeded


class Bus:
    """An HTTP/2 client that sends valid and invalid frames on request."""

    def __init__(self, sender: Sender, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._sender, self._reader, self._writer = sender, reader, writer
        self.http = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.events: list[Event] = []
        self.http.initiate_connection()

    def begin(self, *, end: bool, token: str = TOKEN) -> int:
        stream = self.http.get_next_available_stream_id()
        headers = {":method": "POST", ":path": f"/3/device/{token}", ":scheme": "https", ":authority": "localhost"}
        self.http.send_headers(stream, list({**headers, **self._sender.apns_headers()}.items()))
        if end:
            self.end(stream)
        return stream

    def end(self, stream: int) -> None:
        self.http.send_data(stream, json.dumps(alert("Hello")).encode(), end_stream=True)

    async def until(self, kind: type[Event], count: int = 1) -> list[Any]:
        async with bounded():
            while len(found := [event for event in self.events if isinstance(event, kind)]) < count:
                self._writer.write(self.http.data_to_send())
                data = await self._reader.read(65536)
                assert data, self.events
                self.events += self.http.receive_data(data)
        self._writer.write(self.http.data_to_send())
        return found


@contextlib.asynccontextmanager
async def bus(sender: Sender) -> AsyncIterator[Bus]:
    trust = ssl.create_default_context(cafile=sender.ca)
    trust.set_alpn_protocols(["h2"])
    host, port = sender.env["TOCSIN_APNS_URL"].removeprefix("https://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=trust)
    try:
        yield Bus(sender, reader, writer)
    finally:
        writer.transport.abort()


async def test_apns_connection_allows_one_stream_until_first_success(sender: Sender) -> None:
    async with bus(sender) as client:
        first = (await client.until(RemoteSettingsChanged))[0].changed_settings
        assert first[SettingCodes.MAX_CONCURRENT_STREAMS].new_value == 1
        client.begin(end=True, token="xyz")
        await client.until(ResponseReceived)
        assert client.http.remote_settings.max_concurrent_streams == 1
        client.begin(end=True)
        await client.until(ResponseReceived, 2)
        await client.until(RemoteSettingsChanged, 2)
        assert client.http.remote_settings.max_concurrent_streams == 1000
        streams = [client.begin(end=False) for _ in range(200)]
        for stream in streams:
            client.end(stream)
        answers = await client.until(ResponseReceived, 202)
        assert [dict(answer.headers)[":status"] for answer in answers] == ["400", *["200"] * 201]


async def test_early_excess_streams_get_refused_stream(sender: Sender, phones: Phones) -> None:
    async with bus(sender) as client:
        first, *others = [client.begin(end=False) for _ in range(3)]
        refused = await client.until(StreamReset, 2)
        assert [(one.stream_id, one.error_code) for one in refused] == [
            (other, ErrorCodes.REFUSED_STREAM) for other in others
        ]
        client.end(first)
        assert (await client.until(ResponseReceived))[0].stream_id == first
    assert len(phones.pushes()) == 1


async def test_exceeding_acknowledged_stream_limit_closes_connection(sender: Sender, phones: Phones) -> None:
    async with bus(sender) as client:
        await client.until(RemoteSettingsChanged)
        client.begin(end=False)
        client.http.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1000
        client.http.remote_settings.acknowledge()
        client.begin(end=False)
        assert (await client.until(ConnectionTerminated))[0].error_code == ErrorCodes.PROTOCOL_ERROR
    assert phones.pushes() == []


async def test_goaway_names_last_stream_and_answers_earlier_ones(sender: Sender, phones: Phones) -> None:
    phones.answer("apns", after_ms=100, times=1, token="aa" * 32)
    phones.answer("apns", answer="goaway", status=503, reason="Shutdown", times=1, token="bb" * 32)
    async with bus(sender) as client:
        client.begin(end=True)
        await client.until(RemoteSettingsChanged, 2)
        slow, _, _ = (client.begin(end=True, token=token * 32) for token in ("aa", "bb", "cc"))
        gone = (await client.until(ConnectionTerminated))[0]
        assert (gone.last_stream_id, gone.error_code) == (slow, ErrorCodes.NO_ERROR)
        assert json.loads(gone.additional_data) == {"reason": "Shutdown"}
    assert [(push["token"][:2], push["status"]) for push in phones.pushes()] == [
        ("ab", 200),
        ("aa", 200),
        ("bb", None),
    ]


# Scripted responses


async def test_scripted_response_applies_to_one_token_and_n_times(sender: Sender, phones: Phones) -> None:
    phones.answer("apns", token=TOKEN, status=429, reason="TooManyRequests", times=2, headers={"Retry-After": "7"})
    answers = [await sender.apns(token="cd" * 32)] + [await sender.apns() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 429, 200]
    assert (answers[1].json(), answers[1].headers["retry-after"]) == ({"reason": "TooManyRequests"}, "7")
    assert [push["reason"] for push in phones.pushes()] == ["", "TooManyRequests", "TooManyRequests", ""]
    assert phones.screen("ef" * 32) == {"badge": None, "banners": []}


async def test_scripted_response_can_apply_to_some_pushes(sender: Sender, phones: Phones) -> None:
    phones.answer("apns", status=500, every=3, times=1)
    assert [(await sender.apns()).status_code for _ in range(7)] == [200, 200, 500, 200, 200, 200, 200]


async def test_unregistered_has_timestamp_in_milliseconds(sender: Sender, phones: Phones) -> None:
    phones.answer("apns", status=410, times=1)
    phones.answer("apns", status=410, reason="ExpiredToken", timestamp=1_700_000_000_123)
    gone, expired = (await sender.apns()).json(), (await sender.apns()).json()
    assert gone["reason"] == "Unregistered"
    assert abs(gone["timestamp"] / 1000 - time.time()) < 60
    assert expired == {"reason": "ExpiredToken", "timestamp": 1_700_000_000_123}


async def test_push_can_hang_or_be_reset_or_disconnected(sender: Sender, phones: Phones) -> None:
    for answer in ("hang", "reset", "cut", "goaway"):
        phones.answer("apns", answer=answer, times=1)
        async with sender.client() as sender.http:
            sender.http.timeout = httpx.Timeout(10, read=0.3)
            with pytest.raises(httpx.ReadTimeout if answer == "hang" else httpx.TransportError):
                await sender.apns()
    assert [(push["status"], push["reason"]) for push in phones.pushes()] == [
        (None, answer) for answer in ("hang", "reset", "cut", "goaway")
    ]
    assert titles(phones, TOKEN) == []


async def test_response_can_be_huge_empty_or_invalid_json(sender: Sender, phones: Phones) -> None:
    for answer in ("huge", "empty", "not json"):
        phones.answer("apns", answer=answer, status=502, times=1)
    found = [await sender.apns() for _ in range(3)]
    assert [answer.status_code for answer in found] == [502] * 3
    assert [len(answer.content) for answer in found] == [4 << 20, 0, 24]


async def test_push_can_be_answered_late_or_shown_without_response(sender: Sender, phones: Phones) -> None:
    phones.answer("apns", after_ms=200, times=1)
    begun = time.monotonic()
    assert (await sender.apns()).status_code == 200
    assert time.monotonic() - begun > 0.15
    phones.answer("apns", answer="cut", shown=True, times=1)
    with pytest.raises(httpx.TransportError):
        await sender.apns(alert("Twice", OTHER))
    assert titles(phones, TOKEN) == ["Twice", "Hello"]


# FCM


async def test_fcm_push_is_recorded_and_shown(sender: Sender, phones: Phones) -> None:
    message: dict[str, Any] = {
        "token": "t:" + "A" * 40,
        "notification": {"title": "Hello", "body": "Body"},
        "data": {"id": ID, "badge": "3"},
        "android": {"priority": "HIGH", "ttl": "86400s", "notification": {"tag": ID, "channel_id": "cases"}},
    }
    answer = await sender.fcm(message)
    assert answer.json()["name"].startswith(f"projects/{sender.account['project_id']}/messages/0:")
    [push] = phones.pushes("fcm", message["token"])
    assert push["payload"] == {"message": message}
    assert (push["visible"]["id"], push["visible"]["key"], push["visible"]["title"]) == (ID, ID, "Hello")


async def test_fcm_data_message_clears_banners_and_sets_badge(sender: Sender, phones: Phones) -> None:
    for id_ in (ID, OTHER, ID):
        words = {"title": id_[-1], "body": "Body"}
        await sender.fcm({"fid": FID, "notification": words, "android": {"notification": {"tag": id_}}})
    assert titles(phones, FID) == ["1", "2"]
    await sender.fcm({"fid": FID, "data": {"clear": json.dumps([ID]), "badge": "1"}})
    assert (titles(phones, FID), phones.screen(FID)["badge"]) == (["2"], 1)
    await sender.fcm({"fid": FID, "data": {"clear": '"all"', "badge": "0"}})
    assert phones.screen(FID) == {"badge": 0, "banners": []}


async def test_fcm_shows_the_apns_block_on_iphones(sender: Sender, phones: Phones) -> None:
    block = {"headers": {"apns-collapse-id": ID}, "payload": alert("Hello", badge=2)}
    assert (await sender.fcm({"token": "i" * 40, "apns": block})).status_code == 200
    assert (titles(phones, "i" * 40), phones.screen("i" * 40)["badge"]) == (["Hello"], 2)


async def test_fcm_validate_only_push_is_not_shown(sender: Sender, phones: Phones) -> None:
    answer = await sender.fcm({"fid": FID, "notification": {"title": "Hello"}}, validate_only=True)
    assert answer.json()["name"].endswith("/fake_message_id")
    assert titles(phones, FID) == []


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({}, "message"),
        ({"token": "t" * 40, "fid": FID}, "message"),
        ({"fid": FID, "data": {"badge": 3}}, "message.data.badge"),
        ({"fid": FID, "data": {"from": "me"}}, "message.data.from"),
        ({"fid": FID, "data": {"gcm.x": "me"}}, "message.data.gcm.x"),
        ({"fid": FID, "data": {"x": "x" * 4096}}, "message"),
        ({"topic": "all", "data": {"x": "x" * 2048}}, "message"),
        ({"fid": FID, "android": {"ttl": "3600"}}, "message.android.ttl"),
        ({"fid": FID, "android": {"ttl": 3600}}, "message.android.ttl"),
        ({"fid": FID, "android": {"ttl": "2419201s"}}, "message.android.ttl"),
        ({"fid": FID, "android": {"priority": "urgent"}}, "message.android.priority"),
        ({"fid": FID, "android": {"tag": "x"}}, "message.android"),
        ({"fid": FID, "notification": {"tag": "x"}}, "message.notification"),
        ({"fid": FID, "apns": {"headers": {"apns-priority": 5}}}, "message.apns.headers.apns-priority"),
        ({"fid": FID, "apns": {"payload": {"x": "x" * 4096}}}, "message.apns.payload"),
    ],
)
async def test_fcm_names_the_invalid_field(sender: Sender, message: Any, field: str) -> None:
    answer = await sender.fcm(message)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    [detail] = error["details"]
    assert detail["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    assert detail["fieldViolations"][0]["field"] == field


async def test_fcm_reports_malformed_token_as_invalid_argument(sender: Sender) -> None:
    error = (await sender.fcm({"token": "short"})).json()["error"]
    assert error["details"] == [
        {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": "INVALID_ARGUMENT"}
    ]


async def test_fcm_accepts_snake_case_fields(sender: Sender) -> None:
    message = {"fid": FID, "android": {"collapseKey": "x", "ttl": "3.5s", "notification": {"channelId": "cases"}}}
    assert (await sender.fcm(message, validateOnly=True)).status_code == 200


@pytest.mark.parametrize(
    ("demand", "word", "code"),
    [
        ((404, "UNREGISTERED"), "NOT_FOUND", "UNREGISTERED"),
        ((403, "SENDER_ID_MISMATCH"), "PERMISSION_DENIED", "SENDER_ID_MISMATCH"),
        ((429, "QUOTA_EXCEEDED"), "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
        ((503, "UNAVAILABLE"), "UNAVAILABLE", "UNAVAILABLE"),
        ((401, "THIRD_PARTY_AUTH_ERROR"), "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"),
        ((401, "UNAUTHENTICATED"), "UNAUTHENTICATED", None),
        ((403, "PERMISSION_DENIED"), "PERMISSION_DENIED", None),
        ((404, "NOT_FOUND"), "NOT_FOUND", None),
        ((500, ""), "INTERNAL", "INTERNAL"),
    ],
)
async def test_fcm_scripted_errors_have_fcm_status_and_code(
    sender: Sender, phones: Phones, demand: tuple[int, str], word: str, code: str | None
) -> None:
    status, reason = demand
    phones.answer("fcm", status=status, reason=reason)
    answer = await sender.fcm({"fid": FID})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (status, status, word)
    assert [detail["errorCode"] for detail in error.get("details", [])] == ([code] if code else [])


async def test_fcm_requires_access_token_and_its_project(sender: Sender) -> None:
    sender.access = "ya29.made-up"
    error = (await sender.fcm({"fid": FID})).json()["error"]
    assert (error["code"], error["status"], "details" in error) == (401, "UNAUTHENTICATED", False)
    sender.access, sender.account["project_id"] = "", "another"
    error = (await sender.fcm({"fid": FID})).json()["error"]
    assert (error["code"], error["status"], "details" in error) == (404, "NOT_FOUND", False)


async def test_fcm_access_token_needs_the_service_account(sender: Sender, phones: Phones) -> None:
    now = int(time.time())
    wrong: list[dict[str, Any]] = [
        {"key": rsa.generate_private_key(65537, 2048)},
        {"kid": "another"},
        {"iss": "somebody@example.com"},
        {"aud": "https://oauth2.googleapis.com/token"},
        {"iat": now - 7200, "exp": now - 3600},
        {"exp": now + 7200},
    ]
    for changed in wrong:
        answer = await sender.ask_for_access(sender.assertion(**changed))
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant"), changed
    answer = await sender.ask_for_access(sender.assertion(scope="https://www.googleapis.com/auth/drive"))
    assert answer.json()["error"] == "invalid_scope"
    answer = await sender.ask_for_access(sender.assertion(), "device_code")
    assert answer.json()["error"] == "unsupported_grant_type"
    phones.answer("oauth", status=500, times=1)
    assert (await sender.ask_for_access(sender.assertion())).status_code == 500
    granted = (await sender.ask_for_access(sender.assertion())).json()
    assert (granted["token_type"], granted["expires_in"]) == ("Bearer", 3599)


# Browsers


async def test_web_push_is_decrypted_and_shown(sender: Sender, phones: Phones) -> None:
    subscription = phones.subscribe()
    payload = {"title": "Hello", "body": "Bødy", "tag": ID, "badge": 3, "notification": {"id": ID}}
    answer = await sender.web(subscription, payload, urgency="high", topic="x" * 32)
    assert answer.status_code == 201
    assert answer.headers["location"].startswith(sender.env["TOCSIN_WEB_PUSH_ORIGINS"] + "/message/")
    [push] = phones.pushes("browser", subscription["endpoint"])
    assert (push["payload"], push["headers"]["urgency"]) == (payload, "high")
    await sender.web(subscription, {"title": "Next", "tag": OTHER, "clear": [ID], "badge": 1})
    assert titles(phones, subscription["endpoint"]) == ["Next"]
    assert phones.screen(subscription["endpoint"])["badge"] == 1


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"ttl": None}, 400),
        ({"ttl": "soon"}, 400),
        ({"urgency": "extreme"}, 400),
        ({"topic": "x" * 33}, 400),
        ({"topic": "a b"}, 400),
        ({"content_encoding": None}, 400),
        ({"content_encoding": "aesgcm"}, 400),
        ({"authorization": None}, 401),
        ({"authorization": "bearer x"}, 401),
        ({"authorization": "vapid t=x, k=y"}, 403),
        ({"payload": b"x" * 4097}, 413),
        ({"payload": b"x" * 50}, 400),
        ({"payload": b"x" * 300}, 400),
    ],
)
async def test_web_push_service_rejects_what_the_rfcs_forbid(
    sender: Sender, phones: Phones, changed: dict[str, Any], status: int
) -> None:
    answer = await sender.web(phones.subscribe(), changed.pop("payload", {"title": "Hello"}), **changed)
    assert answer.status_code == status
    assert phones.pushes()[0]["status"] == status


async def test_vapid_token_needs_audience_signature_and_short_lifetime(sender: Sender, phones: Phones) -> None:
    now = int(time.time())
    for changed in (
        {"aud": "https://push.example.com"},
        {"exp": now + 90_000},
        {"exp": now - 3600},
        {"sub": "crm"},
        {"key": ec.generate_private_key(ec.SECP256R1())},
    ):
        answer = await sender.web(phones.subscribe(), {"title": "Hello"}, authorization=sender.vapid(**changed))
        assert answer.status_code == 403, changed


async def test_subscription_bound_to_a_vapid_key_rejects_other_keys(sender: Sender, phones: Phones) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = text(stranger.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
    assert (await sender.web(phones.subscribe(point), {"title": "Hello"})).status_code == 403
    assert (await sender.web(phones.subscribe(sender.vapid_public), {"title": "Hello"})).status_code == 201


async def test_web_push_for_another_browser_or_damaged_is_rejected(sender: Sender, phones: Phones) -> None:
    one, other = phones.subscribe(), phones.subscribe()
    body = encrypted(one, b"{}")
    damaged = body[:-1] + bytes([body[-1] ^ 1])
    answers = [await sender.web(other, body), await sender.web(one, damaged), await sender.web(one, body)]
    assert [answer.status_code for answer in answers] == [400, 400, 201]


async def test_web_push_service_can_answer_202(sender: Sender, phones: Phones) -> None:
    phones.answer("browser", status=202)
    subscription = phones.subscribe()
    assert (await sender.web(subscription, {"title": "Hello"})).status_code == 202
    assert titles(phones, subscription["endpoint"]) == ["Hello"]


async def test_removed_subscription_is_410_and_unknown_one_404(sender: Sender, control: httpx.AsyncClient) -> None:
    subscription = (await control.post("/subscriptions")).json()
    query = {"endpoint": subscription["endpoint"]}
    assert (await control.delete("/subscriptions", params=query)).status_code == 204
    assert (await control.delete("/subscriptions", params=query)).status_code == 404
    assert (await sender.web(subscription, {})).status_code == 410
    subscription["endpoint"] += "x"
    assert (await sender.web(subscription, {})).status_code == 404


# Screens and the control port


async def test_banners_are_replaced_by_collapse_id_and_cleared(sender: Sender, phones: Phones) -> None:
    await sender.apns(alert("One"), apns_collapse_id=ID)
    await sender.apns(alert("Two", OTHER), apns_collapse_id=OTHER)
    await sender.apns(alert("One again"), apns_collapse_id=ID)
    assert titles(phones, TOKEN) == ["One again", "Two"]
    assert [push["visible"] is not None for push in phones.pushes()] == [False, True, True]
    silent = {"aps": {"badge": 1}, "clear": [ID]}
    await sender.apns(silent, apns_priority="5")
    assert titles(phones, TOKEN) == ["One again", "Two"]  # nothing woke the app
    silent["aps"]["content-available"] = 1  # type: ignore[index]
    await sender.apns(silent, apns_priority="5")
    assert (titles(phones, TOKEN), phones.screen(TOKEN)["badge"]) == (["Two"], 1)
    await sender.apns({"aps": {"badge": 0, "content-available": 1}, "clear": "all"}, apns_priority="5")
    assert phones.screen(TOKEN) == {"badge": 0, "banners": []}


async def test_control_port_lists_pushes_and_deletes_them(sender: Sender, control: httpx.AsyncClient) -> None:
    await sender.apns()
    await sender.fcm({"fid": FID, "notification": {"title": "Hello"}})
    assert [push["provider"] for push in (await control.get("/pushes")).json()] == ["apns", "fcm"]
    assert len((await control.get("/pushes", params={"provider": "oauth"})).json()) == 1
    assert len((await control.get("/pushes", params={"provider": "fcm", "token": FID})).json()) == 1
    assert (await control.get("/screen", params={"token": FID})).json()["banners"][0]["title"] == "Hello"
    assert (await control.delete("/pushes")).status_code == 204
    assert (await control.get("/pushes")).json() == []
    assert (await control.get("/screen", params={"token": FID})).json() == {"badge": None, "banners": []}


async def test_control_port_sets_and_removes_scripted_responses(sender: Sender, control: httpx.AsyncClient) -> None:
    demand = {"provider": "apns", "status": 503, "reason": "ServiceUnavailable"}
    assert (await control.post("/answers", json=demand)).status_code == 204
    assert (await sender.apns()).status_code == 503
    assert (await control.delete("/answers")).status_code == 204
    assert (await sender.apns()).status_code == 200


@pytest.mark.parametrize(
    "demand",
    [
        {},
        {"provider": "pigeon"},
        {"provider": "apns", "status": "503"},
        {"provider": "apns", "status": 99},
        {"provider": "apns", "reason": "Unregistered"},
        {"provider": "apns", "answer": "explode"},
        {"provider": "apns", "times": 0},
        {"provider": "apns", "every": 0},
        {"provider": "apns", "after_ms": -1},
        {"provider": "apns", "headers": {"a\n": "b"}},
        {"provider": "apns", "headers": ["a"]},
        {"provider": "apns", "shown": 1},
        {"provider": "apns", "colour": "red"},
    ],
)
async def test_control_port_rejects_invalid_scripted_response(control: httpx.AsyncClient, demand: Any) -> None:
    answer = await control.post("/answers", json=demand)
    assert answer.status_code == 400
    assert answer.json()["error"]


async def test_control_port_rejects_unknown_paths_and_methods(control: httpx.AsyncClient) -> None:
    assert (await control.get("/nothing")).status_code == 404
    assert (await control.put("/pushes")).status_code == 405
    assert (await control.get("/screen")).status_code == 400
    assert (await control.post("/answers", content=b"{")).status_code == 400


async def test_control_port_accepts_chunked_bodies_and_answers_invalid_http(
    control: httpx.AsyncClient, phones: Phones
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for part in (b'{"provider": ', b'"apns"}'):
            yield part

    assert (await control.post("/answers", content=chunks())).status_code == 204
    host, port = phones.control_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"this is no HTTP\r\n\r\n")
    async with bounded():
        assert (await reader.read()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    writer.close()


@pytest.mark.parametrize(
    "foreign",
    [
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
async def test_control_port_rejects_pages_of_other_origins(
    sender: Sender, control: httpx.AsyncClient, foreign: dict[str, str]
) -> None:
    await sender.apns()
    demand = json.dumps({"provider": "apns", "status": 503})
    for method, path in [
        *(("GET", path) for path in ("/pushes", f"/screen?token={TOKEN}")),
        *(("POST", path) for path in ("/answers", "/subscriptions")),
        *(("DELETE", path) for path in ("/pushes", "/answers", "/subscriptions?endpoint=x", "/connections")),
    ]:
        headers = {"Content-Type": "text/plain", **foreign}
        answer = await control.request(method, path, content=demand if method == "POST" else None, headers=headers)
        assert (answer.status_code, list(answer.json())) == (403, ["error"]), (method, path)
    assert len((await control.get("/pushes", headers={"Host": "localhost"})).json()) == 1
    assert (await sender.apns()).status_code == 200


async def test_connections_can_be_closed_on_request(sender: Sender, control: httpx.AsyncClient) -> None:
    await sender.apns()
    assert (await control.delete("/connections")).status_code == 204
    with pytest.raises(httpx.TransportError):
        await sender.apns()


async def test_stand_ins_keep_ports_and_state_after_a_restart(tmp_path: Path) -> None:
    phones = Phones()
    await phones.start()
    subscription = phones.subscribe()
    sender = Sender(phones, tmp_path)
    async with sender.http:
        assert (await sender.apns()).status_code == 200
        await phones.stop()
        with pytest.raises(httpx.TransportError):
            await sender.apns()
        await phones.start()
        try:
            assert (await sender.apns()).status_code == 200
            assert (await sender.web(subscription, {"title": "Hello"})).status_code == 201
        finally:
            await phones.stop()
    assert len(phones.pushes()) == 3


async def test_reset_stream_does_not_affect_others(sender: Sender) -> None:
    async with bus(sender) as client:
        client.begin(end=True)
        await client.until(RemoteSettingsChanged, 2)
        taken_back = client.begin(end=True)
        client.http.reset_stream(taken_back)
        client.begin(end=True)
        assert [one.stream_id for one in await client.until(ResponseReceived, 2)] == [1, 5]


# Clients, files and the command


def curl(sender: Sender, url: str, version: int, change: Callable[[pycurl.Curl], None]) -> tuple[int, int]:
    """Return status and HTTP version of a request by libcurl."""
    client = pycurl.Curl()
    client.setopt(pycurl.URL, url)
    client.setopt(pycurl.CAINFO, sender.ca)
    client.setopt(pycurl.HTTP_VERSION, version)
    client.setopt(pycurl.TIMEOUT, int(LONGEST_WAIT))
    client.setopt(pycurl.NOSIGNAL, 1)
    client.setopt(pycurl.WRITEFUNCTION, lambda _: None)
    change(client)
    client.perform()
    return client.getinfo(pycurl.RESPONSE_CODE), client.getinfo(pycurl.INFO_HTTP_VERSION)


async def test_libcurl_pushes_over_http_2_and_gets_access_token_over_http_1(sender: Sender) -> None:
    def push(client: pycurl.Curl) -> None:
        headers = sender.apns_headers()
        client.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in headers.items()])
        client.setopt(pycurl.POSTFIELDS, json.dumps(alert("Hello")))

    def ask(client: pycurl.Curl) -> None:
        grant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
        client.setopt(pycurl.POSTFIELDS, f"grant_type={grant}&assertion={sender.assertion()}")

    url = f"{sender.env['TOCSIN_APNS_URL']}/3/device/{TOKEN}"
    new, old = pycurl.CURL_HTTP_VERSION_2TLS, pycurl.CURL_HTTP_VERSION_1_1
    assert await asyncio.to_thread(curl, sender, url, new, push) == (200, pycurl.CURL_HTTP_VERSION_2_0)
    token_uri = sender.account["token_uri"]
    assert await asyncio.to_thread(curl, sender, token_uri, old, ask) == (200, old)
    with pytest.raises(pycurl.error):
        await asyncio.to_thread(curl, sender, url, old, push)


def curl_at_once(sender: Sender, count: int) -> Counter[int]:
    """Return the statuses of pushes that libcurl sends all at once over one new connection; 0 is none."""
    multi, headers = pycurl.CurlMulti(), [f"{name}: {value}" for name, value in sender.apns_headers().items()]
    multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, 1)
    clients = [pycurl.Curl() for _ in range(count)]
    for number, client in enumerate(clients):
        client.setopt(pycurl.URL, f"{sender.env['TOCSIN_APNS_URL']}/3/device/{number:064x}")
        client.setopt(pycurl.CAINFO, sender.ca)
        client.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        client.setopt(pycurl.HTTPHEADER, headers)
        client.setopt(pycurl.POSTFIELDS, json.dumps(alert("Hello")))
        client.setopt(pycurl.TIMEOUT, int(LONGEST_WAIT))
        client.setopt(pycurl.NOSIGNAL, 1)
        client.setopt(pycurl.WRITEFUNCTION, lambda _: None)
        multi.add_handle(client)
    while multi.perform()[1]:
        multi.select(0.05)
    return Counter(int(client.getinfo(pycurl.RESPONSE_CODE)) for client in clients)


async def test_libcurl_loses_and_duplicates_nothing_with_goaways(sender: Sender, phones: Phones) -> None:
    phones.answer("apns", answer="goaway", every=100)
    assert await asyncio.to_thread(curl_at_once, sender, 300) == {200: 300}
    assert len({push["token"] for push in phones.pushes() if push["status"] == 200}) == 300
    assert Counter(push["status"] for push in phones.pushes())[200] == 300


async def test_stand_in_certificates_are_untrusted_by_default(sender: Sender) -> None:
    async with httpx.AsyncClient(http2=True, timeout=60) as stranger:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.get(sender.env["TOCSIN_APNS_URL"])


async def test_stand_in_credentials_are_readable_by_owner_only(sender: Sender) -> None:
    files = [Path(value) for name, value in sender.env.items() if name.endswith("_FILE")]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600] * 3


async def test_port_in_use_is_reported_and_all_ports_are_released(phones: Phones) -> None:
    taken = int(phones.control_url.rsplit(":", 1)[1])
    other = Phones(Ports(control=taken))
    with pytest.raises(OSError, match="in use"):
        await other.start()
    assert other.apns_url == ""


@pytest.mark.processes
async def test_phones_command_prints_settings_and_stops_on_signal(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("tocsin"), "phones", "--folder", tmp_path / "phones"),
        stdout=asyncio.subprocess.PIPE,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    try:
        async with bounded():
            lines: list[str] = []
            while not lines or not lines[-1].startswith("# control"):
                lines.append((await process.stdout.readline()).decode())
        env = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines if line.startswith("export "))
        assert Path(env["TOCSIN_PUSH_CA_FILE"]).is_file()
        assert (tmp_path / "phones/environment").read_text("utf-8").splitlines() == [
            line.strip() for line in lines if line.startswith("export ")
        ]
        async with httpx.AsyncClient(base_url=env["PHONES_URL"], timeout=60) as client:
            assert (await client.get("/pushes")).json() == []
        process.send_signal(signal.SIGTERM)
        async with bounded():
            assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def test_web_push_is_recorded_under_its_whole_endpoint(sender: Sender, phones: Phones) -> None:
    subscription = phones.subscribe()
    endpoint = subscription["endpoint"] + "?token=a%2fb"
    answer = await sender.web({**subscription, "endpoint": endpoint}, {"title": "Hello"})
    assert answer.status_code == 404
    assert [push["token"] for push in phones.pushes("browser")] == [endpoint]
