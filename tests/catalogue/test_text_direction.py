"""External text cannot change the direction or the lines of messages, HTML, pushes and reports."""

import json
import unicodedata
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.built_in import CATALOGUE
from tests.support.pushes import IPHONE, pushes_of, register
from tests.support.service import Api
from tocsin.catalogue.rendering import Sentence, Word, Wording, is_right_to_left, one_line, spoken, spoken_text
from tocsin.explain import of_user
from tocsin_phones import Phones

FSI, PDI = "\u2068", "\u2069"
LAYLA = "\u0644\u064a\u0644\u0649"
DANA = "\u05d3\u05e0\u05d4"


def rendered(says: str, **words: Word) -> Any:
    speakers = {name: (lambda _, __, word=word: word) for name, word in words.items()}
    return Wording("", Sentence(says), speakers).render({}, {})


@pytest.mark.parametrize("name", [LAYLA, DANA, f"Layla {LAYLA}", f"{LAYLA} 3", "a\u200fb", "\U0001e900", "\ufb2a"])
def test_right_to_left_name_is_isolated_in_text_and_html(name: str) -> None:
    words = rendered("**{user}** wrote", user=spoken(name))
    assert words.message == f"{FSI}{name}{PDI} wrote"
    assert words.message_formatted == f"<p><strong>{FSI}{name}{PDI}</strong> wrote</p>"


@pytest.mark.parametrize(
    "name", ["Jane Doe", "J\u00f6rg \u0141", "\u041e\u043b\u044c\u0433\u0430", "\u674e", "\U0001f600", ""]
)
def test_left_to_right_name_is_unchanged(name: str) -> None:
    assert rendered("{user} wrote", user=spoken(name)).message == f"{name} wrote"


def test_every_value_is_isolated_in_a_right_to_left_sentence() -> None:
    assert rendered(f"{LAYLA} {{user}}", user=spoken("Jane")).message == f"{LAYLA} {FSI}Jane{PDI}"


@pytest.mark.parametrize("text", [f"{LAYLA}\nsecond", "a\u202eb\u2069c", "\x1b[0m"])
def test_message_that_is_the_whole_sentence_is_unchanged(text: str) -> None:
    assert rendered("{body}", body=spoken_text(text)).message == text


def test_multi_line_text_is_isolated_line_by_line() -> None:
    words = rendered("{user}: {body}", user=spoken("Jane"), body=spoken_text(f"{LAYLA}\r\nb\u2069"))
    assert words.message == f"Jane: {FSI}{LAYLA}{PDI}\r\n{FSI}b{PDI}"
    assert words.message_formatted == f"<p>Jane: {FSI}{LAYLA}{PDI}<br>{FSI}b{PDI}</p>"


@given(st.text())
def test_no_value_changes_direction_or_breaks_its_line(name: str) -> None:
    said_of = rendered("{user} wrote <br> to you", user=spoken(name)).message
    before = said_of.removesuffix(" wrote <br> to you")
    depth = 0
    for sign in before:
        assert unicodedata.category(sign) not in {"Cc", "Zl", "Zp"}
        assert unicodedata.bidirectional(sign) not in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI"}
        depth += (sign == FSI) - (sign == PDI)
        assert 0 <= depth <= 1
        assert depth or unicodedata.bidirectional(sign) not in {"R", "AL"}
    assert depth == 0


def test_all_right_to_left_characters_of_unicode_are_known() -> None:
    for code in range(0x110000):
        if unicodedata.bidirectional(chr(code)) in {"R", "AL"}:
            assert is_right_to_left(chr(code)), hex(code)


@pytest.mark.parametrize("name", sorted(CATALOGUE.samples))
def test_samples_have_no_isolate_characters(name: str) -> None:
    sample = CATALOGUE.samples[name]
    event = sample["event"]
    checked = CATALOGUE.check(event["type"], event.get("data"), event.get("params"))
    words = CATALOGUE.render(checked.kind, "en", checked.data, checked.params)
    assert words.message == sample["notification"]["message"]
    assert words.message_formatted == sample["notification"]["message_formatted"]


async def test_push_isolates_names_and_links_do_not(pushing: Api, phones: Phones) -> None:
    await register(pushing, 1, IPHONE)
    event = json.loads(json.dumps(pushing.app_state.catalogue.samples["high_fived/new_level"]["event"]))
    event["notify"] = {"users": [1]}
    event["data"]["user"] = {"id": 2, "first_name": LAYLA, "last_name": DANA, "profile_picture": None}
    id_ = await pushing.post(event)
    assert await pushes_of(pushing, id_) == {"delivered": 1}
    [push] = phones.pushes("apns", IPHONE)
    assert push["payload"]["aps"]["alert"]["body"].startswith(f"{FSI}{LAYLA} {DANA}{PDI} ")
    assert push["payload"]["notification"]["data"]["user"]["first_name"] == LAYLA


STRANGE = "X\x1b]0;pwn\x07\r\nuser 1, admin\u2028\u202e\x9b"
PLAIN = "X ]0;pwn   user 1, admin  "


@pytest.mark.parametrize("path", ["/directory/users/9", "/directory/teams/9"])
async def test_directory_drops_control_characters_from_names(api: Api, path: str) -> None:
    body = {"first_name": STRANGE, "last_name": LAYLA} if "users" in path else {"name": STRANGE}
    assert (await api.as_service("PUT", path, json=body)).status_code == 204
    found = (await api.as_service("GET", path)).json()
    assert found.get("first_name", found.get("name")) == PLAIN
    assert found.get("last_name", LAYLA) == LAYLA


async def test_import_drops_control_characters_from_names(api: Api) -> None:
    line = json.dumps({"user": {"id": 9, "first_name": STRANGE, "last_name": "L"}})
    headers = {"Content-Type": "application/x-ndjson"}
    assert (await api.as_service("POST", "/directory/import", content=line, headers=headers)).status_code == 200
    assert (await api.as_service("GET", "/directory/users/9")).json()["first_name"] == PLAIN


async def test_user_report_escapes_control_characters(api: Api) -> None:
    await api.people(9)
    await api.app_state.database.value("update users set first_name = $1 where id = 9", STRANGE)  # as before the check
    user = (await api.as_service("GET", "/directory/users/9")).json()
    assert user["first_name"] == STRANGE
    lines = [line async for line in of_user(api.app_state.database, 9, datetime.now(UTC))]
    assert all(line == one_line(line) for line in lines)


async def test_message_drops_control_characters_of_params(api: Api) -> None:
    await api.people(1)
    event = json.loads(json.dumps(api.app_state.catalogue.samples["note"]["event"]))
    event["notify"], event["params"]["contact"] = {"users": [1]}, STRANGE
    event["data"]["user"] = {"id": 2, "first_name": "A", "last_name": "B", "profile_picture": None}
    await api.post(event)
    [entry] = (await api.inbox(1))["data"]
    sentence = entry["message"].split(" <br> ")[0]
    assert PLAIN in sentence
    assert sentence.isprintable()
