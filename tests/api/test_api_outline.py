"""The API stays compatible: its outline has everything that the checked-in outline has."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.outline import outline
from tocsin.api.app import build
from tocsin.api.openapi import document
from tocsin.catalogue import Catalogue

BEFORE: dict[str, Any] = json.loads((Path(__file__).parent / "api_outline.json").read_text("utf-8"))

NEVER_READ = {"notify.except", "notify.unknown"}
"""Fields of custom notifications that earlier documents listed and the service ignored."""


def lost(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield what the first outline has and the second lacks."""
    for name, operation in before.items():
        there = now.get(name)
        if there is None:
            yield name
            continue
        for part in ("id", "security", "parameters"):
            if operation[part] != there[part]:
                yield f"{name}: {part} {operation[part]} -> {there[part]}"
        yield from (f"{name}: {each}" for each in lost_of_body(operation["body"], there["body"]))
        if operation["answers"].keys() != there["answers"].keys():
            yield f"{name}: answers {list(operation['answers'])} -> {list(there['answers'])}"
        for status in operation["answers"].keys() & there["answers"].keys():
            found = lost_of_answer(operation["answers"][status], there["answers"][status])
            yield from (f"{name} {status}: {each}" for each in found)


def lost_of_body(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    if before["media"] != now["media"] or before["required"] != now["required"]:
        yield f"{before['media']} -> {now['media']}, required {before['required']} -> {now['required']}"
    for field in (before["fields"].keys() | now["fields"].keys()) - NEVER_READ:
        if before["fields"].get(field) != now["fields"].get(field):
            yield f"body {field}: {before['fields'].get(field)} -> {now['fields'].get(field)}"


def lost_of_answer(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for part in ("headers", "links", "codes"):
        if missing := set(before.get(part, ())) - set(now.get(part, ())):
            yield f"{part} {missing}"
    for field, of in before.get("fields", {}).items():
        if now["fields"].get(field) != of:
            yield f"{field}: {of} -> {now['fields'].get(field)}"


def test_api_keeps_every_operation_parameter_field_status_and_code(
    catalogue: Catalogue,
) -> None:
    assert len(BEFORE) == 56
    assert list(lost(BEFORE, outline(document(build(), catalogue)))) == []


def test_api_comparison_finds_removals(catalogue: Catalogue) -> None:
    now = outline(document(build(), catalogue))
    changes: list[Callable[[Any], Any]] = [
        lambda made: made.pop("GET /healthz"),
        lambda made: made["POST /events"]["parameters"].clear(),
        lambda made: made["POST /events"]["answers"].pop("409"),
        lambda made: made["POST /events"]["answers"]["409"]["codes"].pop(),
        lambda made: made["PUT /directory/users/{user_id}"]["body"]["fields"]["first_name"].update(required=False),
        lambda made: made["GET /notifications"]["answers"]["200"]["fields"].pop("pagination.total"),
    ]
    for change in changes:
        made = json.loads(json.dumps(now))
        change(made)
        assert len(list(lost(BEFORE, made))) == 1
