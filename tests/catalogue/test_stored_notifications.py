"""Stored notifications: without personal data, by the name of their kind, with their subjects and links."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.built_in import CATALOGUE
from tests.support.kinds import ORDER, OURS, UUID, folder_of
from tocsin.catalogue import Catalogue

EMAIL, CORRESPONDENCE = "cb88bf5b-d5ed-4efb-8255-9c91d80d2d9b", "b571e0c8-cc3f-4a68-97a6-5a013d52f334"
PERSONAL = {
    "email": {"id": EMAIL, "correspondence_id": CORRESPONDENCE, "subject": "Order"},
    "contact": {"id": UUID, "first_name": "Jane", "last_name": "Doe", "account_id": UUID},
}


def blank(phrase: str) -> dict[str, Any]:
    """Return the data of `PERSONAL` after an erasure."""
    return {
        "email": {"id": EMAIL, "correspondence_id": CORRESPONDENCE, "subject": phrase},
        "contact": {"id": UUID, "first_name": phrase, "last_name": "", "account_id": None},
    }


@pytest.mark.parametrize(
    ("language", "phrase"), [(None, ""), ("en", "(deleted)"), ("da", "(slettet)"), ("gone", "(deleted)")]
)
def test_erasure_leaves_ids_and_a_phrase_of_the_language(language: str | None, phrase: str) -> None:
    data, params = CATALOGUE.erase("incoming_email", PERSONAL, {"body": "Dear Jane", "contact_id": UUID}, language)
    assert data == blank(phrase)
    assert params == {"body": "", "contact_id": UUID}
    _, params = CATALOGUE.erase("note", {}, {"contact": "Jane Doe", "body": "Dear Jane"}, language)
    assert params == {"contact": phrase, "body": ""}
    _, params = CATALOGUE.erase(
        "high_fived/activity_created", {}, {"activities": ["Called Jane", "Met Jane"]}, language
    )
    assert params == {"activities": [phrase]}


@pytest.mark.parametrize("name", sorted(CATALOGUE.samples))
def test_erasure_removes_the_words_of_every_kind_but_not_its_colleagues(name: str) -> None:
    event = CATALOGUE.samples[name]["event"]
    data, params = CATALOGUE.erase(name, event["data"], event.get("params", {}), "en")
    kept = json.dumps([data, params])
    lines = [params_of for params_of in event.get("params", {}).values() if isinstance(params_of, str)]
    assert not [line for line in lines if line in kept and line != UUID]
    assert data.get("user") == event["data"].get("user")
    words = CATALOGUE.render(name, "en", event["data"], event.get("params", {}), erased=True)
    assert words == CATALOGUE.render(name, "en", data, params)


def test_erased_notification_is_rendered_without_its_words() -> None:
    event = CATALOGUE.samples["note"]["event"]
    said = [CATALOGUE.render("note", "en", event["data"], event["params"], erased=erased) for erased in (False, True)]
    assert said[0].message.endswith("on Jane Doe's case <br> Hey John, please have a look!")
    assert said[1].message == "Bernita Kilback mentioned you in a note on (deleted)'s case"


def test_erasure_keeps_only_ids_of_a_kind_that_is_gone() -> None:
    data = {
        "id": UUID,
        "case_id": "c",
        "name": "Jane",
        "tags": ["a", {"id": "t", "name": "b"}],
        "count": 3,
        "none": None,
    }
    kept = {"id": UUID, "case_id": "c", "name": "", "tags": ["", {"id": "t", "name": ""}], "count": 3, "none": None}
    assert CATALOGUE.erase("of_yesterday", data, {"body": "Dear Jane"}, "en") == (kept, {})


def test_erasure_keeps_only_ids_of_fields_that_a_kind_no_longer_has() -> None:
    data = {
        "email": {"id": EMAIL, "correspondence_id": CORRESPONDENCE, "subject": "Order", "from": "jane@example.com"},
        "contact": "Jane Doe",
        "customer": {"id": UUID, "name": "Jane Doe"},
        "owner_id": UUID,
    }
    erased, params = CATALOGUE.erase("incoming_email", data, {"body": "Dear Jane", "of": ["Jane"], "deal_id": UUID})
    assert erased == {
        "email": {"id": EMAIL, "correspondence_id": CORRESPONDENCE, "subject": "", "from": ""},
        "contact": "",
        "customer": {"id": UUID, "name": ""},
        "owner_id": UUID,
    }
    assert params == {"body": "", "of": [""], "deal_id": UUID}
    event = {"event": {"type": "target_reached"}, "target": {"name": "t", "title": "T", "count": "day"}}
    assert CATALOGUE.erase("gamification/target_reached", event, {}) == (event, {})


@pytest.mark.parametrize("name", sorted(CATALOGUE.samples))
def test_stored_notification_has_the_name_and_subjects_of_its_event(name: str) -> None:
    event = CATALOGUE.samples[name]["event"]
    assert CATALOGUE.name_of(event["type"], event["data"]) == name
    checked = CATALOGUE.check(event["type"], event["data"], event.get("params"))
    assert set(CATALOGUE.subjects_of(name, event["data"])) <= set(checked.subjects)
    if "params" not in event or not CATALOGUE.kinds[name].subjects:
        assert CATALOGUE.subjects_of(name, event["data"]) == checked.subjects


@pytest.mark.parametrize(
    ("type_", "data", "name"),
    [
        ("gamification", {"event": {"type": "new_level"}}, "gamification/new_level"),
        ("gamification", {"event": {"type": "of_yesterday"}}, "gamification"),
        ("gamification", {"event": "new_level"}, "gamification"),
        ("gamification", {}, "gamification"),
        ("note", {"event": {"type": "new_level"}}, "note"),
        ("of_yesterday", {}, "of_yesterday"),
    ],
)
def test_name_of_a_kind_is_its_type_if_its_variant_is_unknown(type_: str, data: dict[str, Any], name: str) -> None:
    assert CATALOGUE.name_of(type_, data) == name


def test_subjects_of_a_stored_notification_are_those_of_its_kind() -> None:
    assert CATALOGUE.subjects_of("note", PERSONAL) == ()
    assert CATALOGUE.subjects_of("incoming_email", PERSONAL) == (
        f"email:{EMAIL}",
        f"correspondence:{CORRESPONDENCE}",
        f"contact:{UUID}",
    )


def test_unknown_kind_has_the_subjects_of_fields_of_other_kinds() -> None:
    data = {"case": {"id": UUID}, "contact": {"id": EMAIL}, "body": {"id": UUID}, "lead": "none"}
    assert set(CATALOGUE.subjects_of("of_yesterday", data)) == {f"case:{UUID}", f"contact:{EMAIL}"}


TWO_ORDERS = """
[orders_joined]
title = "Orders"
says = "Two orders are one"
data = { one = "order", two = "order" }
params = { order_id = "uuid" }
subjects = { order_id = "order" }
group = "orders"
"""


def test_subject_of_several_fields_is_named_once(tmp_path: Path) -> None:
    catalogue = Catalogue.load(folder_of(tmp_path, kinds_ours=OURS + TWO_ORDERS))
    data = {"one": ORDER, "two": ORDER}
    assert catalogue.check("orders_joined", data, {"order_id": UUID}).subjects == (f"order:{UUID}",)
    assert catalogue.subjects_of("orders_joined", data) == (f"order:{UUID}",)


@pytest.mark.parametrize(
    ("language", "locale", "spoken"),
    [("da", "de", "da"), ("de", "da", "de"), ("gone", "da-DK", "da"), ("gone", "sv", "en")],
)
def test_language_that_is_gone_is_replaced_by_that_of_the_locale(language: str, locale: str, spoken: str) -> None:
    assert CATALOGUE.spoken(language, locale) == spoken


@pytest.mark.parametrize(
    ("data", "thread"),
    [
        ({"order": ORDER}, UUID),
        ({"order": {"id": 4}}, "4"),
        ({"order": {}}, ""),
        ({"order": None}, ""),
        ({"order": "A-7"}, ""),
        ({"order": [ORDER]}, ""),
        ({}, ""),
    ],
)
def test_thread_is_an_id_or_empty_whatever_the_data_is(tmp_path: Path, data: dict[str, Any], thread: str) -> None:
    kinds = OURS.replace('order = "order"', 'order = "order or null"').replace("{order} is **{order.state}**", "moved")
    catalogue = Catalogue.load(folder_of(tmp_path, kinds=kinds.replace("{order.id}", "")))
    assert catalogue.kinds["order_moved"].thread_of(data) == thread


def test_group_without_a_name_is_made_readable() -> None:
    assert CATALOGUE.group_of("cases", "da") == "Sager"
    assert CATALOGUE.group_of("high_fives", "gone") == "High Fives"
    assert CATALOGUE.group_of("spare_parts", "da") == "Spare Parts"
    assert CATALOGUE.phrase("erased", "gone") == "(deleted)"


def test_link_is_empty_if_one_of_its_words_is_missing(tmp_path: Path) -> None:
    [moved] = [
        kind
        for kind in Catalogue.load(folder_of(tmp_path, kinds_ours=OURS)).kinds.values()
        if kind.name == "order_moved"
    ]
    assert moved.link_of({"order": ORDER}, {}) == f"https://shop.example.com/{UUID}"
    assert moved.link_of({"order": {**ORDER, "id": "a/b?c"}}, {}) == "https://shop.example.com/a%2Fb%3Fc"
    data: Any
    for data in ({}, {"order": {}}, {"order": None}, {"order": "x"}):
        assert moved.link_of(data, {}) == ""
    assert CATALOGUE.kinds["note"].link_of({}, {}) == ""
