"""The OpenAPI 3.1 document, put together: the contract with its schemas and examples, and what phones get."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from tocsin import __version__
from tocsin.api.body import MAX_BODY_BYTES
from tocsin.api.contract import (
    CALLERS,
    CONTRACT,
    DESCRIPTIONS,
    IF_NONE_MATCH,
    IN_PATHS,
    JSON,
    LINKS,
    NO_KEY,
    ONCE,
    TAGS,
    Operation,
)
from tocsin.api.events import MAX_BATCH_BODY_BYTES
from tocsin.api.examples import Examples, examples
from tocsin.api.pushes import PUSHES, pushes
from tocsin.api.schemas import ref, schemas
from tocsin.catalogue import Catalogue
from tocsin.errors import (
    Conflict,
    ContentType,
    FieldError,
    HeadTooLarge,
    InternalError,
    Invalid,
    KeyReused,
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
from tocsin.push.probe import MAX_PER_MINUTE

_IN_BRACES = re.compile(r"{(\w+)}")

INFO = {
    "title": "Tocsin",
    "version": __version__,
    "summary": "The notification service that a business application plugs in.",
    "description": f"""Your back end posts what happened; the people concerned find it in their inbox.

JSON in, JSON out, UTF-8. Times are UTC, `YYYY-MM-DD HH:MM:SS`. Ids of users and teams are integers, all others UUIDs.
A call needs `Authorization: Bearer <JWT>`: a user's token opens that user's own inbox and devices, a service's token
what its scopes name.

Requests are strict: a field of `data` or `params` that a kind does not have is refused. Answers are open: kinds,
fields and codes may be added, so pass over what you don't know.

Every answer that is no success looks like `Errors`, all faults of a request at once. Beside what each operation lists,
a path that there is not is 404 `not_found`, a method that a path does not take 405 `method_not_allowed` with `Allow`,
and what is no HTTP 400 `malformed`. A body has at most {MAX_BODY_BYTES // 2**20} MiB, that of a batch
{MAX_BATCH_BODY_BYTES // 2**20} MiB.""",
    "contact": {"name": "The maintainers of Tocsin"},
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}

HEADERS = {
    "X-Request-Id": "of every answer: the request's own, where it sent a decent one; it is also in the log",
    "ETag": "changes with every change of the inbox; send it as `If-None-Match`",
    "WWW-Authenticate": "what is wrong with the credentials (RFC 6750)",
    "Allow": "the methods that the path takes",
    "Retry-After": "seconds after which to try again",
    "RateLimit-Limit": "how many are taken in a minute",
    "RateLimit-Remaining": "how many more are taken now",
    "RateLimit-Reset": "seconds after which there may be more",
}

SUCCESSES = {
    "200": "What was asked for",
    "202": "Durable: never lost from here on",
    "204": "Done; again does no harm",
    "304": "What `If-None-Match` names is still what there is",
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


def document(app: FastAPI, catalogue: Catalogue, url: str = "") -> dict[str, Any]:
    """Return the document of the routes that `app` has; `url` is where it is reached, else the root of its host."""
    shown = examples(catalogue)
    return {
        "openapi": "3.1.0",
        "info": INFO,
        "servers": [{"url": url or "/"}],
        "tags": [
            *({"name": tag, "description": description} for tag, description in TAGS.items()),
            {"name": "pushes", "description": "What phones and browsers get from their push services."},
        ],
        "paths": _paths(_summaries(app), shown),
        "webhooks": pushes(catalogue),
        "components": {
            "schemas": {**schemas(catalogue), **PUSHES},
            "responses": {type(problem).__name__: _problem(problem) for problem in PROBLEMS},
            "headers": {
                name: {"description": description, "schema": {"type": "string"}}
                for name, description in HEADERS.items()
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _summaries(app: FastAPI) -> dict[str, str]:
    """Return the docstrings of the handlers, by method and path."""
    return {
        f"{method} {str(context.path).replace(':path}', '}')}": (context.endpoint.__doc__ or "").partition(".")[0]
        for context in iter_route_contexts(app.routes)
        for method in context.methods or ()
    }


def _paths(summaries: dict[str, str], shown: dict[str, Examples]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for tag in TAGS:
        for route, operation in CONTRACT[tag].items():
            if route not in summaries:
                continue  # it has a port of its own, say
            method, path = route.split(" ")
            if method == "POST":
                operation = _once(operation)  # noqa: PLW2901 - the same, as every POST is
            summary = operation.summary or summaries[route]
            paths.setdefault(path, {})[method.lower()] = _operation(tag, path, summary, operation, shown)
    return paths


def _once(operation: Operation) -> Operation:
    """Return an operation that takes POST, with what all of them have in common: see `routes`."""
    return replace(
        operation,
        parameters=(*operation.parameters, ONCE),
        problems=(*operation.problems, KeyReused),
        field_errors=(*operation.field_errors, NO_KEY),
    )


def _operation(tag: str, path: str, summary: str, operation: Operation, shown: dict[str, Examples]) -> dict[str, Any]:
    in_path = [{"name": name, "in": "path", "required": True, **IN_PATHS[name]} for name in _IN_BRACES.findall(path)]
    parameters = [*in_path, *operation.parameters]
    found: dict[str, Any] = {"tags": [tag], "summary": summary, "operationId": operation.id}
    found["description"] = "\n\n".join(filter(None, (DESCRIPTIONS.get(operation.id), _caller(tag, operation))))
    found["security"] = [] if operation.is_open else [{"bearer": []}]
    if parameters:
        found["parameters"] = parameters
    if operation.takes:
        media = (operation.media, *operation.also)
        content = _content(ref(operation.takes), shown[operation.takes], *media)
        found["requestBody"] = {"required": not operation.optional_body, "content": content}
    return {**found, "responses": {**_success(operation, shown), **_problems(operation)}}


def _caller(tag: str, operation: Operation) -> str:
    """Say whose token an operation takes."""
    if operation.is_open:
        return "Needs no token."
    scopes = operation.scopes or CALLERS.get(tag)
    return f"Needs a service's token with the scope {scopes}." if scopes else "Needs a user's token."


def _success(operation: Operation, shown: dict[str, Examples]) -> dict[str, Any]:
    has_tag = IF_NONE_MATCH in operation.parameters
    status = str(operation.status if operation.answers else 204)
    found = {"description": SUCCESSES[status], "headers": _headers(*(["ETag"] if has_tag else []))}
    unchanged = {"304": {**found, "description": SUCCESSES["304"]}} if has_tag else {}
    if operation.answers:
        found["content"] = _content(ref(operation.answers), shown[operation.answers], operation.answer_media)
    if operation.id in LINKS:
        name, where, following = LINKS[operation.id]
        found["links"] = {id_: {"operationId": id_, "parameters": {name: where}} for id_ in following}
    return {status: found, **unchanged}


def _problems(operation: Operation) -> dict[str, Any]:
    """Return the problems of an operation by status: references to what all have, and what is its own."""
    found: dict[str, Any] = {}
    conflicts: list[Problem] = []
    for problem in operation.all_problems():
        if issubclass(problem, Conflict):
            conflicts.append(problem())
        else:
            found[str(problem.status)] = {"$ref": f"#/components/responses/{problem.__name__}"}
    if conflicts:
        found["409"] = _problem(*conflicts)
    if operation.field_errors:
        found["422"] = _invalid(operation.field_errors)
    return dict(sorted(found.items()))


def _problem(*problems: Problem) -> dict[str, Any]:
    """Describe problems of one status as one answer."""
    described = "; ".join(f"`{problem.code}`: {_words(problem)}" for problem in problems)
    content = _content(ref("Errors"), {problem.code: {"errors": problem.errors()} for problem in problems})
    return {"description": described, "headers": _headers(*problems[0].headers), "content": content}


def _words(problem: Problem) -> str:
    """Return what a problem's class says of it, but for where that is defined."""
    text = (type(problem).__doc__ or "").partition(".\n")[0].partition(" (RFC")[0].rstrip(".")
    return text[0].lower() + text[1:]


def _invalid(field_errors: Iterable[FieldError]) -> dict[str, Any]:
    content = _content(ref("Errors"), {"validation": {"errors": Invalid(field_errors).errors()}})
    described = "`validation.*`: the request is understood and wrong, all its faults at once"
    return {"description": described, "headers": _headers(), "content": content}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def _content(schema: dict[str, Any], values: Examples, *media: str) -> dict[str, Any]:
    content = {"schema": schema, "examples": {name: {"value": value} for name, value in values.items()}}
    return dict.fromkeys(media or (JSON,), content)
