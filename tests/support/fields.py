"""Every field of every request that can hold a string, found in the OpenAPI document, and requests that fill one."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from tests.support import imports
from tocsin.formats import NotificationLine, TeamLine, UserLine
from tocsin.push.device_formats import DeviceLine

Path = tuple[str | int, ...]

PARAMETERS = {
    "user_id": "1", "team_id": "7", "key": "a", "token": "aa" * 32,
    "event_id": "00000000-0000-4000-8000-000000000001", "notification_id": "00000000-0000-4000-8000-000000000001",
    "device_id": "00000000-0000-4000-8000-000000000001",
}  # fmt: skip
"""Values of the parameters of paths that are not the tested one."""

JSON = "application/json"

ANY_HEADER = (
    "Accept", "Accept-Encoding", "Authorization", "Connection", "Content-Encoding", "Content-Type", "Expect",
    "Forwarded", "Host", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Origin", "Transfer-Encoding",
    "User-Agent", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Request-Id", "traceparent",
)  # fmt: skip
"""Headers that the service or its libraries read on each route, or that proxies and browsers send."""


@dataclass(frozen=True)
class Field:
    """A place of a request for a string. `example` is the body around it."""

    method: str
    path: str
    tag: str
    place: str
    name: str | Path
    media_type: str = ""
    example: Any = None

    def __str__(self) -> str:
        name = ".".join(map(str, self.name)) if isinstance(self.name, tuple) else self.name
        return f"{self.method} {self.path} {self.place} {name}"

    def request(self, text: str) -> "Filled":
        """Return the request with this text in the field."""
        values = {**PARAMETERS, **({str(self.name): text} if self.place == "path" else {})}
        path = self.path
        for name, value in values.items():
            path = path.replace(f"{{{name}}}", quote(value.encode("utf-8", "surrogatepass"), safe=""))
        if self.place == "query":
            path += f"?{urlencode({str(self.name): text.encode('utf-8', 'surrogatepass')})}"
        headers = {str(self.name): text} if self.place == "header" else {}
        return Filled(self.method, path, headers, *self._body(text))

    def _body(self, text: str) -> tuple[str, bytes]:
        if not self.media_type:
            return "", b""
        body = deepcopy(self.example)
        if self.place == "body":
            body = put(body, tuple(self.name), text)
        elif self.place == "name":
            put(body, (*self.name, text), 1)
        if isinstance(body, str) and self.media_type == NDJSON:
            return self.media_type, body.encode("utf-8", "surrogatepass")
        return self.media_type, json.dumps(body).encode()


@dataclass(frozen=True)
class Filled:
    """A request."""

    method: str
    path: str
    headers: Mapping[str, str]
    media_type: str
    body: bytes


def put(body: Any, path: Path, value: Any) -> Any:
    """Put a value into a body at a path, creating what is missing there; return the body."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(first, int):
        body = body if isinstance(body, list) else []
        body.extend([{}] * (first + 1 - len(body)))
        body[first] = put(body[first], rest, value)
        return body
    body = body if isinstance(body, dict) else {}
    body[first] = put(body.get(first), rest, value)
    return body


NDJSON = "application/x-ndjson"

_LINES = (
    (UserLine, imports.user(1)),
    (TeamLine, imports.team(7, 1)),
    (DeviceLine, imports.device(1)),
    (NotificationLine, imports.notification(1)),
)
"""The models of the lines of imports, of which the document has only names."""


def fields_of(document: Mapping[str, Any]) -> Iterator[Field]:
    """Yield every field: headers, parameters, strings of schemas and examples of bodies and lines, names in bodies."""
    for name in ANY_HEADER:
        yield Field("GET", "/notifications", "notifications", "header", name)
        yield Field("POST", "/notifications", "notifications", "header", name, JSON, {"message": "x"})
    yield from _of_lines()
    yield from _of_operations(document)


def _of_lines() -> Iterator[Field]:
    for model, line in _LINES:
        schema = {"properties": {next(iter(line)): model.model_json_schema()}}
        for place, name, example in _in_body(schema["properties"][next(iter(line))], schema, [line]):
            yield Field("POST", "/directory/import", "directory", place, name, NDJSON, example)


def _of_operations(document: Mapping[str, Any]) -> Iterator[Field]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = operation["tags"][0]
            bodies = list(_bodies(document, operation)) or [("", {}, [None])]
            media_type, _, examples = bodies[0]
            for parameter in operation.get("parameters", ()):
                found = _resolved(document, parameter)
                yield Field(method.upper(), path, tag, found["in"], found["name"], media_type, examples[0])
            for media_type, schema, examples in bodies:
                if media_type:
                    for place, name, example in _in_body(document, schema, examples):
                        yield Field(method.upper(), path, tag, place, name, media_type, example)


def _bodies(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[tuple[str, Any, list[Any]]]:
    for media_type, content in _resolved(document, operation.get("requestBody", {})).get("content", {}).items():
        examples = [example["value"] for example in content.get("examples", {}).values()]
        yield media_type, content["schema"], examples or [{}]


def _in_body(document: Mapping[str, Any], schema: Any, examples: list[Any]) -> Iterator[tuple[str, Path, Any]]:
    exemplified = list(dict.fromkeys((path, number) for number, each in enumerate(examples) for path in _strings(each)))
    yield from (("body", path, examples[number]) for path, number in exemplified)
    there = {path for path, _ in exemplified}
    for path in dict.fromkeys(_leaves(document, schema)):
        if path not in there:
            yield "body", path, max(examples, key=partial(_depth, path))
    for path in _objects(examples[0]):
        yield "name", path, examples[0]


def _strings(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of the strings in a value; of a list, that of its first."""
    if isinstance(value, str):
        yield path
    for name, inner in _inside(value):
        yield from _strings(inner, (*path, name))


def _objects(value: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(value, dict):
        yield path
    for name, inner in _inside(value):
        yield from _objects(inner, (*path, name))


def _inside(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list) and value:
        yield 0, value[0]


def _leaves(document: Mapping[str, Any], schema: Any, path: Path = (), above: tuple[int, ...] = ()) -> Iterator[Path]:
    """Yield the paths of a schema at which a string is valid."""
    schema = _resolved(document, schema)
    if id(schema) in above:
        return
    above = (*above, id(schema))
    if schema.get("type") == "string" or any(isinstance(one, str) for one in schema.get("enum", ())):
        yield path
    for several in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(several, ()):
            yield from _leaves(document, one, path, above)
    for name, one in schema.get("properties", {}).items():
        yield from _leaves(document, one, (*path, name), above)
    if "items" in schema:
        yield from _leaves(document, schema["items"], (*path, 0), above)


def _resolved(document: Mapping[str, Any], found: Any) -> Any:
    while "$ref" in found:
        place: Any = document
        for key in found["$ref"].removeprefix("#/").split("/"):
            place = place[key]
        found = place
    return found


def _depth(path: Path, value: Any) -> int:
    """Return how much of a path there is in a value."""
    for depth, name in enumerate(path):
        try:
            value = value[name]
        except (LookupError, TypeError):
            return depth
    return len(path)
