import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.support.built_in import CATALOGUE
from tests.support.kinds import ORDER, OURS, UUID, folder_of
from tocsin.catalogue import Catalogue, Checked
from tocsin.errors import UNREPORTED, Invalid, Refusal

SAMPLES = sorted(CATALOGUE.samples)


def event_of(name: str) -> dict[str, Any]:
    event: dict[str, Any] = copy.deepcopy(CATALOGUE.samples[name]["event"])
    return event


def check(event: dict[str, Any]) -> Checked:
    return CATALOGUE.check(event.get("type"), event.get("data"), event.get("params"))


def field_errors_of(event: dict[str, Any]) -> list[tuple[str, str]]:
    try:
        check(event)
    except Invalid as invalid:
        return [(field_error.field, field_error.code) for field_error in invalid.field_errors]
    return []


def paths_of(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every field in an object, and of those in its objects."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield (*path, key)
        yield from paths_of(inner, (*path, key))


def parent_of(event: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path[:-1]:
        event = event[key]
    return event


def fields() -> list[Any]:
    return [
        pytest.param(name, path, id=f"{name}-{'.'.join(path)}")
        for name in SAMPLES
        for path in paths_of(event_of(name))
        if path[0] in {"data", "params"} and len(path) > 1
    ]


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_event_renders_the_documented_notification(name: str) -> None:
    checked = check(event_of(name))
    words = CATALOGUE.render(checked.kind, "en", checked.data, checked.params)
    due = CATALOGUE.samples[name]["notification"]
    assert checked.kind == name
    assert CATALOGUE.kinds[name].type == due["type"]
    assert json.dumps(checked.data) == json.dumps(due["data"])
    assert words.message == due["message"]
    assert words.message_formatted == due["message_formatted"]


def test_every_kind_has_its_sample() -> None:
    assert set(CATALOGUE.samples) == set(CATALOGUE.kinds)
    assert len(CATALOGUE.kinds) == 24


@pytest.mark.parametrize("name", SAMPLES)
def test_data_is_returned_in_catalogue_order(name: str) -> None:
    def backwards(value: Any) -> Any:
        return {key: backwards(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    event = event_of(name)
    assert json.dumps(check(backwards(event)).data) == json.dumps(event["data"])


@pytest.mark.parametrize(("name", "path"), fields())
def test_missing_field_is_reported_as_required(name: str, path: tuple[str, ...]) -> None:
    event = event_of(name)
    del parent_of(event, path)[path[-1]]
    is_optional = (name, path) == ("custom", ("data", "user"))
    assert field_errors_of(event) == ([] if is_optional else [(".".join(path), "required")])


@pytest.mark.parametrize(("name", "path"), fields())
def test_null_is_accepted_only_in_nullable_fields(name: str, path: tuple[str, ...]) -> None:
    event = event_of(name)
    parent_of(event, path)[path[-1]] = None
    found = field_errors_of(event)
    if path[-1] in {"profile_picture", "account_id"}:
        assert found == []
    else:
        assert [field for field, _ in found] == [".".join(path)]


@pytest.mark.parametrize("name", SAMPLES)
def test_unknown_field_is_prohibited_at_each_level(name: str) -> None:
    whole = event_of(name)
    objects = [
        path for path in paths_of(whole) if path[0] == "data" and isinstance(parent_of(whole, path)[path[-1]], dict)
    ]
    for path in [*objects, ("params",)]:
        event = {"params": {}, **event_of(name)}
        parent_of(event, path)[path[-1]]["unknown"] = 1
        assert field_errors_of(event) == [(".".join((*path, "unknown")), "prohibited")]


@pytest.mark.parametrize(
    ("name", "field", "value", "code"),
    [
        ("note", "data.case", [], "object"),
        ("note", "data.case.id", 5, "uuid"),
        ("note", "data.case.id", "65e48afe73073ad39fc19ec7e6dc0a88", "uuid"),
        ("note", "data.case.id", f"{{{UUID}}}", "uuid"),
        ("note", "data.case.id", f"{UUID}\n", "uuid"),
        ("note", "data.case.id", f"urn:uuid:{UUID}", "uuid"),
        ("note", "data.case.id", "٦5e48afe-7307-3ad3-9fc1-9ec7e6dc0a88", "uuid"),
        ("note", "data.case.case_number", True, "integer"),
        ("note", "data.case.case_number", 1.0, "integer"),
        ("note", "data.case.case_number", "1", "integer"),
        ("note", "data.case.case_number", -1, "numeric_between"),
        ("note", "data.case.case_number", 2**53, "numeric_between"),
        ("note", "data.case.case_number", 10**30, "numeric_between"),
        ("note", "data.case.relations_path_name", 1, "string"),
        ("note", "data.case.relations_path_name", "\U0001f600" * 1001, "string_between"),
        ("note", "data.user", "4", "object"),
        ("note", "data.user", True, "object"),
        ("note", "data.user", 4.0, "object"),
        ("note", "data.user", 0, "numeric_between"),
        ("note", "data.user", 2**31, "numeric_between"),
        ("note", "data.user", 10**30, "numeric_between"),
        ("note", "data.user.id", 2**31, "numeric_between"),
        ("note", "data.user.first_name", 5, "string"),
        ("note", "data.user.profile_picture", 5, "string"),
        ("note", "params.contact", "", "string_between"),
        ("note", "params.contact", " \t\u2003", "string_between"),
        ("note", "params.contact", "x" * 1001, "string_between"),
        ("note", "params.contact", ["Jane"], "string"),
        ("note", "params.contact_id", "Jane", "uuid"),
        ("note", "params.body", "x" * 10_001, "string_between"),
        ("incoming_email", "data.contact.account_id", "5", "uuid"),
        ("gamification/new_level", "data.event", "new_level", "object"),
        ("gamification/new_level", "data.event.type", 5, "string"),
        ("gamification/new_level", "data.event.type", "new_low", "in"),
        ("gamification/new_level", "data.event.type", ["new_level"], "string"),
        ("gamification/new_level", "params.level_title", " ", "string_between"),
        ("high_fived/activity_created", "data.activities", UUID, "array"),
        ("high_fived/activity_created", "params.activities", {}, "array"),
        ("high_fived/activity_created", "params.activities", ["one"], "array_between"),
        ("high_fived/activity_created", "params.activities", [], "array_between"),
        ("high_fived/activity_created", "params.activities", ["one", "two", "three"], "array_between"),
        ("custom", "params.body", " \n ", "required"),
        ("custom", "params.body", "\x1c\u2003", "required"),
        ("custom", "params.body", "x" * 513, "string_between"),
        ("custom", "params.body", 5, "string"),
    ],
)
def test_wrong_value_is_reported_with_its_code(name: str, field: str, value: Any, code: str) -> None:
    event = {"params": {}, **event_of(name)}
    path = tuple(field.split("."))
    parent_of(event, path)[path[-1]] = value
    assert field_errors_of(event) == [(field, code)]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("note", "data.case.id", UUID.upper()),
        ("note", "data.case.case_number", 2**53 - 1),
        ("note", "data.case.case_number", 0),
        ("note", "data.case.relations_path_name", ""),
        ("note", "data.case.relations_path_name", "\U0001f600" * 1000),
        ("note", "params.body", "x" * 10_000),
        ("note", "params.contact", " x "),
        ("note", "params.contact_id", UUID),
        ("custom", "params.body", " \n" + "\U0001f600" * 512 + "\n "),
        ("high_fived/new_level", "params.level_title", "Grand Master"),
    ],
)
def test_value_at_its_limit_is_accepted(name: str, field: str, value: Any) -> None:
    event = {"params": {}, **event_of(name)}
    path = tuple(field.split("."))
    parent_of(event, path)[path[-1]] = value
    assert field_errors_of(event) == []


def test_list_entry_is_named_by_its_position() -> None:
    event = event_of("high_fived/activity_created")
    event["data"]["activities"][1] = "x"
    event["params"]["activities"][0] = 7
    assert field_errors_of(event) == [("data.activities.1", "uuid"), ("params.activities.0", "string")]


def test_list_has_at_most_100_entries() -> None:
    event = event_of("high_fived/activity_created")
    event["data"]["activities"] = [UUID] * 100
    event["params"]["activities"] = ["x"] * 100
    assert field_errors_of(event) == []
    event["data"]["activities"] = [UUID] * 101
    event["params"]["activities"] = ["x"] * 101
    assert field_errors_of(event) == [("data.activities", "array_between"), ("params.activities", "array_between")]


def test_catalogue_check_reports_all_errors() -> None:
    event = event_of("high_fived/activity_created")
    event["data"]["user"] = {"id": "4", "first_name": "Jane", "age": 7}
    event["data"]["activities"].append(UUID)
    event["data"]["more"] = None
    event["params"]["more"] = None
    assert sorted(field_errors_of(event)) == [
        ("data.more", "prohibited"),
        ("data.user.age", "prohibited"),
        ("data.user.id", "integer"),
        ("data.user.last_name", "required"),
        ("data.user.profile_picture", "required"),
        ("params.activities", "array_between"),
        ("params.more", "prohibited"),
    ]


@pytest.mark.parametrize(
    ("event", "field_errors"),
    [
        ({}, [("type", "required")]),
        ({"type": 5}, [("type", "string")]),
        ({"type": ["note"]}, [("type", "string")]),
        ({"type": "nte"}, [("type", "in")]),
        ({"type": "gamification/new_level"}, [("type", "in")]),
        ({"type": "nte", "data": [], "params": "x"}, [("type", "in"), ("data", "object"), ("params", "object")]),
        ({"type": "note"}, [("data", "required"), ("params", "required")]),
        ({"type": "note", "data": 5, "params": []}, [("data", "object"), ("params", "object")]),
        ({"type": "gamification"}, [("data", "required")]),
        ({"type": "gamification", "data": "event"}, [("data", "object")]),
        ({"type": "gamification", "data": {}}, [("data.event", "required")]),
        (
            {"type": "gamification", "data": {"event": {}}, "params": 1},
            [("data.event.type", "required"), ("params", "object")],
        ),
        ({"type": "custom"}, [("params", "required")]),
        ({"type": "custom", "params": {"body": "x"}}, []),
    ],
)
def test_non_object_event_is_reported(event: dict[str, Any], field_errors: list[tuple[str, str]]) -> None:
    assert field_errors_of(event) == field_errors


def test_error_message_names_the_field_in_a_sentence() -> None:
    event = event_of("note")
    del event["data"]["case"]["id"]
    with pytest.raises(Invalid) as caught:
        check(event)
    assert [field_error.message for field_error in caught.value.field_errors] == ["The data.case.id field is required."]


def test_user_given_by_id_is_filled_in_at_its_place() -> None:
    event = event_of("note")
    event["data"] = {"case": event["data"]["case"], "user": 4}
    checked = check(event)
    assert checked.unfilled == {"user": 4}
    assert checked.actor == 4
    assert next(iter(checked.data.items())) == ("user", 4)


def test_user_given_in_full_is_kept() -> None:
    checked = check(event_of("note"))
    assert checked.unfilled == {}
    assert checked.actor == 4
    assert checked.data["user"]["first_name"] == "Bernita"


def test_event_without_a_user_has_no_actor() -> None:
    assert check(event_of("overdue_task")).actor is None
    custom = CATALOGUE.check("custom", None, {"body": "x"})
    assert (custom.actor, custom.data, custom.unfilled) == (None, {}, {})


def test_checking_does_not_change_the_posted_event() -> None:
    event = event_of("custom")
    event["params"]["body"] = " x "
    before = copy.deepcopy(event)
    checked = check(event)
    assert checked.params == {"body": "x"}
    assert event == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("note", "case"),
        ("inbox", "case correspondence"),
        ("incoming_email", "email correspondence case contact"),
        ("task_assigned", "case task"),
        ("scheduled_report", "report"),
        ("notified_report", "report"),
        ("campaign_sent", "campaign"),
        ("lead_assigned", "lead"),
        ("lead_accepted", "lead case"),
        ("gamification/new_rank_first_place", ""),
        ("high_fived/activity_created", ""),
        ("custom", ""),
    ],
)
def test_subjects_are_the_objects_with_ids(name: str, words: str) -> None:
    assert [subject.partition(":")[0] for subject in check(event_of(name)).subjects] == words.split()


def test_subject_ids_are_lowercased_and_data_is_unchanged() -> None:
    event = event_of("note")
    event["data"]["case"]["id"] = UUID.upper()
    event["params"]["contact_id"] = "C2CCBB7E-d174-4894-ba5a-1828d0f09128"
    checked = check(event)
    assert checked.subjects == (f"case:{UUID}", "contact:c2ccbb7e-d174-4894-ba5a-1828d0f09128")
    assert checked.data["case"]["id"] == UUID.upper()


def test_presets_match_the_contract() -> None:
    presets = {name: kind.preset for name, kind in CATALOGUE.kinds.items()}
    quiet = {name for name in presets if name.startswith(("gamification/", "high_fived/"))} | {"email_opened"}
    assert {name for name, preset in presets.items() if preset == "quiet"} == quiet
    assert {name for name, preset in presets.items() if preset == "urgent"} == {"lead_escalated"}


@pytest.mark.parametrize("name", SAMPLES)
def test_json_schemas_accept_what_the_catalogue_accepts(name: str) -> None:
    schemas = CATALOGUE.schemas()
    event = {"params": {}, **event_of(name)}
    for part in ("data", "params"):
        schema = schemas[name][part]
        assert "$ref" not in json.dumps(schema)
        Draft202012Validator.check_schema(schema)
        validator = Draft202012Validator(schema)
        assert validator.is_valid(event[part])
        assert not validator.is_valid({**event[part], "unknown": 1})
    if "user" in event["data"]:
        assert Draft202012Validator(schemas[name]["data"]).is_valid({**event["data"], "user": 4})


@pytest.mark.parametrize("name", SAMPLES)
def test_json_schemas_have_no_references_and_no_empty_defaults(name: str) -> None:
    schema = CATALOGUE.schemas()[name]
    assert schema.keys() <= {"data", "params"}
    text = json.dumps(schema)
    assert "$ref" not in text
    assert '"default": null' not in text


def test_json_schema_keeps_fields_named_like_its_words(tmp_path: Path) -> None:
    kinds = OURS.replace('days = "integer"', 'days = "integer", title = "optional string"')
    catalogue = Catalogue.load(folder_of(tmp_path, kinds=kinds))
    data = catalogue.schemas()["order_moved"]["data"]
    assert list(data["properties"]) == ["user", "order", "days", "title"]
    assert data["required"] == ["user", "order", "days"]
    assert "default" not in data["properties"]["title"]


@pytest.mark.parametrize("count", [1, 100, 101, 5_000])
@pytest.mark.parametrize("path", [("data",), ("params",), ("data", "case"), ("data", "user")])
def test_unknown_fields_are_all_counted_and_the_first_reported(path: tuple[str, ...], count: int) -> None:
    event = event_of("note")
    parent_of(event, path)[path[-1]].update({f"unknown{number}": number for number in range(count)})
    with pytest.raises(Invalid) as caught:
        check(event)
    errors = list(caught.value.field_errors)
    reported = [error for error in errors if error is not UNREPORTED]
    assert len(errors) == count
    assert min(count, 90) <= len(reported) <= 100
    assert [(error.field, error.code) for error in reported] == [
        (".".join((*path, f"unknown{number}")), "prohibited") for number in range(len(reported))
    ]


def test_invalid_field_is_reported_beside_many_unknown_ones() -> None:
    event = event_of("note")
    event["data"]["case"]["case_number"] = "six"
    del event["params"]["contact"]
    event["data"].update({f"unknown{number}": number for number in range(1_000)})
    event["params"].update({f"unknown{number}": number for number in range(1_000)})
    with pytest.raises(Invalid) as caught:
        check(event)
    errors = list(caught.value.field_errors)
    assert len(errors) == 2_002
    assert ("data.case.case_number", "integer") in [(error.field, error.code) for error in errors]


@pytest.mark.parametrize(("part", "code"), [(None, "required"), (1, "object"), ("x", "object"), ([{}] * 200, "object")])
def test_part_that_is_no_object_is_reported_beside_a_large_one(part: Any, code: str) -> None:
    event = event_of("note")
    event["data"] = part
    event["params"].update({f"unknown{number}": number for number in range(1_000)})
    with pytest.raises(Invalid) as caught:
        check(event)
    errors = list(caught.value.field_errors)
    assert (errors[0].field, errors[0].code) == ("data", code)
    assert len(errors) == 1_001


def test_every_kind_has_schemas_of_its_data_and_params() -> None:
    for parts in CATALOGUE.schemas().values():
        assert set(parts) == {"data", "params"}


def test_removed_kind_raises_lookup_error() -> None:
    with pytest.raises(LookupError):
        CATALOGUE.render("of_yesterday", "en", {}, {})


@pytest.mark.parametrize(
    ("kind", "data", "params"),
    [
        ("note", {}, {"contact": "Jane", "body": ""}),
        ("note", {"user": "Jane"}, {"contact": "Jane", "body": ""}),
        ("note", {"user": None}, {"contact": "Jane", "body": ""}),
        ("note", {"user": {"first_name": "A", "last_name": "B"}}, {"contact": "Jane", "body": 5}),
        ("note", {"user": {"first_name": "A", "last_name": "B"}}, {"contact": [5], "body": ""}),
        ("gamification/new_level", {"level": {"name": 5}}, {}),
        ("gamification/new_level", {"level": {"name": ["five"]}}, {}),
    ],
)
def test_data_that_no_longer_fits_its_kind_raises_lookup_error(
    kind: str, data: dict[str, Any], params: dict[str, Any]
) -> None:
    with pytest.raises(LookupError):
        CATALOGUE.render(kind, "en", data, params)


SWEDISH = """
[order_moved]
title = "Order"
says = "{order} är **{order.state}**, enligt {user}, {days} dagar för sent"

[note]
title = "Omnämnande"

[labels.order.state]
on_its_way = "på väg"
"""


def test_custom_kind_works_like_a_builtin_kind(tmp_path: Path) -> None:
    catalogue = Catalogue.load(folder_of(tmp_path, kinds_ours=OURS))
    checked = catalogue.check("order_moved", {"user": 4, "order": ORDER, "days": 3}, None)
    assert checked.subjects == (f"order:{UUID}",)
    assert checked.data["order"] == ORDER
    user = event_of("note")["data"]["user"]
    words = catalogue.render("order_moved", "en", {**checked.data, "user": user}, checked.params)
    assert words.message == "Bernita Kilback says: no. 7 is on its way, 3 days late"
    assert catalogue.kinds["order_moved"].thread == "order"


@pytest.mark.parametrize("spelling", ["readable", "as it is"])
def test_coded_field_that_is_null_renders_as_nothing(tmp_path: Path, spelling: str) -> None:
    kinds = OURS.replace('state = "string"', 'state = "string or null"').replace('"readable"', f'"{spelling}"')
    catalogue = Catalogue.load(folder_of(tmp_path, kinds=kinds))
    order = {**ORDER, "state": None}
    assert catalogue.check("order_moved", {"user": 4, "order": order, "days": 3}, None).data["order"] == order
    user = event_of("note")["data"]["user"]
    words = catalogue.render("order_moved", "en", {"user": user, "order": order, "days": 3}, {})
    assert words.message == "Bernita Kilback says: no. 7 is , 3 days late"


def test_missing_translations_fall_back_to_english(tmp_path: Path) -> None:
    catalogue = Catalogue.load(folder_of(tmp_path, kinds=OURS, sv=SWEDISH))
    assert catalogue.languages == ("en", "da", "de", "sv")
    user = event_of("note")["data"]["user"]
    words = catalogue.render("order_moved", "sv", {"user": user, "order": ORDER, "days": 3}, {})
    assert words.message == "no. 7 är på väg, enligt Bernita Kilback, 3 dagar för sent"
    assert catalogue.kinds["order_moved"].wordings["sv"].title == "Order"
    note = event_of("note")
    said = catalogue.render("note", "sv", note["data"], note["params"])
    assert said.message == CATALOGUE.samples["note"]["notification"]["message"]
    assert catalogue.kinds["note"].wordings["sv"].title == "Omnämnande"
    level = catalogue.render("gamification/new_level", "sv", {"level": {"name": "level_2"}}, {})
    assert level.message == "You have reached level Beginner 2"


def test_region_falls_back_to_its_language_before_english(tmp_path: Path) -> None:
    pt = '[overdue_task]\ntitle = "Tarefa"\nsays = "Uma tarefa"\n[labels.badge.name]\nthe_seller = "O Vendedor"'
    catalogue = Catalogue.load(folder_of(tmp_path, pt=pt, pt_BR='[overdue_task]\ntitle = "Tarefa atrasada"'))
    words = catalogue.render("overdue_task", "pt-BR", {}, {})
    assert words.message == "Uma tarefa"
    assert catalogue.kinds["overdue_task"].wordings["pt-BR"].title == "Tarefa atrasada"
    badge = catalogue.render("gamification/badge_achieved", "pt-BR", {"badge": {"name": "the_seller"}}, {})
    assert badge.message == "You earned a new badge called O Vendedor"


def test_language_is_the_same_in_upper_and_lower_case(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "1", zh_hant='[overdue_task]\ntitle = "One"\nsays = "A task"')
    later = folder_of(tmp_path / "2", zh_Hant='[note]\ntitle = "Two"', zh_hant_tw='[custom]\ntitle = "Three"')
    catalogue = Catalogue.load(first, later)
    assert catalogue.languages[3:] == ("zh-Hant", "zh-Hant-TW")
    for language, custom in (("zh-Hant", "Message"), ("zh-Hant-TW", "Three")):
        titles = [catalogue.kinds[name].wordings[language].title for name in ("overdue_task", "note", "custom")]
        assert titles == ["One", "Two", custom]
    assert catalogue.language_of("zh_hant_hk") == "zh-Hant"
    assert catalogue.render("overdue_task", "zh-Hant-TW", {}, {}).message == "A task"


@pytest.mark.parametrize(
    ("locale", "language"),
    [
        ("da-DK", "da"),
        ("da_DK", "da"),
        ("DA", "da"),
        ("pt-BR", "pt-BR"),
        ("pt_br", "pt-BR"),
        ("pt-PT", "en"),
        ("en-GB", "en"),
        ("sv", "en"),
        ("", "en"),
        ("../x", "en"),
    ],
)
def test_locale_maps_to_a_language(tmp_path: Path, locale: str, language: str) -> None:
    assert Catalogue.load(folder_of(tmp_path, da="", pt_BR="")).language_of(locale) == language


def test_later_folder_overrides_earlier_one_key_by_key(tmp_path: Path) -> None:
    first = folder_of(
        tmp_path / "1", kinds='[note]\npreset = "urgent"\ntitle = "One"\n[labels.level.name]\nlevel_3 = "Three"'
    )
    second = folder_of(tmp_path / "2", kinds='[note]\ntitle = "Two"\nquotes = ""', en='[inbox]\ntitle = "Look!"')
    catalogue = Catalogue.load(first, second)
    note = event_of("note")
    words = catalogue.render("note", "en", note["data"], note["params"])
    assert (catalogue.kinds["note"].preset, catalogue.kinds["note"].wordings["en"].title) == ("urgent", "Two")
    assert words.message == "Bernita Kilback mentioned you in a note on Jane Doe's case"
    assert catalogue.kinds["inbox"].wordings["en"].title == "Look!"
    for code, label in (("level_2", "Beginner 2"), ("level_3", "Three")):
        said = catalogue.render("gamification/new_level", "en", {"level": {"name": code}}, {})
        assert said.message == f"You have reached level {label}"


KIND = 'title = "X"\ngroup = "g"\n'


@pytest.mark.parametrize(
    ("name", "text", "field_errors"),
    [
        ("kinds", f'[x]\n{KIND}says = "x"\ndata = {{ a = "cse" }}', ["[x] `data.a` is `cse`", "write `case`"]),
        ("kinds", f'[x]\n{KIND}says = "x"\nparams = {{ a = "case" }}', ["[x] `params.a` is `case`", "`uuid`"]),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\ndata = {{ a = "list of case" }}',
            ["[x] `data.a` is `list of case`", "write"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "{{usr}}"\ndata = {{ user = "user" }}',
            ["[x] `says` names {usr}", "write `user`"],
        ),
        ("kinds", f'[x]\n{KIND}says = "{{c.nr}}"\ndata = {{ c = "case" }}', ["[x] `says` names {c.nr}", "`c.id`"]),
        ("kinds", f'[x]\n{KIND}says = "{{c}}"\ndata = {{ c = "case" }}', ["[x] `says` names {c}", "`c.id`"]),
        (
            "kinds",
            f'[x]\n{KIND}says = "{{a}}"\nparams = {{ a = "optional words" }}',
            ["[x] `says` names {a}", "leave it out"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "{{a}}"\ndata = {{ a = "optional words" }}',
            ["[x] `says` names {a}", "leave it out"],
        ),
        (
            "kinds",
            f'["x/y"]\n{KIND}says = "{{event}}"\ndata = {{ event = "variant" }}',
            ["[x/y] `says` names {event}", "leave it out"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "{{user.id}}"\ndata = {{ user = "user or null" }}',
            ["[x] `says` names {user.id}", "leave it out"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\ndata = {{ a-b = "string" }}',
            ["[x] `data` has the field `a-b`", "letters, digits and `_`"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\nparams = {{ a-b = "string" }}',
            ["[x] `params` has the field `a-b`", "letters, digits and `_`"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\nquotes = "a"\nparams = {{ a = "list of words" }}',
            ["[x] `quotes` names `a`, which it cannot", "leave it out"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\nsender = "a"\ndata = {{ a = "string" }}',
            ["[x] `sender` names `a`, which it cannot", "leave it out"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\nthread = "b"\ndata = {{ a = "case", b = "level" }}',
            ["[x] `thread` names `b`, which it cannot", "write one of `a`"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\ninstead = {{ a = "b" }}\ndata.a = "string"\nparams.b = "optional words"',
            ["[x] `instead` names `a`, which it cannot", "leave it out"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\ninstead = {{ a = "b" }}\ndata = {{ a = "case" }}\nparams = {{ b = "words" }}',
            ["[x] `instead` names `b`, which it cannot", "leave it out"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\nas_many = {{ a = "b" }}\ndata.b = "list of uuid"\nparams.a = "words"',
            ["[x] `as_many` names `a`, which it cannot", "leave it out"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\nas_many = {{ a = "b" }}\ndata.b = "uuid"\nparams.a = "list of words"',
            ["[x] `as_many` names `b`, which it cannot", "leave it out"],
        ),
        ("kinds", f'[x]\n{KIND}says = "**x"', ["[x] `says` has an odd number of `**`", "write `**bold**`"]),
        ("kinds", f'[x]\n{KIND}says = "{{x"', ["[x] `says` has a `{` or `}`", "`{word}`"]),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\npreset = "loud"',
            ["[x] `preset` is 'loud'", "'quiet', 'normal' or 'urgent'"],
        ),
        ("kinds", f'[x]\n{KIND}says = "x"\nquote = "y"', ["[x] `quote` is not one of its keys", "write `quotes`"]),
        ("kinds", '[x]\ntitle = "X"\ngroup = "g"', ["[x] `says` is missing", "write `says = ...`"]),
        ("kinds", '[x]\ntitle = ""\nsays = "x"\ngroup = "g"', ["[x] `title` is empty", "write a text"]),
        ("kinds", '[x]\ntitle = 5\nsays = "x"\ngroup = "g"', ["[x] `title` is 5", "write a text in quotes"]),
        ("kinds", f'[x]\n{KIND}says = "x"\ndata = "case"', ["[x] `data` is 'case'", "write a table"]),
        ("kinds", f'[x]\n{KIND}says = "x"\ndata = {{ a = 5 }}', ["[x] `data.a` is 5", "write a text in quotes"]),
        ("kinds", "x = 5", ["[x] is not a table", "[x]"]),
        ("kinds", "shapes = 5", ["[shapes] is not a table", "[shapes.name]"]),
        ("kinds", "[labels]\nlevel = 5", ["[labels.level] is not a table", "[labels.level]"]),
        (
            "kinds",
            f'[X-1]\n{KIND}says = "x"',
            ["[X-1] has a name that no event can have", "write `name` or `type/variant`"],
        ),
        ("kinds", f'["x/y"]\n{KIND}says = "x"', ["[x/y] has a name and a variant", 'event = "variant"']),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\ndata = {{ event = "variant" }}',
            ["[x] has a name and a variant", "of no other"],
        ),
        (
            "kinds",
            f'[gamification]\n{KIND}says = "x"',
            ["[gamification] conflicts with kinds `gamification/...`", "of that form"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\nquotes = "bdy"\nparams = {{ body = "text" }}',
            ["[x] `quotes` names `bdy`", "write `body`"],
        ),
        ("kinds", f'[x]\n{KIND}says = "x"\nthread = "user"', ["[x] `thread` names `user`", "leave it out"]),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\nlink = "https://x/{{cas.id}}"\ndata = {{ case = "case" }}',
            ["[x] `link` names {cas.id}", "write `case.id`"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\nsubjects = {{ a = "A B" }}\nparams = {{ a = "uuid" }}',
            ["[x] `subjects` has the word `A B`", "small letters"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\nsubjects = {{ a = "a" }}\nparams = {{ a = "text" }}',
            ["[x] `subjects` has `a`", "leave it out"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\ninstead = {{ l = "t" }}\ndata = {{ l = "level" }}\nparams = {{ t = "words" }}',
            ["[x] `instead` names `t`", "leave it out"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\nas_many = {{ a = "b" }}\nparams.a = "list of words"\ndata.bb = "list of uuid"',
            ["[x] `as_many` names `b`", "write `bb`"],
        ),
        (
            "kinds",
            f'[x]\n{KIND}says = "x"\ndata = {{ "a-b" = "string" }}',
            ["[x] `data` has the field `a-b`", "letters, digits and `_`"],
        ),
        ("kinds", '[shapes.x]\nfields = { a = "uid" }', ["[shapes.x] `fields.a` is `uid`", "write `uuid`"]),
        ("kinds", '[shapes.x]\nfields = { a = "list of uuid" }', ["[shapes.x] `fields.a` is `list of uuid`", "write"]),
        (
            "kinds",
            '[shapes.x]\nfields = { code = "uuid" }\nspoken = "{cod}"',
            ["[shapes.x] `spoken` names {cod}", "write `code`"],
        ),
        (
            "kinds",
            '[shapes.x]\nfields = { a = "uuid" }\nspoken = "**{a}**"',
            ["[shapes.x] `spoken` has `**`", "in the kinds' sentences"],
        ),
        ("kinds", '[shapes.x]\nfields = { a = "uuid" }\nspoken = "{a"', ["[shapes.x] `spoken` has a `{`", "in braces"]),
        (
            "kinds",
            '[shapes.x]\nfields = { a = "uuid" }\ncoded = { a = "readable" }',
            ["[shapes.x] `coded` has `a`", "leave it out"],
        ),
        (
            "kinds",
            '[shapes.x]\nfields = { a = "string" }\ncoded = { a = "nice" }',
            ["[shapes.x] `coded.a` is 'nice'", "'readable' or 'as it is'"],
        ),
        (
            "kinds",
            '[shapes.x]\nfields = { a = "string" }\nsubjects = { a = "a" }',
            ["[shapes.x] `subjects` has `a`", "leave it out"],
        ),
        (
            "kinds",
            '[shapes.x]\nfields = { a = "string" }\ndirectory = "yes"',
            ["[shapes.x] `directory` is 'yes'", "true or false"],
        ),
        (
            "kinds",
            '[shapes.uuid]\nfields = { a = "string" }',
            ["[shapes.uuid] has the name of a type", "another name"],
        ),
        (
            "kinds",
            '[labels.level.nme]\nx = "y"',
            ["[labels.level.nme] has labels for a field that is not coded", "write `level.name`"],
        ),
        ("kinds", "[labels.level.name]\nx = 5", ["[labels.level.name] `x` is 5", "write a text in quotes"]),
        ("da", '[nte]\ntitle = "X"', ["[nte] is not a kind", "write `note`"]),
        ("da", '[note]\nsays = "{contat}"', ["[note] `says` names {contat}", "write `contact`"]),
        ("da", '[note]\nsays = "**x"', ["[note] `says` has an odd number of `**`", "write `**bold**`"]),
        ("da", '[note]\npreset = "quiet"', ["[note] `preset` is not one of its keys", "write one of `title`, `says`"]),
        ("da", "[note]\n\ntitle = ", ["is not TOML", "line 3"]),
        ("da", '[groups]\nleds = "Leads"', ["[groups] `leds` is not a known name", "write `leads`"]),
        ("kinds", '[phrases]\nerased = ""', ["[phrases] `erased` is ''", "write a text in quotes"]),
        ("da", 'groups = "Leads"', ["[groups] is not a table", "under a line `[groups]`"]),
        (
            "kinds",
            '[shapes.case]\npersonal = ["case_number"]',
            ["[shapes.case] `personal` has `case_number`, which cannot be blank", "write one of `relations_path_name`"],
        ),
        ("german", "", ["is neither kinds nor a language", "da.toml"]),
        ("da", '[phrases]\nbundled = "{cuont} nye"', ["[phrases] `bundled` has braces or `**`", "than `{count}`"]),
        ("sv", '[phrases]\nbundled = "**{count}** nya"', ["[phrases] `bundled` has braces or `**`", "than `{count}`"]),
        ("sv", '[phrases]\nsigned = "{title} {contact}"', ["[phrases] `signed` has", "`{title}` and `{sender}`"]),
        ("kinds", '[phrases]\nerased = "{title}"', ["[phrases] `erased` has braces or `**`", "leave them out"]),
        ("kinds", '[note]\ntitle = "Note of {user}"', ["[note] `title` has braces or `**`", "leave them out"]),
        ("de", '[note]\ntitle = "**Notiz**"', ["[note] `title` has braces or `**`", "leave them out"]),
    ],
)
def test_invalid_catalogue_file_is_reported_with_place_and_remedy(
    tmp_path: Path, name: str, text: str, field_errors: list[str]
) -> None:
    with pytest.raises(Refusal) as caught:
        Catalogue.load(folder_of(tmp_path, **{name: text}))
    lines = str(caught.value).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{tmp_path / name}.toml: {field_errors[0]}")
    wrong, _, instead = lines[0].rpartition("; ")
    assert field_errors[1] in (wrong if "TOML" in wrong else instead)


def test_errors_of_all_catalogue_files_are_reported(tmp_path: Path) -> None:
    kinds = (
        f'[x]\n{KIND}says = "**{{y}}**{{z}}"\ndata = {{ z = "broken" }}\npreset = "quiet"\n[note]\npreset = "loud"\n'
    )
    shapes = '[shapes.broken]\nfields = { a = "uid", b = "strng" }\n'
    folder = folder_of(tmp_path, kinds=kinds, kinds_more=shapes, da='[noet]\ntitle = 7\n[inbox]\nsays = "**"')
    with pytest.raises(Refusal) as caught:
        Catalogue.load(folder, tmp_path / "none")
    found = [
        (Path(file).name, line.split(" ")[0])
        for file, line in (one.split(": ", 1) for one in str(caught.value).splitlines())
    ]
    assert sorted(found) == [
        ("da.toml", "[inbox]"),
        ("da.toml", "[noet]"),
        ("da.toml", "[noet]"),
        ("kinds-more.toml", "[shapes.broken]"),
        ("kinds-more.toml", "[shapes.broken]"),
        ("kinds.toml", "[note]"),
        ("kinds.toml", "[x]"),
        ("none", "is"),
    ]


def test_catalogue_file_that_is_not_utf8_is_reported(tmp_path: Path) -> None:
    (tmp_path / "da.toml").write_bytes(b'[note]\ntitle = "\xe6"')
    with pytest.raises(Refusal, match=r"da\.toml: cannot be read: .*; save it as UTF-8"):
        Catalogue.load(tmp_path)


def test_other_files_in_the_catalogue_folder_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("Our kinds", encoding="utf-8")
    assert Catalogue.load(tmp_path).kinds.keys() == CATALOGUE.kinds.keys()
