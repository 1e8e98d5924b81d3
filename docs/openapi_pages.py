"""The API reference of the site: Markdown made from the OpenAPI document of the service."""

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

Node = dict[str, Any]

METHODS = ("get", "post", "put", "patch", "delete")
SCHEMAS = "api-schemas.md"
MAX_EXAMPLE_LINES = 60
"""Lines of the longest example that is shown."""


class Document:
    """An OpenAPI document, with its references resolved."""

    def __init__(self, document: Node) -> None:
        self._document = document

    def operations_page(self) -> str:
        """Return the page with every operation, by tag."""
        lines = [
            "# API operations",
            "",
            "Made from the OpenAPI document that `tocsin openapi` prints and the service serves at `/openapi.json`.",
            f"[HTTP API](http-api.md) explains the concepts, [API schemas]({SCHEMAS}) lists all schemas.",
        ]
        groups = [*self._operations("paths"), *self._operations("webhooks")]
        for tag in self._document["tags"]:
            found = [entry for entry in groups if tag["name"] in entry[2].get("tags", [])]
            if found:
                lines += ["", f"## {tag['name'].capitalize()}", "", tag.get("description", "")]
                lines += chain.from_iterable(self._operation(*entry) for entry in found)
        return "\n".join(lines) + "\n"

    def schemas_page(self) -> str:
        """Return the page with every named schema."""
        lines = ["# API schemas", "", "The schemas of the [API operations](api.md)."]
        for name, schema in sorted(self._document["components"]["schemas"].items()):
            lines += ["", f"## {name}", ""]
            if schema.get("description"):
                lines += [schema["description"], ""]
            lines += self._fields(schema) or [self._type(schema, "")]
        return "\n".join(lines) + "\n"

    def _operations(self, part: str) -> Iterator[tuple[str, str, Node]]:
        for path, item in self._document.get(part, {}).items():
            for method in METHODS:
                if method in item:
                    shared = item.get("parameters", [])
                    own = item[method].get("parameters", [])
                    yield method.upper(), path, {**item[method], "parameters": [*shared, *own]}

    def _operation(self, method: str, path: str, operation: Node) -> list[str]:
        name = f"{method} {path}" if path.startswith("/") else path
        lines = ["", f"### {name} {{ #{operation['operationId']} }}", "", f"**{operation.get('summary', '')}**", ""]
        lines += [operation.get("description", ""), ""]
        parameters = [self._resolved(parameter) for parameter in operation["parameters"]]
        if parameters:
            lines += ["| parameter | in | type | meaning |", "| --- | --- | --- | --- |"]
            lines += [self._parameter(parameter) for parameter in parameters]
        if "requestBody" in operation:
            lines += ["", "**Request body**", "", *self._content(self._resolved(operation["requestBody"]), SCHEMAS)]
        lines += ["", "| answer | meaning | body |", "| --- | --- | --- |"]
        answers = {status: self._resolved(answer) for status, answer in operation["responses"].items()}
        lines += [self._answer(status, answer) for status, answer in answers.items()]
        for status, answer in answers.items():
            if status.startswith("2"):
                lines += self._example(answer, f"Example of {status}")
        return lines

    def _parameter(self, parameter: Node) -> str:
        name = f"`{parameter['name']}`" + (" (required)" if parameter.get("required") else "")
        kind = self._type(parameter.get("schema", {}), SCHEMAS)
        return f"| {name} | {parameter['in']} | {kind} | {_cell(parameter.get('description', ''))} |"

    def _answer(self, status: str, answer: Node) -> str:
        bodies = {self._type(media.get("schema", {}), SCHEMAS) for media in answer.get("content", {}).values()}
        return f"| {status} | {_cell(answer.get('description', ''))} | {', '.join(sorted(bodies))} |"

    def _content(self, body: Node, page: str) -> list[str]:
        lines = []
        for media, content in body.get("content", {}).items():
            schema = content.get("schema", {})
            lines += [f"`{media}`: {self._type(schema, page)}", "", *self._fields(self._resolved(schema), page), ""]
        return [*lines, *self._example(body, "Example")]

    def _example(self, body: Node, title: str) -> list[str]:
        for media, content in body.get("content", {}).items():
            shown = [content["example"]] if "example" in content else []
            shown += [self._resolved(each).get("value") for each in content.get("examples", {}).values()]
            if shown:
                is_json = "json" in media and "ndjson" not in media
                text = json.dumps(shown[0], indent=2, ensure_ascii=False) if is_json else str(shown[0])
                kept = text.rstrip("\n").split("\n")
                kept = kept if len(kept) <= MAX_EXAMPLE_LINES else [*kept[:MAX_EXAMPLE_LINES], "..."]
                return ["", f"{title}:", "", f"```{'json' if is_json else 'text'}", *kept, "```"]
        return []

    def _fields(self, schema: Node, page: str = "") -> list[str]:
        """Return a table of an object's fields; nothing for other schemas."""
        parts = [schema, *map(self._resolved, schema.get("allOf", []))]
        fields = {name: field for part in parts for name, field in part.get("properties", {}).items()}
        if not fields:
            return []
        required = {name for part in parts for name in part.get("required", [])}
        lines = ["| field | type | meaning |", "| --- | --- | --- |"]
        for name, field in fields.items():
            shown = f"`{name}`" + (" (required)" if name in required else "")
            meaning = field.get("description") or self._resolved(field).get("description", "")
            lines.append(f"| {shown} | {self._type(field, page)} | {_cell(meaning)} |")
        return lines

    def _type(self, schema: Node, page: str) -> str:
        """Return the type of a value in words, with links to named schemas."""
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[-1]
            return f"[{name}]({page}#{name.lower()})"
        for union in ("oneOf", "anyOf", "allOf"):
            if union in schema:
                return " or ".join(dict.fromkeys(self._type(each, page) for each in schema[union]))
        if "const" in schema:
            return f"`{json.dumps(schema['const'])}`"
        if "enum" in schema:
            return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
        kinds = schema.get("type", "any")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        names = [f"array of {self._type(schema.get('items', {}), page)}" if k == "array" else k for k in kinds]
        return " or ".join(names) + _limits(schema)

    def _resolved(self, node: Node) -> Node:
        """Follow a reference within the document."""
        while "$ref" in node:
            found: Any = self._document
            for part in node["$ref"].removeprefix("#/").split("/"):
                found = found[part.replace("~1", "/").replace("~0", "~")]
            node = found
        return node


def _limits(schema: Node) -> str:
    """Return the bounds of a value, such as `, 1 to 255 characters`."""
    found = [schema["format"]] if "format" in schema else []
    for low, high, unit in (
        ("minLength", "maxLength", " characters"),
        ("minimum", "maximum", ""),
        ("minItems", "maxItems", " items"),
    ):
        if low in schema and high in schema:
            found.append(f"{schema[low]} to {schema[high]}{unit}")
        elif high in schema:
            found.append(f"at most {schema[high]}{unit}")
        elif low in schema:
            found.append(f"at least {schema[low]}{unit}")
    if "default" in schema:
        found.append(f"default `{json.dumps(schema['default'])}`")
    return "".join(f", {limit}" for limit in found)


def _cell(text: str) -> str:
    """Return a text that fits into a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
