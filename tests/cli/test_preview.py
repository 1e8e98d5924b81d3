"""`tocsin preview` prints the exact pushes of a kind without a database or keys."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.support.apns import made as made_apns
from tests.support.built_in import CATALOGUE
from tests.support.fcm import made as made_fcm
from tests.support.web_push import AUTH, OURS, P256DH, opened
from tocsin.api.app import build
from tocsin.api.openapi import document
from tocsin.catalogue import Catalogue
from tocsin.cli.commands import app
from tocsin.cli.preview import BADGE, ID, TOPIC, previewed, pushes_of
from tocsin.demo.events import event_of
from tocsin.demo.run import PEOPLE
from tocsin.errors import Refusal
from tocsin.http_client.messages import Request
from tocsin.notifications import to_json
from tocsin.push.channels import Channel, Push
from tocsin.push.channels.vapid import Vapid
from tocsin.push.channels.web_push import WebPush

KINDS = sorted(CATALOGUE.kinds)
NOW = datetime(2031, 1, 2, 3, 4, 5, tzinfo=UTC)

OWN_KIND = """
[parcel_came]
title = "Parcel"
says = "A parcel came for {contact}"
group = "cases"
params = { contact = "words" }
"""


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder without a database and without keys."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOCSIN_DATA_DIR", str(tmp_path / "nothing"))


@pytest.fixture(scope="session")
def channels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Channel]:
    """The channels of all providers; to check their keys takes longer than a push."""
    folder = tmp_path_factory.mktemp("channels")
    return {
        "apns": made_apns(folder),
        "fcm": made_fcm(folder, clock=NOW.timestamp),
        "web_push": WebPush([Vapid(OURS.private)]),
    }


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["preview", *arguments])


def request(channel: Channel, push: Push) -> Request:
    made = channel.request(push)
    assert isinstance(made, Request), made
    return made


def strings(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict | list):
        for value in found.values() if isinstance(found, dict) else found:
            yield from strings(value)


@pytest.mark.parametrize("content", ["full", "title", "none"])
@pytest.mark.parametrize("language", ["en", "da", "de"])
@pytest.mark.parametrize("kind", KINDS)
def test_preview_shows_what_the_push_channels_send(
    kind: str, language: str, content: Any, channels: dict[str, Channel]
) -> None:
    shown = previewed(CATALOGUE, kind, language, content, topic="com.example.crm", now=NOW)
    pushes = pushes_of(CATALOGUE, kind, language, content, NOW)
    browser = replace(pushes["Web"].address, p256dh=P256DH, auth=AUTH)
    apple = request(channels["apns"], pushes["iOS"])
    google = request(channels["fcm"], pushes["Android"])
    page = request(channels["web_push"], replace(pushes["Web"], address=browser))
    headers = dict(apple.headers)
    del headers["authorization"]
    assert shown == {
        "apns": {"headers": headers, "body": json.loads(apple.body)},
        "fcm": json.loads(google.body),
        "web_push": opened(page.body),
    }


@pytest.mark.parametrize("language", ["en", "da", "de"])
@pytest.mark.parametrize("kind", KINDS)
def test_preview_of_each_kind_and_language_fits_push_limits(kind: str, language: str) -> None:
    result = run(kind, "--language", language)
    assert (result.exit_code, result.stderr) == (0, "")
    shown = json.loads(result.stdout)
    event = CATALOGUE.samples[kind]["event"]
    data, params = event.get("data", {}), event.get("params", {})
    words = CATALOGUE.render(kind, language, data, params)
    title = CATALOGUE.kinds[kind].wordings[language].title_of(data, params)
    told = {"title": title, "body": words.message.replace(" <br> ", "\n")}
    assert shown["apns"]["body"]["aps"]["alert"] == told
    assert shown["fcm"]["message"]["notification"] == told
    assert {name: shown["web_push"][name] for name in told} == told
    assert len(to_json(shown["apns"]["body"]).encode()) <= 4096
    assert len(to_json(shown["fcm"]).encode()) <= 4096
    assert len(to_json(shown["web_push"]).encode()) <= 2800


@pytest.mark.parametrize("kind", KINDS)
def test_preview_with_title_only_has_no_customer_data(kind: str) -> None:
    event = CATALOGUE.samples[kind]["event"]
    variant = event.get("data", {}).get("event", {}).get("type")
    result = run(kind, "--content", "title")
    shown = json.loads(result.stdout)
    assert shown["apns"]["body"]["aps"]["alert"] == {"title": CATALOGUE.kinds[kind].title, "body": ""}
    assert shown["apns"]["body"]["aps"]["mutable-content"] == 1
    found = [text for text in strings([event.get("data"), event.get("params")]) if text and text != variant]
    assert found
    assert [text for text in found if text in result.stdout] == []


def test_preview_without_content_has_generic_title(tmp_path: Path) -> None:
    shown = json.loads(run("note", "--content", "none").stdout)
    assert shown["web_push"]["title"] == CATALOGUE.phrase("pushed", "en")
    assert shown["web_push"]["notification"] == {"id": str(ID), "type": "", "data": {}, "link": None}
    assert not (tmp_path / "nothing").exists()


def test_preview_shows_apns_headers_without_a_key() -> None:
    headers = json.loads(run("note").stdout)["apns"]["headers"]
    assert headers.pop("apns-expiration").isdecimal()
    assert headers == {
        "apns-topic": TOPIC,
        "apns-push-type": "alert",
        "apns-priority": "10",
        "apns-id": str(ID),
        "apns-collapse-id": str(ID),
        "content-type": "application/json",
    }


def test_preview_uses_settings_as_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOCSIN_PUSH_CONTENT", "title")
    monkeypatch.setenv("TOCSIN_APNS_TOPIC", "com.example.crm")
    shown = json.loads(run("note").stdout)
    assert shown["apns"]["headers"]["apns-topic"] == "com.example.crm"
    assert shown["web_push"]["body"] == ""
    assert shown["web_push"]["badge"] == BADGE
    assert json.loads(run("note", "--content", "full").stdout)["web_push"]["body"]


def test_preview_is_indented_and_keeps_unicode() -> None:
    said = run("note", "--language", "da-DK").stdout
    assert said.startswith('{\n  "apns": {\n    "headers": {\n')
    assert "\\u" not in said


@pytest.mark.parametrize(
    ("kind", "instead"),
    [
        ("noet", "use note"),
        ("high_fived", "use high_fived/"),
        ("zzzzzz", f"use one of {', '.join(CATALOGUE.samples)}"),
    ],
)
def test_preview_of_unknown_kind_suggests_similar_kinds(kind: str, instead: str) -> None:
    result = run(kind)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"tocsin: Unknown kind '{kind}': {instead}")
    assert result.stderr.count("\n") == 1


def test_preview_of_custom_kind_reports_missing_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kinds-of-ours.toml").write_text(OWN_KIND, encoding="utf-8")
    monkeypatch.setenv("TOCSIN_CATALOGUE_DIR", str(tmp_path))
    result = run("parcel_came")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has no sample" in result.stderr


def test_preview_shows_custom_wording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "da.toml").write_text('[note]\ntitle = "Omtalt"\n', encoding="utf-8")
    monkeypatch.setenv("TOCSIN_CATALOGUE_DIR", str(tmp_path))
    assert json.loads(run("note", "--language", "da").stdout)["web_push"]["title"] == "Omtalt"


def test_preview_reports_sample_that_no_longer_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = '[note]\nparams = { contact = "words", contact_id = "optional uuid", body = "text", code = "words" }\n'
    (tmp_path / "kinds-of-ours.toml").write_text(changed, encoding="utf-8")
    monkeypatch.setenv("TOCSIN_CATALOGUE_DIR", str(tmp_path))
    result = run("note")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "params.code" in result.stderr


def test_preview_reports_a_kind_that_fits_no_push(tmp_path: Path) -> None:
    (tmp_path / "kinds-of-ours.toml").write_text(f'[note]\ncategory = "{"x" * 5000}"\n', encoding="utf-8")
    with pytest.raises(Refusal, match="4096 bytes"):
        previewed(Catalogue.load(tmp_path), "note", "en", "full")


OWN_SAMPLE = """
[van_sold]
title = "Sold"
says = "**{user}** sold **{car}**"
data = { user = "user", car = "string" }
group = "sales"

[van_sold.sample]
data = { user = { id = 4, first_name = "Bernita", last_name = "Kilback", profile_picture = "" }, car = "<b>van</b>" }
"""


def test_custom_kind_with_sample_is_in_preview_openapi_and_demo(tmp_path: Path) -> None:
    (tmp_path / "kinds-of-ours.toml").write_text(OWN_SAMPLE)
    found = Catalogue.load(tmp_path)
    said = previewed(found, "van_sold", "en", "full")
    assert "Bernita Kilback" in said["apns"]["body"]["aps"]["alert"]["body"]
    assert found.samples["van_sold"]["notification"] == {
        "type": "van_sold",
        "data": found.samples["van_sold"]["event"]["data"],
        "message": "Bernita Kilback sold <b>van</b>",
        "message_formatted": "<p><strong>Bernita Kilback</strong> sold <strong>&lt;b&gt;van&lt;/b&gt;</strong></p>",
    }
    described = json.dumps(document(build(), found))
    assert "sold <b>van</b>" in described
    event = event_of(found.kinds["van_sold"], found.samples["van_sold"]["event"], PEOPLE[0], Random(1))  # noqa: S311
    assert found.check(event["type"], event["data"], event["params"]).kind == "van_sold"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ('data = { car = "x" }', "The data.user field is required"),
        ('data = { user = 4, car = "x" }', "write the user as an object"),
        ("data = { user = 4, car = 5 }", "The data.car field must be a string"),
        ('words = "x"', "`sample.words` is not one of its keys"),
        ('data = "x"', "`sample.data` is 'x'; write a table"),
    ],
)
def test_invalid_sample_is_reported_with_its_error(tmp_path: Path, wrong: str, told: str) -> None:
    (tmp_path / "kinds-of-ours.toml").write_text(f"{OWN_SAMPLE.rpartition('data =')[0]}{wrong}\n")
    with pytest.raises(Refusal) as refused:
        Catalogue.load(tmp_path)
    assert told in str(refused.value)
    assert "[van_sold]" in str(refused.value)
