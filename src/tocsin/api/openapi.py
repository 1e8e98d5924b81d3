"""The OpenAPI 3.1 document: FastAPI makes it of the routes; the catalogue's kinds and what phones get are added."""

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, RouteContext
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from tocsin import __version__
from tocsin.api.answers import Errors
from tocsin.api.body import MAX_BODY_BYTES
from tocsin.api.documented import JSON, problem_answer
from tocsin.api.examples import examples
from tocsin.api.pushes import PUSHES, pushes
from tocsin.api.requests import MAX_BATCH_BODY_BYTES
from tocsin.api.schemas import Schema, of_catalogue, parameter, tidied
from tocsin.catalogue import Catalogue
from tocsin.errors import (
    ContentType,
    HeadTooLarge,
    InternalError,
    Malformed,
    MethodNotAllowed,
    Missing,
    NotFound,
    Problem,
    RateLimited,
    Timeout,
    TooLarge,
    Unauthenticated,
    Unauthorized,
    Unavailable,
)
from tocsin.formats import DeviceBody, DeviceWithToken, NotificationLine, TeamBody, UserBody
from tocsin.push.probe import MAX_PER_MINUTE

INFO: dict[str, Any] = {
    "title": "Tocsin",
    "version": __version__,
    "summary": "A notification service for business applications.",
    "description": f"""Your back end posts events; the people concerned find notifications in their inboxes.

JSON in, JSON out, UTF-8. Times are UTC, `YYYY-MM-DD HH:MM:SS`. Ids of users and teams are integers, all others UUIDs.
A call needs `Authorization: Bearer <JWT>`: a user's token gives access to that user's own inbox and devices, a
service's token to what its scopes name.

Requests are strict: a field of `data` or `params` that a kind does not have is refused. Answers are open: kinds,
fields and codes may be added, so ignore what you do not know.

Every answer that is not a success has the form of `Errors` and lists all errors of the request at once. Beside what
each operation lists, an unknown path is 404 `not_found`, a method that a path does not support 405
`method_not_allowed` with `Allow`, and a request that is not HTTP 400 `malformed`. A body has at most
{MAX_BODY_BYTES // 2**20} MiB, that of a batch {MAX_BATCH_BODY_BYTES // 2**20} MiB.""",
    "contact": {"name": "The maintainers of Tocsin"},
    "license_info": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}

HEADERS = {
    "X-Request-Id": "in every answer: the request's own if it sent a valid one, else a new one; it is also in the log",
    "ETag": "changes with every change of the inbox; send it as `If-None-Match`",
    "WWW-Authenticate": "what is wrong with the credentials (RFC 6750)",
    "Allow": "the methods that the path supports",
    "Retry-After": "seconds to wait before the next attempt",
    "RateLimit-Limit": "requests allowed per minute",
    "RateLimit-Remaining": "requests left in the current minute",
    "RateLimit-Reset": "seconds until the limit is reset",
}

PROBLEMS: tuple[Problem, ...] = (
    Malformed(),
    Unauthenticated(),
    Unauthorized("This endpoint requires a service token with the scope events:write.", scope="events:write"),
    NotFound(),
    MethodNotAllowed(["GET", "POST"]),
    Timeout(),
    Missing(),
    TooLarge(MAX_BODY_BYTES),
    ContentType(),
    RateLimited(MAX_PER_MINUTE, 42),
    HeadTooLarge(),
    InternalError("6a1d2c04f2f14c6cb9f1d2a0c7b3e5f8"),
    Unavailable(),
)
"""One of each problem that is described once for all operations."""


TAGS = {
    "events": "What happened and whom it concerns. Needs a service's token with the scope `events:write`;"
    " one with `operations` sees all events.",
    "directory": "Who the users and teams are. Needs a service's token with the scope `directory:write`.",
    "notifications": "The caller's own inbox. Needs a user's token.",
    "devices": "The caller's own phones and browsers. Needs a user's token.",
    "operations": "Whether the service is alive and ready, without a token;"
    " what it did, with a token of the scope `operations`.",
    "pushes": "What phones and browsers get from their push services.",
}
"""The tags in the order in which an application meets them."""

BESIDE = (Errors, NotificationLine, UserBody, TeamBody, DeviceBody, DeviceWithToken)
"""Models that are referred to by name."""


class _Described(RouteContext):
    """A route as the document has it: HEAD goes without saying."""

    @property
    def methods(self) -> set[str]:
        return {method for method in super().methods or () if method != "HEAD"}


def document(app: FastAPI, catalogue: Catalogue, url: str = "") -> dict[str, Any]:
    """Return the document of the routes that `app` has; `url` is where it is reached, else the root of its host."""
    found = get_openapi(
        **INFO,
        routes=list(_in_order(app.routes)),
        servers=[{"url": url or "/"}],
        tags=[{"name": tag, "description": description} for tag, description in TAGS.items()],
        separate_input_output_schemas=False,
    )
    _forget_fastapis_422(found)
    schemas, names = _schemas(found["components"]["schemas"], catalogue)
    components = {
        "schemas": {**schemas, **PUSHES},
        "responses": {type(problem).__name__: problem_answer(problem) for problem in PROBLEMS},
        "headers": {
            name: {"description": description, "schema": {"type": "string"}} for name, description in HEADERS.items()
        },
        "securitySchemes": found["components"]["securitySchemes"],
    }
    paths = _named(found["paths"], names)
    _illustrate(paths, catalogue)
    return {**found, "paths": paths, "webhooks": pushes(catalogue), "components": components}


def _forget_fastapis_422(found: dict[str, Any]) -> None:
    """Remove the answer that FastAPI adds where a route has parameters that it never finds invalid."""
    for operation in (operation for path in found["paths"].values() for operation in path.values()):
        if "examples" not in operation["responses"].get("422", {"content": {JSON: {"examples"}}})["content"][JSON]:
            del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        found["components"]["schemas"].pop(name, None)


def _in_order(routes: Iterable[BaseRoute]) -> Iterator[_Described]:
    """Yield the routes tag by tag."""
    described = [route for route in routes if isinstance(route, APIRoute)]
    for route in sorted(described, key=lambda route: list(TAGS).index(str(route.tags[0]))):
        yield _Described(route)


def _schemas(found: dict[str, Schema], catalogue: Catalogue) -> tuple[dict[str, Schema], dict[str, str]]:
    """Return all schemas by the names in the document, and these names by those of the classes."""
    _, beside = models_json_schema(
        [(model, "validation") for model in BESIDE], ref_template="#/components/schemas/{model}"
    )
    found = {**beside["$defs"], **found}
    names = {name: str(schema.get("title", name)) for name, schema in found.items()}
    made = {names[name]: _named(tidied(schema), names) for name, schema in sorted(found.items())}
    taken = {*made, *PUSHES}
    return {**made, **of_catalogue(catalogue, taken)}, names


def _named(value: Any, names: dict[str, str]) -> Any:
    """Return a part of the document with the references that its schemas' names ask for, and its parameters tidied."""
    if isinstance(value, list):
        return [_named(part, names) for part in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        place, _, name = value["$ref"].rpartition("/")
        return {"$ref": f"{place}/{names.get(name, name)}"}
    found = {key: _named(part, names) for key, part in value.items()}
    return {**found, "schema": parameter(found["schema"])} if "schema" in found and "in" in found else found


def _illustrate(paths: dict[str, Any], catalogue: Catalogue) -> None:
    """Give each JSON body and answer the examples of its schema."""
    shown = examples(catalogue)
    for content in _contents(paths):
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if "examples" not in content and name:
            content["examples"] = {example: {"value": value} for example, value in shown[name].items()}


def _contents(value: Any) -> Iterator[dict[str, Any]]:
    for operation in (operation for path in value.values() for operation in path.values()):
        for part in (operation.get("requestBody", {}), *operation["responses"].values()):
            yield from part.get("content", {}).values()
