"""Custom kinds, languages and wordings, and the list of kinds for the preferences screen."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.support.built_in import CATALOGUE
from tests.support.kinds import OURS, folder_of
from tests.support.service import Api, serving
from tocsin.catalogue import Catalogue
from tocsin.catalogue.languages import PHRASES
from tocsin.cli.commands import app
from tocsin.errors import Refusal
from tocsin.settings import read_settings

PAGE = (Path(__file__).parents[2] / "docs/guides/custom-kinds.md").read_text("utf-8")
FILES = ("kinds-of-ours.toml", "sv.toml", "kinds-words.toml")
UUID = "65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88"
RECALL = {
    "type": "recall_announced",
    "data": {"vehicle": {"id": UUID, "model": "Roadster <GT>"}},
    "params": {"contact": "Jane Doe", "contact_id": UUID, "body": "Please call"},
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The files that the documentation shows, in a folder."""
    for name, text in zip(FILES, re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL), strict=True):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
async def extended(url: str, own: Path) -> AsyncIterator[Api]:
    settings = read_settings({"TOCSIN_CATALOGUE_DIR": str(own)}, Path("/nonexistent"))
    async with serving(url, Catalogue.load(*settings.catalogue_folders)) as api:
        yield api


async def kinds(api: Api, user: int) -> dict[str, dict[str, Any]]:
    answer = await api.as_user(user, "GET", "/notifications/kinds")
    assert answer.status_code == 200, answer.text
    return {kind["name"]: kind for kind in answer.json()["data"]}


async def test_custom_kind_is_delivered_in_custom_languages(extended: Api) -> None:
    await extended.people(1)
    await extended.people(2, locale="sv-FI")
    await extended.people(3, locale="da-DK")
    await extended.post({**RECALL, "notify": {"users": [1, 2, 3]}})
    said = [(await extended.inbox(user))["data"][0] for user in (1, 2, 3)]
    english = "Roadster <GT> of Jane Doe is recalled <br> Please call"
    swedish = "Roadster <GT> för Jane Doe återkallas <br> Please call"
    assert [entry["message"] for entry in said] == [english, swedish, english]
    assert said[0]["message_formatted"].startswith("<p><strong>Roadster &lt;GT&gt;</strong> of <strong>Jane Doe")
    assert said[0]["data"] == RECALL["data"]
    subjects = await extended.app_state.database.rows("select subject from subjects order by 1")
    assert [row["subject"] for row in subjects] == [f"contact:{UUID}", f"vehicle:{UUID}"]


async def test_recipient_gets_the_most_specific_language_of_the_locale(url: str, tmp_path: Path) -> None:
    words = '[overdue_task]\ntitle = "Tarefa"\nsays = "{}"'
    languages = {"pt": words.format("Portugal"), "pt_BR": words.format("Brasil")}
    async with serving(url, Catalogue.load(folder_of(tmp_path / "own", **languages))) as api:
        locales = {1: "pt", 2: "pt_PT", 3: "pt-BR", 4: "pt_br", 5: "en-GB", 6: "sv"}
        for user, locale in locales.items():
            await api.people(user, locale=locale)
        sample = api.app_state.catalogue.samples["overdue_task"]
        await api.post({**sample["event"], "notify": {"users": list(locales)}})
        said = [(await api.inbox(user))["data"][0]["message"] for user in locales]
        english = sample["notification"]["message"]
        assert said == ["Portugal", "Portugal", "Brasil", "Brasil", english, english]


async def test_custom_wording_replaces_the_builtin_one(extended: Api) -> None:
    await extended.people(1)
    await extended.people(2, locale="sv")
    shown = await kinds(extended, 1)
    assert shown["lead_escalated"]["label"] == "Lead waiting"
    assert shown["lead_escalated"]["default"]["urgent"] is False
    assert shown["recall_announced"] == {
        "name": "recall_announced",
        "label": "Recall",
        "group": "recalls",
        "group_label": "Recalls",
        "channels": ["push", "web_push"],
        "default": {"push": True, "web_push": True, "urgent": True},
        "locked": {"push": False, "web_push": False, "urgent": False},
    }
    swedish = await kinds(extended, 2)
    assert (swedish["recall_announced"]["label"], swedish["note"]["label"]) == ("Återkallelse", "Omnämnande")
    assert swedish["recall_announced"]["group_label"] == "Återkallelser"


@pytest.mark.parametrize(
    ("locale", "label", "group"),
    [
        ("en-GB", "Task overdue", "Tasks"),
        ("da_DK", "Frist overskredet", "Opgaver"),
        ("de-AT", "Aufgabe überfällig", "Aufgaben"),
    ],
)
async def test_kinds_are_listed_in_the_callers_language(api: Api, locale: str, label: str, group: str) -> None:
    await api.people(1, locale=locale)
    shown = await kinds(api, 1)
    assert set(shown) == set(api.app_state.catalogue.kinds)
    assert (shown["overdue_task"]["label"], shown["overdue_task"]["group_label"]) == (label, group)
    assert {name for name, kind in shown.items() if kind["default"]["urgent"]} == {"lead_escalated"}
    assert [kind["group"] for kind in shown.values()] == sorted(
        [kind["group"] for kind in shown.values()], key=[*dict.fromkeys(kind["group"] for kind in shown.values())].index
    )


@pytest.mark.parametrize("language", ["da", "de"])
def test_builtin_languages_have_every_title_sentence_group_and_label(catalogue: Catalogue, language: str) -> None:
    for name, kind in catalogue.kinds.items():
        alike = kind.wordings[language].title == kind.wordings["en"].title
        assert not alike or (language, name) == ("da", "high_fived/badge_achieved"), name
        assert catalogue.group_of(kind.group, language), name
    for name, sample in catalogue.samples.items():
        event = sample["event"]
        words = (event.get("data", {}), event.get("params", {}))
        said, english = (catalogue.render(name, spoken, *words).message for spoken in (language, "en"))
        assert said != english or name == "custom", name
    assert all(catalogue.phrase(name, language) != catalogue.phrase(name, "en") for name in PHRASES)


def test_catalogue_check_prints_kinds_and_languages(own: Path) -> None:
    result = CliRunner().invoke(app, ["catalogue", "check", str(own)])
    assert (result.exit_code, result.output) == (0, "25 kinds in 4 languages: en, da, de, sv\n")


def test_catalogue_check_prints_every_error_with_place_and_remedy(own: Path) -> None:
    (own / "fi.toml").write_text('[noet]\ntitle = "Maininta"\n[note]\nsays = "{usr}"\n', encoding="utf-8")
    result = CliRunner().invoke(app, ["catalogue", "check", str(own)])
    assert isinstance(result.exception, Refusal)
    assert str(result.exception).splitlines() == [
        f"{own}/fi.toml: [noet] is not a kind; write `note`.",
        f"{own}/fi.toml: [note] `says` names {{usr}}, a word that it does not have; write `user`.",
    ]


def test_missing_catalogue_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="is not a folder"):
        Catalogue.load(tmp_path / "none")


SAMPLE = f"""
[order_moved.sample]
params = {{}}
data.days = 3
data.order = {{ id = "{UUID}", number = 7, state = "on_its_way", schema = "s", model_copy = "m" }}
data.user = {{ id = 4, first_name = "Jane", last_name = "Doe", profile_picture = "https://example.com" }}
"""


def test_sample_of_a_custom_kind_is_an_event_with_its_notification(tmp_path: Path) -> None:
    catalogue = Catalogue.load(folder_of(tmp_path, kinds_ours=OURS + SAMPLE))
    data = {
        "user": {"id": 4, "first_name": "Jane", "last_name": "Doe", "profile_picture": "https://example.com"},
        "order": {"id": UUID, "number": 7, "state": "on_its_way", "schema": "s", "model_copy": "m"},
        "days": 3,
    }
    assert catalogue.samples["order_moved"] == {
        "name": "order_moved",
        "event": {"type": "order_moved", "notify": {"users": [2]}, "data": data, "params": {}},
        "notification": {
            "type": "order_moved",
            "data": data,
            "message": "Jane Doe says: no. 7 is on its way, 3 days late",
            "message_formatted": (
                "<p><strong>Jane Doe</strong> says: no. 7 is <strong>on its way</strong>, 3 days late</p>"
            ),
        },
    }
    assert list(catalogue.samples["order_moved"]["event"]["data"]) == ["user", "order", "days"]
    assert catalogue.samples.keys() == {*CATALOGUE.samples, "order_moved"}


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("data.days = 3", "", "has a sample that is not a valid event: The data.days field is required; correct"),
        (
            'state = "on_its_way"',
            "state = 5",
            "has a sample that is not a valid event: The data.order.state field must",
        ),
        (
            'data.user = { id = 4, first_name = "Jane", last_name = "Doe", profile_picture = "https://example.com" }',
            "data.user = 4",
            "has a sample whose `data.user` is an id; write the user as an object",
        ),
    ],
)
def test_invalid_sample_is_reported(tmp_path: Path, old: str, new: str, wrong: str) -> None:
    assert old in SAMPLE
    with pytest.raises(Refusal) as caught:
        Catalogue.load(folder_of(tmp_path, kinds_ours=OURS + SAMPLE.replace(old, new)))
    [line] = str(caught.value).splitlines()
    assert line.startswith(f"{tmp_path / 'kinds-ours.toml'}: [order_moved] {wrong}")


WORDS = """
[tagged]
title = "Tagged"
says = "{name}: {tags}: {story}: {order.number}"
group = "orders"
data = { name = "string", tags = "list of words", story = "text", order = "order", gone = "string or null" }
params = { name = "words", more = "optional text" }
quotes = "more"
link = "https://example.com/{tags}/{gone}"
"""


def test_words_of_a_custom_kind_are_rendered_by_their_type(tmp_path: Path) -> None:
    catalogue = Catalogue.load(folder_of(tmp_path, kinds_ours=OURS + WORDS))
    order = {"id": UUID, "number": 7, "state": "x", "schema": "s", "model_copy": None}
    data = {"name": "of data", "tags": ["a", "<b>"], "story": "one\ntwo", "order": order, "gone": None}
    plain = catalogue.render("tagged", "en", data, {"name": "of params"})
    assert plain.message == "of params: a, <b>: one\ntwo: 7"
    assert plain.message_formatted == "<p>of params: a, &lt;b&gt;: one<br>two: 7</p>"
    quoted = catalogue.render("tagged", "en", data, {"name": "x", "more": "three\nfour"})
    assert quoted.message_formatted.endswith(": 7</p><br><p><em>three<br>four</em></p>")
    assert catalogue.kinds["tagged"].link_of(data, {"name": "x"}) == "https://example.com/a%2C%20%3Cb%3E/"
