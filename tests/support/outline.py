"""The outline of an API document: what clients hold on to, without its words, names and examples.

`python -m tests.support.outline` prints that of the document as it is: see `test_api_outline.py`.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 8


def outline(document: dict[str, Any]) -> dict[str, Any]:
    """Return what each operation takes and answers, by method and path."""
    return {
        f"{method.upper()} {path}": _operation(document, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }


def _operation(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    body = operation.get("requestBody", {})
    return {
        "id": operation["operationId"],
        "security": operation["security"],
        "parameters": dict(
            sorted(
                (f"{each['in']} {each['name']}", {"required": each["required"], **_type(each["schema"])})
                for each in operation.get("parameters", [])
            )
        ),
        "body": {
            "required": body.get("required", False),
            "media": sorted(body.get("content", {})),
            "fields": _fields_of(document, body),
        },
        "answers": {
            status: _answer(document, _resolved(document, answer))
            for status, answer in sorted(operation["responses"].items())
        },
    }


def _answer(document: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    examples = [
        example["value"] for of in answer.get("content", {}).values() for example in of.get("examples", {}).values()
    ]
    errors = [error for each in examples if isinstance(each, dict) for error in each.get("errors", [])]
    codes = sorted({error["code"] for error in errors})
    return {
        "headers": sorted(answer.get("headers", {})),
        "links": sorted(answer.get("links", {})),
        **({"codes": codes} if codes else {"fields": _fields_of(document, answer)}),
    }


def _fields_of(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a body by their paths: the type of each, and whether it is always there."""
    content = part.get("content", {})
    schema = next(iter(content.values()))["schema"] if content else {}
    return dict(sorted(_fields(document, schema, "", MAX_DEPTH)))


def _fields(document: dict[str, Any], schema: dict[str, Any], path: str, depth: int) -> Iterator[tuple[str, Any]]:
    schema = _whole(document, schema)
    choices = [] if "[]" in path else schema.get("oneOf", [])  # the events of a batch are as those that are posted
    for position, choice in enumerate(choices):
        yield from _fields(document, choice, f"{path}|{position}", depth - 1)
    if depth and "items" in schema:
        yield from _fields(document, schema["items"], f"{path}[]", depth - 1)
    if depth and isinstance(schema.get("additionalProperties"), dict):
        yield from _fields(document, schema["additionalProperties"], f"{path}{{}}", depth - 1)
    for name, of in schema.get("properties", {}).items() if depth else ():
        inner = f"{path}.{name}" if path else name
        yield inner, {"required": name in schema.get("required", ()), **_type(_whole(document, of))}
        yield from _fields(document, of, inner, depth - 1)


def _type(schema: dict[str, Any]) -> dict[str, Any]:
    kept = ("type", "format", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "enum", "const")
    return {key: schema[key] for key in kept if key in schema}


def _whole(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema in one piece: what it refers to, all of what it has together, and null as one of its types."""
    schema = _resolved(document, schema)
    if "allOf" in schema:
        parts = [_whole(document, part) for part in schema["allOf"]]
        required = [name for part in parts for name in part.get("required", [])]
        properties = {name: of for part in parts for name, of in part.get("properties", {}).items()}
        return {"type": "object", "required": required, "properties": properties}
    match schema.get("anyOf"):
        case [one, {"type": "null"}]:
            found = _whole(document, one)
            return {**found, "type": [found["type"], "null"]}
    return schema


def _resolved(document: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    place = document
    for key in found["$ref"].removeprefix("#/").split("/") if "$ref" in found else ():
        place = place[key]
    return place if "$ref" in found else found


if __name__ == "__main__":
    from tocsin.api.app import build
    from tocsin.api.openapi import document as made
    from tocsin.catalogue import Catalogue

    given = json.load(sys.stdin) if not sys.stdin.isatty() else made(build(), Catalogue.load())
    lines = [f"{json.dumps(name)}: {json.dumps(of)}" for name, of in outline(given).items()]
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")
