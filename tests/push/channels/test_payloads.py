"""Payloads of pushes whose title, link or thread is very long: their words come from outside, too."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.support.push_services import EXPIRES, OTHER, phone, push, shown
from tests.support.web_push import browser
from tocsin.push.channels import Address, Push, Refused, apns, fcm, payloads, web_push

Made = Callable[[Push], bytes | Refused]

PROVIDERS: Mapping[str, tuple[Address, Made, int]] = {
    "APNs": (phone(), apns.body_of, payloads.MAX_BYTES),
    "FCM, Android": (
        phone("Android", "x" * 150),
        lambda sent: fcm.body_of(sent, EXPIRES.timestamp()),
        payloads.MAX_BYTES + 150,
    ),
    "FCM, iPhone": (
        phone("iOS", "x" * 150),
        lambda sent: fcm.body_of(sent, EXPIRES.timestamp()),
        payloads.MAX_BYTES + 150,
    ),
    "web push": (browser(), web_push.plain_of, web_push.MAX_BYTES),
}

WORST = {"characters of 3 bytes": "あ" * 1500, "of 4": "😀" * 1500, "escapes": '"' * 1500, "of 6": "\x01" * 1500}


@pytest.mark.parametrize("words", WORST.values(), ids=WORST)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("long", [["title"], ["link"], ["thread"], ["title", "link", "thread", "body"]])
def test_no_words_from_outside_prevent_a_push(provider: str, words: str, long: list[str]) -> None:
    address, made, limit = PROVIDERS[provider]
    payload = made(push(address, shown(**dict.fromkeys(long, words)), clear=(OTHER,) * 100))
    assert not isinstance(payload, Refused)
    assert len(payload) <= limit
    json.loads(payload)


def test_title_is_cut_before_a_link_is_left_out() -> None:
    link = "https://crm.example.com/" + "c" * 1000
    said = apple(shown(title="ä" * 3000, link=link))
    assert said["aps"]["alert"] == {"title": "ä" * 199 + "…", "body": "Ann wrote:\nhello"}
    assert said["notification"]["link"] == link
    assert said["notification"]["data"] == {"user": {"id": 4}}


def test_only_a_link_that_is_too_long_is_left_out() -> None:
    said = apple(shown(link="https://crm.example.com/" + "c" * 5000))
    assert said["notification"]["link"] is None
    assert (said["aps"]["thread-id"], said["aps"]["alert"]["title"]) == ("case-6", "New note")


def apple(words: Any) -> Any:
    payload = apns.body_of(push(phone(), words))
    assert not isinstance(payload, Refused)
    return json.loads(payload)
