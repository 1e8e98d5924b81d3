"""The OpenAPI 3.1 document: what the framework knows of its routes, and what we say of those it never sees."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from tocsin import __version__, idempotency
from tocsin.api.directory import MOST_LISTED, USUALLY_LISTED
from tocsin.api.events import LARGEST_BATCH, LONGEST_WAIT
from tocsin.api.inbox import MOST_IDS
from tocsin.api.requests import LONGEST_MESSAGE
from tocsin.api.schemas import SCHEMAS, SKIPPED, UUID, new_event
from tocsin.catalogue import Catalogue

ONCE = {"create_custom", "post_event", "post_batch"}
"""The operations that take an `Idempotency-Key`."""

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": idempotency.LONGEST_KEY},
    "description": "a repeat under the same key does nothing and is answered as the first time, for 24 hours",
}

PROBLEMS = {
    "400": "`malformed`: the body is not JSON, or not an object where one is due",
    "401": "`unauthenticated`: no, invalid or expired credentials",
    "403": "`unauthorized`: valid credentials that may not do this",
    "404": "`not_found`: nothing with that id for this caller",
    "409": "`conflict.*`: an `id` used again for another event, or a cancellation after delivery",
    "410": "`missing`: the caller's own notification, deleted",
    "413": "`too_large`: the body is over its limit",
    "415": "`content_type`: the body is not declared as JSON",
    "422": "`validation.*`: all faults of the request at once",
    "500": "`error`: a bug of ours; its `id` is also in the log",
    "503": "`unavailable`: the database or the token's issuer cannot be reached; try again after `Retry-After` seconds",
}

ANSWERS = {
    "/notifications/{notification_id}": "Notification",
    "/notifications/changes": "Changes",
    "/events/{event_id}": "Event",
    "/events/{event_id}/recipients/{user_id}": "Recipient",
    "/notifications/devices": "Devices",
    "/directory/users": "Users",
    "/directory/teams": "Teams",
    "/directory/users/{user_id}": "User",
    "/directory/teams/{team_id}": "Team",
}
"""What the framework's own routes answer to GET."""


def document(app: FastAPI, catalogue: Catalogue, url: str = "") -> dict[str, Any]:
    """Return the whole document of a service that is reached at `url`, where that is not the root of its host."""
    found = get_openapi(
        title="Tocsin",
        version=__version__,
        summary="The notification service that a business application plugs in.",
        routes=app.routes,
        servers=[{"url": url}] if url else None,
    )
    paths: dict[str, Any] = _by_hand(catalogue)
    for path, operations in found["paths"].items():
        paths.setdefault(path, {}).update(operations)
    _annotate(paths)
    for operations in paths.values():
        for operation in operations.values():
            _complete(operation)
    found["paths"] = paths
    components = found.setdefault("components", {})
    made_by_framework = {
        name: schema
        for name, schema in components.get("schemas", {}).items()
        if name not in {"HTTPValidationError", "ValidationError"}
    }
    components["schemas"] = {**made_by_framework, **SCHEMAS, "NewEvent": new_event(catalogue), **catalogue.schemas()}
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    return found


def _annotate(paths: dict[str, Any]) -> None:
    """Add what the framework does not see of its own routes: how they answer, and what they read by themselves."""
    for path, schema in ANSWERS.items():
        paths[path]["get"]["responses"]["200"] = _answer("Found", schema)
    wait = {"type": "integer", "minimum": 0, "maximum": LONGEST_WAIT, "default": 0}
    since = _parameter("since", {"type": "string"}, "a cursor; left out: the answer is only the cursor of now")
    paths["/notifications/changes"]["get"].setdefault("parameters", []).append(since)
    paths["/notifications/read"]["put"]["requestBody"] = {
        **_body(
            {
                "type": "object",
                "properties": {
                    "up_to": {**UUID, "description": "this one and everything older"},
                    "ids": {"type": "array", "items": UUID, "minItems": 1, "maxItems": MOST_IDS},
                },
            },
            {},
        ),
        "required": False,
    }
    for path in ("/directory/users", "/directory/teams"):
        paths[path]["get"].setdefault("parameters", []).extend(
            [
                _parameter("after", {"type": "integer", "minimum": 0, "default": 0}, "those with greater ids"),
                _parameter("company_id", {"type": "integer", "minimum": 1}, "of one company"),
                _parameter(
                    "limit",
                    {"type": "integer", "minimum": 1, "maximum": MOST_LISTED, "default": USUALLY_LISTED},
                    "how many",
                ),
            ]
        )
    device = {"$ref": "#/components/schemas/Device"}
    with_token = {"required": ["token"], "properties": {"token": {"type": "string"}}}
    paths["/notifications/devices/{token}"]["post"]["requestBody"] = {**_body(device, {}), "required": False}
    paths["/notifications/devices"]["post"]["requestBody"] = _body({"allOf": [device, with_token]}, {})
    unchanged = {"description": "What `If-None-Match` names is still what there is"}
    paths["/notifications"]["get"]["responses"]["304"] = unchanged
    paths["/notifications"]["get"]["parameters"].append(
        {**_parameter("If-None-Match", {"type": "string"}, "the `ETag` of the page that is there"), "in": "header"}
    )
    paths["/events/{event_id}"]["get"]["parameters"].append(
        _parameter("wait", wait, "answer as soon as it is settled, at the latest after so many seconds")
    )


def _complete(operation: dict[str, Any]) -> None:
    """Add what holds for every operation: who may call it, and its problems in the one form."""
    open_to_all = "operations" in operation.get("tags", [])
    responses = operation["responses"]
    if "description" in operation:
        operation["summary"] = operation.pop("description").split(".")[0]
    if not open_to_all:
        operation["security"] = [{"bearer": []}]
    if operation["operationId"] in ONCE:
        operation.setdefault("parameters", []).append(IDEMPOTENCY_KEY)
    for status, description in PROBLEMS.items():
        if open_to_all and status not in {"500", "503"}:
            responses.pop(status, None)
            continue
        responses[status] = {
            "description": description,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Errors"}}},
        }


def _by_hand(catalogue: Catalogue) -> dict[str, Any]:
    """Return the operations on the hot path, which the framework does not see."""
    return {
        "/notifications": {
            "get": {
                "tags": ["notifications"],
                "summary": "The caller's notifications, newest first",
                "operationId": "list_notifications",
                "parameters": [
                    _parameter("show", {"type": "string", "enum": ["unread"]}, "only the unread ones"),
                    _parameter("page", {"type": "integer", "minimum": 1, "maximum": 1_000_000, "default": 1}, "which"),
                    _parameter(
                        "per_page", {"type": "integer", "minimum": 1, "maximum": 100, "default": 15}, "how many"
                    ),
                    _parameter("cursor", {"type": "integer", "minimum": 1}, "as found in `urls.next`"),
                ],
                "responses": {"200": _answer("A page", "Page")},
            },
            "post": {
                "tags": ["notifications"],
                "summary": "Create a custom notification",
                "operationId": "create_custom",
                "requestBody": _body(
                    {
                        "type": "object",
                        "required": ["message", "notify"],
                        "properties": {
                            "message": {"type": "string", "minLength": 1, "maxLength": LONGEST_MESSAGE},
                            "notify": {"$ref": "#/components/schemas/Notify"},
                        },
                    },
                    {"custom": {"message": "This is a custom notification", "notify": {"users": [1, 54, 23]}}},
                ),
                "responses": {"202": _queued({})},
            },
        },
        "/events": {
            "post": {
                "tags": ["events"],
                "summary": "Post an event: what happened, and whom it concerns",
                "operationId": "post_event",
                "requestBody": _body(
                    {"$ref": "#/components/schemas/NewEvent"},
                    {name: sample["event"] for name, sample in catalogue.samples.items()},
                ),
                "responses": {"202": _queued({"id": UUID}, {"skipped": SKIPPED})},
            }
        },
        "/events/batch": {
            "post": {
                "tags": ["events"],
                "summary": "Post up to 1,000 events, all or none, to be delivered in their order",
                "operationId": "post_batch",
                "requestBody": _body(
                    {
                        "type": "object",
                        "required": ["events"],
                        "properties": {
                            "events": {
                                "type": "array",
                                "minItems": 1,
                                "maxItems": LARGEST_BATCH,
                                "items": {"$ref": "#/components/schemas/NewEvent"},
                            }
                        },
                    },
                    {"two": {"events": [sample["event"] for sample in [*catalogue.samples.values()][:2]]}},
                ),
                "responses": {
                    "202": _queued(
                        {"ids": {"type": "array", "items": UUID}},
                        {
                            "skipped": {
                                "type": "array",
                                "items": {**SKIPPED, "properties": {"id": UUID, **SKIPPED["properties"]}},
                            }
                        },
                    )
                },
            }
        },
    }


def _parameter(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _answer(description: str, schema: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


def _body(schema: dict[str, Any], examples: dict[str, Any]) -> dict[str, Any]:
    named = {name: {"value": value} for name, value in examples.items()}
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": named}}}


def _queued(more: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    required = {"queued": {"type": "boolean", "const": True}, **more}
    schema = {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}
    return {"description": "Durable: never lost from here on", "content": {"application/json": {"schema": schema}}}
