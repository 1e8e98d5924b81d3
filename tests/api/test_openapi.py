"""The OpenAPI document is valid, complete and correct; and the API reference page."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from tests.support.answers import CONSOLE, FILES, UNKNOWN, assert_page_headers, routes_of
from tests.support.events import custom, note
from tests.support.service import DAY, HOUR, SECRET, Api, at_rest, serving, settings_for, standing_token
from tocsin import errors, validation
from tocsin.api import docs
from tocsin.api.app import build
from tocsin.api.body import MAX_BODY_BYTES
from tocsin.api.examples import EXAMPLES
from tocsin.api.openapi import document as document_of
from tocsin.api.requests import MAX_BATCH_BODY_BYTES
from tocsin.api.schemas import names_of
from tocsin.auth.minting import mint_service
from tocsin.catalogue import Catalogue
from tocsin.history import Recorder
from tocsin.notifications import to_json
from tocsin.push.apps import lanes_of
from tocsin.push.channels.vapid import Vapid
from tocsin.rate_limits import RateLimits

JSON = "application/json"
OF_THE_DOCUMENT = {"/openapi.json", "/docs", "/docs/{name}", *CONSOLE, *FILES}
"""The document does not describe itself, nor the pages and their files."""

BEFORE_ALL = {"408", "431"}
"""What is answered before a request has its operation: `test_connections.py` and `test_around.py` see to these."""


@pytest.fixture
async def document(api: Api) -> dict[str, Any]:
    answer = await api.call("GET", "/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    found: dict[str, Any] = json.loads(answer.text)
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, found in document["paths"].items():
        for method, operation in found.items():
            yield method.upper(), path, operation


def inside(value: Any) -> Iterator[Any]:
    yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for found in inner:
        yield from inside(found)


def schemas(document: dict[str, Any]) -> Iterator[Any]:
    yield from document["components"]["schemas"].values()
    for found in inside([document["paths"], document["webhooks"]]):
        if isinstance(found, dict) and "schema" in found:
            yield found["schema"]


def resolved(document: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return what a reference leads to, and anything else as it is."""
    place = document
    for key in found["$ref"].removeprefix("#/").split("/") if "$ref" in found else ():
        place = place[key]
    return place if "$ref" in found else found


def answers(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Return path, status and description of every answer there is."""
    for _, path, operation in operations(document):
        for status, response in operation["responses"].items():
            yield path, status, resolved(document, response)


def below(document: dict[str, Any], schema: Any) -> Iterator[dict[str, Any]]:
    """Return a schema and all that it leads to."""
    for found in inside(schema):
        if isinstance(found, dict):
            yield found
            if "$ref" in found:
                yield from below(document, resolved(document, found))


def validator(document: dict[str, Any], schema: Any) -> Draft202012Validator:
    """Return what checks a value by a schema of the document, whose references lead into it."""
    resource = DRAFT202012.create_resource(document)
    resolver = Registry().with_resource("urn:tocsin", resource)
    absolute = json.loads(json.dumps(schema).replace('"$ref": "#/', '"$ref": "urn:tocsin#/'))
    return Draft202012Validator(absolute, registry=resolver, format_checker=FormatChecker())


async def test_openapi_document_is_built_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def write(found: Any) -> str:
        written.append(to_json(found))
        return written[-1]

    monkeypatch.setattr(docs, "to_json", write)
    answers = [await api.call("GET", "/openapi.json") for _ in range(3)]
    assert len(written) <= 1  # none if another test was first
    assert len({answer.content for answer in answers}) == 1


def test_openapi_document_has_version_3_1_and_info(document: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert document["info"]["title"]
    assert document["info"]["version"]
    assert document["info"]["license"]["identifier"] == "Apache-2.0"
    described = {tag["name"] for tag in document["tags"] if tag["description"]}
    assert described == {"pushes"} | {tag for _, _, operation in operations(document) for tag in operation["tags"]}


def test_openapi_document_is_valid_by_the_3_1_schema(document: dict[str, Any]) -> None:
    assert [error.message for error in OPENAPI_31_VALIDATOR.iter_errors(document)] == []


def test_every_openapi_reference_resolves(document: dict[str, Any]) -> None:
    references = {found["$ref"] for found in inside(document) if isinstance(found, dict) and "$ref" in found}
    assert references
    for reference in references:
        assert reference.startswith("#/"), reference
        place = document
        for key in reference[2:].split("/"):
            place = place[key]


def test_every_openapi_schema_is_a_valid_schema(document: dict[str, Any]) -> None:
    found = list(schemas(document))
    assert len(found) > 50
    for schema in found:
        Draft202012Validator.check_schema(schema)


def test_every_openapi_operation_is_well_formed(document: dict[str, Any]) -> None:
    names = []
    for method, path, operation in operations(document):
        names.append(operation["operationId"])
        assert operation["summary"], path
        in_path = [each["name"] for each in operation.get("parameters", []) if each["in"] == "path"]
        assert sorted(in_path) == sorted(re.findall(r"\{(\w+)\}", path))
        assert all(each["required"] for each in operation.get("parameters", []) if each["in"] == "path")
        assert ("requestBody" in operation) <= (method in {"POST", "PUT", "PATCH", "DELETE"})
        assert any(status.startswith("2") for status in operation["responses"])
        assert all(resolved(document, each)["description"] for each in operation["responses"].values())
        is_open = path in {"/healthz", "/readyz"}
        assert operation.get("security") == ([] if is_open else [{"bearer": []}]), path
        assert {"401", "403"}.isdisjoint(operation["responses"]) is is_open
        for each in operation.get("parameters", []):
            Draft202012Validator.check_schema(each["schema"])
    assert len(set(names)) == len(names)
    assert set(document["components"]["securitySchemes"]) == {"bearer"}


def test_every_openapi_link_fits_its_target_operation(document: dict[str, Any]) -> None:
    takes = {operation["operationId"]: path for _, path, operation in operations(document)}
    links = [link for _, _, answer in answers(document) for link in answer.get("links", {}).values()]
    assert len(links) >= 6
    for link in links:
        assert re.findall(r"{(\w+)}", takes[link["operationId"]]) == list(link["parameters"])


def test_openapi_document_has_exactly_the_served_routes(document: dict[str, Any], api: Api) -> None:
    described = {(method, path) for method, path, _ in operations(document)}
    assert described == {route for route in routes_of(api) if route[1] not in OF_THE_DOCUMENT}


def test_every_body_and_response_has_valid_examples(document: dict[str, Any]) -> None:
    count = 0
    for found in inside([document["paths"], document["webhooks"], document["components"]["responses"]]):
        if isinstance(found, dict) and JSON in found:
            content = found[JSON]
            assert content["examples"], found
            for example in content["examples"].values():
                validator(document, content["schema"]).validate(example["value"])
                count += 1
    assert count > 100


def test_notifications_in_examples_match_their_kind(document: dict[str, Any], api: Api) -> None:
    for name, sample in api.app_state.catalogue.samples.items():
        schema = document["components"]["schemas"][f"{names_of(api.app_state.catalogue)[name]}Notification"]
        [shown] = [
            example["value"]
            for shown, example in document["paths"]["/notifications/{notification_id}"]["get"]["responses"]["200"][
                "content"
            ][JSON]["examples"].items()
            if shown == name
        ]
        assert shown["data"] == sample["notification"]["data"]
        validator(document, schema).validate(shown)
        assert name == "custom" or not validator(document, schema).is_valid({**shown, "data": {}})


def test_response_schemas_allow_new_fields(document: dict[str, Any]) -> None:
    contents = [answer.get("content", {}) for _, _, answer in answers(document)]
    kinds = [found for name, found in document["components"]["schemas"].items() if name.endswith("Notification")]
    pushed = [found["post"]["requestBody"]["content"] for found in document["webhooks"].values()]
    assert len(kinds) > 20
    for schema in below(document, [contents, kinds, pushed]):
        if schema.keys() & {"type", "properties"}:
            assert schema.keys().isdisjoint({"enum", "const"}), schema
            assert schema.get("additionalProperties") is not False, schema


def test_openapi_document_has_exactly_the_error_codes(document: dict[str, Any]) -> None:
    text = document["components"]["schemas"]["ErrorEntry"]["properties"]["code"]
    problems = {problem.code for problem in errors.Problem.__subclasses__()} - {"validation"}
    conflicts = {conflict.code for conflict in errors.Conflict.__subclasses__()}
    field_errors = {f"validation.{code}" for code in validation.VALIDATION_CODES}
    assert set(re.findall(r"`(.+?)`", text["description"])) == problems | conflicts | field_errors
    shown = {
        error["code"]
        for found in inside(document)
        if isinstance(found, dict) and isinstance(found.get("errors"), list)
        for error in found["errors"]
    }
    assert shown - field_errors == problems | conflicts


def test_problem_examples_have_the_status_of_their_code(document: dict[str, Any]) -> None:
    family = [*errors.Problem.__subclasses__(), *errors.Conflict.__subclasses__()]
    statuses = {problem.code: str(problem.status) for problem in family}
    for path, status, answer in answers(document):
        for example in answer.get("content", {}).get(JSON, {}).get("examples", {}).values():
            for error in example["value"].get("errors", []):
                code = error["code"].partition(".")[0] if status == "422" else error["code"]
                assert statuses[code] == status, path


def test_event_schema_rejects_fields_that_the_kind_lacks(document: dict[str, Any], api: Api) -> None:
    event = validator(document, document["components"]["schemas"]["NewEvent"])
    for sample in api.app_state.catalogue.samples.values():
        good = sample["event"]
        assert event.is_valid({**good, "of_a_later_release": 1})
        assert not event.is_valid({**good, "data": {**good.get("data", {}), "colour": "red"}})
        assert not event.is_valid({**good, "params": {**good.get("params", {}), "colour": "red"}})
        assert not event.is_valid({**good, "type": "nothing"})
        assert not event.is_valid({**good, "notify": {}})


def test_schemas_lose_nothing_in_client_generators(document: dict[str, Any]) -> None:
    names = list(document["components"]["schemas"])
    assert all(re.fullmatch(r"[A-Za-z0-9]+", name) for name in names)
    assert len({name.lower() for name in names}) == len(names)
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("title", name) == name
        for found in inside(schema):
            if isinstance(found, dict) and isinstance(found.get("type"), str | list):
                assert found.keys().isdisjoint({"oneOf", "anyOf", "allOf"}), "what stands beside is dropped"
            if isinstance(found, dict) and isinstance(found.get("properties"), dict):
                assert not isinstance(found.get("additionalProperties"), dict), "TypeScript has no such object"
    events = [ref["$ref"].rpartition("/")[2] for ref in document["components"]["schemas"]["NewEvent"]["oneOf"]]
    for name in events:
        event = document["components"]["schemas"][name]
        assert {"type", "notify", "id", "key", "deliver_at", "about", "data", "params"} == set(event["properties"])
        assert {"type", "notify"} <= set(event["required"])
    assert "required" not in document["components"]["schemas"]["Notify"]


def test_openapi_document_starts_with_service_operations(document: dict[str, Any]) -> None:
    tags = [tag["name"] for tag in document["tags"]]
    assert tags[:2] == ["events", "directory"]
    assert next(iter(document["paths"])) == "/events"
    posted = document["paths"]["/events"]["post"]["description"]
    assert all(f"`{name}`" in posted for name in ("notify", "data", "params", "id", "key", "deliver_at", "about"))


def test_every_operation_documents_its_token_and_server(document: dict[str, Any]) -> None:
    for _, path, operation in operations(document):
        wanted = re.search(
            r"Requires (?:a user token|a service token with the scope `[a-z]+:?[a-z]*`|no token)",
            operation["description"],
        )
        assert wanted, path
        assert ("a user token" in wanted[0]) == path.startswith("/notifications"), path
    assert [server["url"] for server in document["servers"]] == ["/"]
    is_open = {operation["operationId"] for _, _, operation in operations(document) if operation["security"] == []}
    assert is_open == {"healthz", "readyz"}


def test_schema_names_clash_with_no_constructor_of_go_clients(document: dict[str, Any]) -> None:
    """openapi-generator writes a function `NewTeam` for the type `Team`, beside the type of a schema `NewTeam`."""
    names = set(document["components"]["schemas"])
    assert not {f"New{name}" for name in names} & names


def test_custom_kind_names_clash_with_no_schema(tmp_path: Path) -> None:
    entry = '[{}]\ntitle = "T"\ngroup = "cases"\nsays = "S"\n'
    (tmp_path / "kinds.toml").write_text("".join(map(entry.format, ("new", "old", "pushed"))))
    made = document_of(build(), Catalogue.load(tmp_path))
    assert "NewKindEvent" in made["components"]["schemas"]
    assert [error.message for error in OPENAPI_31_VALIDATOR.iter_errors(made)] == []


@pytest.mark.parametrize(
    "form", [{}, {"operations_port": 1}, {"root_path": "/tocsin"}, {"public_url": "https://n.example"}]
)
async def test_openapi_document_matches_each_configuration(
    url: str, catalogue: Catalogue, form: dict[str, Any]
) -> None:
    prefix = form.get("root_path", "")
    async with serving(url, catalogue, with_worker=False, **form) as api:
        answer = await api.call("GET", f"{prefix}/openapi.json")
        assert answer.status_code == 200, answer.text
        made = answer.json()
        assert [server["url"] for server in made["servers"]] == [form.get("public_url", prefix or "/")]
        assert ("/metrics" in made["paths"]) == ("operations_port" not in form)
        for path in made["paths"]:
            if "{" not in path:
                assert (await api.call("OPTIONS", f"{prefix}{path}")).status_code != 404, path


def test_request_bodies_have_no_defaults(document: dict[str, Any]) -> None:
    bodies = [operation["requestBody"] for _, _, operation in operations(document) if "requestBody" in operation]
    assert not [found for found in below(document, bodies) if "default" in found]


def test_custom_kinds_are_described_like_builtin_kinds(tmp_path: Path) -> None:
    (tmp_path / "kinds.toml").write_text(OWN_KINDS)
    made = document_of(build(), Catalogue.load(tmp_path))
    assert [error.message for error in OPENAPI_31_VALIDATOR.iter_errors(made)] == []
    event = validator(made, made["components"]["schemas"]["NewEvent"])
    data = {"user": 4, "default": {"enum": "x", "properties": None}}
    good = {"type": "order_moved", "notify": {"users": [1]}, "data": data}
    assert event.is_valid(good)
    assert not event.is_valid({**good, "data": {"user": 4}})
    shown = validator(made, made["components"]["schemas"]["OrderMovedNotification"]["allOf"][1])
    assert shown.is_valid({"data": {"user": None, "default": {"enum": "", "properties": None, "new": 1}}})
    assert not shown.is_valid({"data": {"user": None}})


OWN_KINDS = """
[shapes.order]
fields = { enum = "words", properties = "text or null" }
spoken = "{enum}"

[order_moved]
title = "Order"
says = "{default} is on its way"
data = { user = "user or null", default = "order" }
group = "orders"
"""


def test_web_push_examples_are_small_enough_for_push_services(document: dict[str, Any]) -> None:
    content = document["webhooks"]["web_push"]["post"]["requestBody"]["content"][JSON]
    assert all(len(json.dumps(example["value"])) <= 3000 for example in content["examples"].values())


class Tour:
    """Calls of operations by their ids; each answer must be what the document says. `seen` are the statuses of each."""

    def __init__(self, document: dict[str, Any], api: Api) -> None:
        self.document, self.api = document, api
        self.seen: set[tuple[str, int]] = set()
        self.operations = {each["operationId"]: (method, path) for method, path, each in operations(document)}

    async def call(self, status: int, name: str, caller: str, query: str = "", **more: Any) -> httpx.Response:
        """Call an operation; `more` has values of path parameters and arguments of httpx."""
        method, path = self.operations[name]
        for found in re.findall(r"{(\w+)}", path):
            path = path.replace(f"{{{found}}}", str(more.pop(found)))
        answer = await self.api.call(method, path + query, caller, **more)
        assert answer.status_code == status, f"{name}: {answer.status_code} {answer.text}"
        self._check(name, answer)
        self.seen.add((name, status))
        return answer

    def _check(self, name: str, answer: httpx.Response) -> None:
        method, path = self.operations[name]
        described = self.document["paths"][path][method.lower()]["responses"][str(answer.status_code)]
        described = resolved(self.document, described)
        assert all(header in answer.headers for header in described["headers"]), name
        if "content" not in described:
            assert answer.content == b"", name
        elif JSON not in described["content"]:
            assert answer.headers["content-type"].partition(";")[0] in described["content"], name
        else:
            assert answer.headers["content-type"] == JSON, name
            validator(self.document, described["content"][JSON]["schema"]).validate(answer.json())


@pytest.mark.one_cell("services of all companies are counted in the first cell")
async def test_every_response_matches_the_openapi_document(
    document: dict[str, Any], api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin.api.imports.MAX_IMPORT_BYTES", MAX_BODY_BYTES)
    tour = Tour(document, api)
    await api.people(1, 4)
    await api.people(5, profile_picture="https://x/y.png", email="a@b", locale="da-DK")
    await api.team(7, 1, 5)
    await tour_of_the_inbox(tour)
    await tour_of_devices(tour)
    await tour_of_events(tour)
    await tour_of_the_directory(tour)
    await tour_of_the_history(tour)
    await tour_of_refusals(tour)
    await at_rest(api)
    await tour_of_limits(tour)
    described = {
        (operation["operationId"], int(status))
        for _, _, operation in operations(document)
        for status in operation["responses"]
        if status < "500" and status not in BEFORE_ALL
    }
    assert tour.seen == described


USER = standing_token(1)
CRM = mint_service(SECRET, "crm", ("events:write", "directory:write"), DAY)
BOUND = mint_service(SECRET, "bound", ("events:write", "directory:write"), DAY, 2)
OPERATOR = mint_service(SECRET, "operator", ("operations",), DAY)
PHONE = "0123456789abcdef" * 4
AGAIN = {"Idempotency-Key": "again"}
TOO_LONG = {"Idempotency-Key": "x" * 256}
NDJSON = {"Content-Type": "application/x-ndjson"}


async def tour_of_the_inbox(tour: Tour) -> None:
    ids = [await tour.api.post(event) for event in (custom(1, 5), note(1), note(1))]
    assert (await tour.call(200, "list_kinds", USER)).json()["data"]
    assert (await tour.call(200, "list_links", USER, f"?ids={ids[0]}")).json()["data"]
    await tour.call(422, "list_links", USER, "?ids=x")
    assert "event: count" in (await tour.call(200, "stream_notifications", USER)).text
    assert (await tour.call(200, "get_preferences", USER)).json()["kinds"]
    merge_patch = {"Content-Type": "application/merge-patch+json"}
    hours = b'{"quiet_hours": [{"from": "20:00", "to": "07:30"}]}'
    assert (await tour.call(200, "patch_preferences", USER, content=hours, headers=merge_patch)).json()["quiet_hours"]
    await tour.call(422, "patch_preferences", USER, json={"kinds": {"nothing": {}}})
    since = (await tour.call(200, "list_changes", USER)).json()["cursor"]
    page = await tour.call(200, "list_notifications", USER, "?per_page=1")
    await tour.call(304, "list_notifications", USER, "?per_page=1", headers={"If-None-Match": page.headers["etag"]})
    await tour.call(422, "list_notifications", USER, "?per_page=x&page=0")
    for name in ("get_notification", "mark_read", "mark_unread"):
        success = 200 if name == "get_notification" else 204
        await tour.call(success, name, USER, notification_id=ids[0])
        await tour.call(404, name, USER, notification_id=UNKNOWN)
    await tour.call(204, "mark_all_read", USER, json={"ids": ids})
    await tour.call(422, "mark_all_read", USER, json={"ids": []})
    await tour.call(200, "get_notification", USER, notification_id=ids[1])
    await tour.call(204, "delete_notification", USER, notification_id=ids[0])
    await tour.call(404, "delete_notification", USER, notification_id=UNKNOWN)
    for name in ("get_notification", "mark_read", "mark_unread"):
        await tour.call(410, name, USER, notification_id=ids[0])
    assert (await tour.call(200, "list_changes", USER, f"?since={since}")).json()["data"]
    assert (await tour.call(200, "list_changes", USER, "?since=x")).json()["resync"] is True
    body = {"message": "x", "notify": {"users": [1]}}
    await tour.call(202, "create_custom", USER, json=body, headers=AGAIN)
    await tour.call(409, "create_custom", USER, json={**body, "message": "y"}, headers=AGAIN)
    await tour.call(422, "create_custom", USER, json={})


async def tour_of_devices(tour: Tour) -> None:
    await tour.call(204, "register_device", USER, token=PHONE, headers=AGAIN)
    await tour.call(409, "register_device", USER, token=PHONE, json={"app": "other"}, headers=AGAIN)
    await tour.call(422, "register_device", USER, token="x", json={"type": 1})
    await tour.call(204, "register_device_by_body", USER, json={"token": PHONE, "replaces": None}, headers=AGAIN)
    await tour.call(409, "register_device_by_body", USER, json={"token": PHONE}, headers=AGAIN)
    await tour.call(422, "register_device_by_body", USER, json={})
    await tour.call(404, "get_web_push_key", USER)
    with TemporaryDirectory() as folder:
        Vapid.make(Path(folder) / "vapid.pem")
        [lane] = lanes_of(settings_for(vapid_key_file=Path(folder) / "vapid.pem"))
    object.__setattr__(tour.api.app_state, "lanes", [lane])  # as with a key
    await tour.call(200, "get_web_push_key", USER)
    object.__setattr__(tour.api.app_state, "lanes", ())
    await lane.transport.close()
    subscription = EXAMPLES["Subscription"]["chromium"]
    await tour.call(204, "subscribe_browser", USER, json=subscription, headers=AGAIN)
    await tour.call(409, "subscribe_browser", USER, json={}, headers=AGAIN)
    await tour.call(422, "subscribe_browser", USER, json={})
    browser = {"endpoint": subscription["endpoint"]}
    for name, named, strange in (
        ("test_device", {"token": PHONE}, {"token": "x"}),
        ("test_subscription", {"json": browser}, {"json": {"endpoint": "https://x/y"}}),
    ):
        await tour.call(404, name, USER, **strange)
        answer = await tour.call(200, name, USER, headers=AGAIN, **named)
        assert answer.json()["state"] == "stopped", "without a key of the provider"
        other: dict[str, Any] = {**named, "json": {**browser, "more": 1}}
        await tour.call(409, name, USER, headers=AGAIN, **other)
        await tour.call(422, name, USER, headers=TOO_LONG, **named)
    await tour.call(204, "unsubscribe_browser", USER, json={"endpoint": subscription["endpoint"]})
    await tour.call(422, "unsubscribe_browser", USER, json={})
    assert (await tour.call(200, "list_devices", USER)).json()["data"]
    await tour.call(204, "detach_device", USER, token=PHONE)
    for name in ("detach_devices_of_user", "detach_device_of_user"):
        more = {} if name == "detach_devices_of_user" else {"token": PHONE}
        await tour.call(204, name, CRM, user_id=1, **more)
        await tour.call(404, name, CRM, user_id=99, **more)


async def tour_of_events(tour: Tour) -> None:
    event = {**note(1), "id": "0195d3f0-4c00-7000-8000-000000000001"}
    posted = await tour.call(202, "post_event", CRM, json=event)
    await tour.call(202, "post_event", CRM, json=event, headers=AGAIN)
    skips = {**note(1, 99), "notify": {"users": [1, 99], "unknown": "skip"}}
    assert (await tour.call(202, "post_event", CRM, json=skips)).json()["skipped"]["users"] == [99]
    await tour.call(409, "post_event", CRM, json={**event, "params": {"contact": "x", "body": ""}})
    await tour.call(422, "post_event", CRM, json={})
    batch = await tour.call(202, "post_batch", CRM, json={"events": [skips, custom(1)]}, headers=AGAIN)
    assert batch.json()["skipped"]
    await tour.call(409, "post_batch", CRM, json={"events": [custom(1)]}, headers=AGAIN)
    await tour.call(422, "post_batch", CRM, json={"events": [{}, 1]})
    settled = {"about": "order:42", "as": "read"}
    await tour.call(202, "resolve_subject", CRM, json=settled, headers=AGAIN)
    await tour.call(409, "resolve_subject", CRM, json={**settled, "as": "gone"}, headers=AGAIN)
    await tour.call(422, "resolve_subject", CRM, json={})
    id_ = posted.json()["id"]
    await tour.call(200, "get_event", CRM, "?wait=30", event_id=id_)
    await tour.call(422, "get_event", CRM, "?wait=x", event_id=id_)
    await tour.call(404, "get_event", CRM, event_id=UNKNOWN)
    for user in (1, 4):
        await tour.call(200, "get_recipient", CRM, event_id=id_, user_id=user)
    await tour.call(404, "get_recipient", CRM, event_id=UNKNOWN, user_id=1)
    await tour.call(409, "cancel_event", CRM, event_id=id_)
    await tour.call(404, "cancel_event", CRM, event_id=UNKNOWN)
    done = (await tour.call(202, "post_event", CRM, json={**custom(1), "key": "a/b"})).json()["id"]
    await tour.call(200, "get_event", CRM, "?wait=30", event_id=done)
    await tour.call(409, "cancel_event_by_key", CRM, key="a/b")
    await tour.call(404, "cancel_event_by_key", CRM, key="nothing")
    held = {**custom(1), "key": "held", "deliver_at": f"{datetime.now(UTC) + HOUR:%Y-%m-%dT%H:%M:%SZ}"}
    replaced = (await tour.call(202, "post_event", CRM, json=held)).json()["id"]
    held_id = (await tour.call(202, "post_event", CRM, json=held)).json()["id"]
    assert (await tour.call(200, "get_event", CRM, event_id=replaced)).json()["replaced_by"] == held_id
    await tour.call(204, "cancel_event_by_key", CRM, key="held")
    await tour.call(204, "cancel_event", CRM, event_id=held_id)


async def tour_of_the_history(tour: Tour) -> None:
    await Recorder(tour.api.app_state.database, tour.api.app_state.metrics).record()
    assert (await tour.call(200, "get_history", OPERATOR)).json()["data"]
    await tour.call(422, "get_history", OPERATOR, "?minutes=0")


async def tour_of_the_directory(tour: Tour) -> None:
    for id_ in (1, 5):
        await tour.call(200, "get_user", CRM, user_id=id_)
    await tour.call(404, "get_user", CRM, user_id=99)
    await tour.call(204, "put_user", CRM, user_id=9, json={"first_name": "A", "last_name": "B"})
    await tour.call(404, "put_user", BOUND, user_id=9, json={"first_name": "A", "last_name": "B"})
    await tour.call(422, "put_user", CRM, user_id=9, json={})
    await tour.call(200, "get_team", CRM, team_id=7)
    await tour.call(404, "get_team", CRM, team_id=99)
    await tour.call(204, "put_team", CRM, team_id=7, json={"name": "x", "users": [1]})
    await tour.call(404, "put_team", BOUND, team_id=7, json={"name": "x"})
    await tour.call(422, "put_team", CRM, team_id=7, json={"users": [99]})
    line = b'{"user": {"id": 9, "first_name": "A", "last_name": "B"}}\n'
    await tour.call(200, "import_lines", CRM, content=line, headers={**NDJSON, **AGAIN})
    await tour.call(409, "import_lines", CRM, content=line * 2, headers={**NDJSON, **AGAIN})
    await tour.call(422, "import_lines", CRM, content=b"{}", headers=NDJSON)
    for name in ("list_users", "list_teams"):
        assert (await tour.call(200, name, CRM, "?limit=1")).json()["data"]
        await tour.call(422, name, CRM, "?limit=0")
    for name in ("put_member", "delete_member"):
        await tour.call(204, name, CRM, team_id=7, user_id=9)
        await tour.call(404, name, CRM, team_id=99, user_id=9)
        await tour.call(422, name, CRM, team_id=7, user_id=0)
    await tour.call(204, "delete_team", CRM, team_id=7)
    await tour.call(404, "delete_team", CRM, team_id=7)
    await tour.call(204, "erase_user", CRM, user_id=9)
    await tour.call(404, "erase_user", CRM, user_id=9)
    await tour.call(200, "list_lanes", OPERATOR)
    await tour.call(200, "list_dead_letters", OPERATOR)
    await tour.call(422, "list_dead_letters", OPERATOR, "?limit=0&before=x")
    for name in ("get_person", "list_events_of_person"):
        assert (await tour.call(200, name, OPERATOR, user_id=1)).json()
        await tour.call(404, name, OPERATOR, user_id=99)
    await tour.call(422, "list_events_of_person", OPERATOR, "?since=x", user_id=1)
    await tour_of_devices_of_others(tour)
    assert (await tour.call(200, "find_users", OPERATOR, "?search=first")).json()["data"]
    await tour.call(422, "find_users", OPERATOR)
    reached = await tour.api.post(custom(1))
    for due, query in ((200, ""), (200, "?pushed=no"), (422, "?pushed=x")):
        await tour.call(due, "list_recipients", OPERATOR, query, event_id=reached)
    await tour.call(404, "list_recipients", OPERATOR, event_id=UNKNOWN)
    assert (await tour.call(200, "list_custom_notifications", OPERATOR)).json()["data"]
    await tour.call(422, "list_custom_notifications", OPERATOR, "?limit=x")
    assert (await tour.call(200, "list_audit", OPERATOR)).json()["data"]
    await tour.call(422, "list_audit", OPERATOR, "?limit=0&before=x&action=x&since=x")
    await tour.call(204, "open_console", OPERATOR, headers=AGAIN)
    await tour.call(409, "open_console", OPERATOR, headers=AGAIN, json={})
    await tour.call(422, "open_console", OPERATOR, headers={"Idempotency-Key": ""})
    await tour.call(200, "replay", OPERATOR, json={"lane": "apns/default"}, headers=AGAIN)
    await tour.call(409, "replay", OPERATOR, json={"lane": "fcm/default"}, headers=AGAIN)
    await tour.call(422, "replay", OPERATOR, json={})
    await tour.call(200, "metrics", OPERATOR)
    await tour.call(200, "healthz", "")
    await tour.call(200, "readyz", "")


async def tour_of_refusals(tour: Tour) -> None:
    """Call every operation without a token, with a token of the wrong kind, and with invalid bodies."""
    names = dict.fromkeys(("user_id", "team_id", "key"), "1") | {"token": PHONE}
    ids = names | {"notification_id": UNKNOWN, "event_id": UNKNOWN, "device_id": UNKNOWN}
    for _, path, operation in operations(tour.document):
        name, more = operation["operationId"], {key: ids[key] for key in re.findall(r"{(\w+)}", path)}
        if operation["security"]:
            is_users = operation["tags"][0] in {"notifications", "devices"}
            token, other = (USER, CRM) if is_users else (CRM, USER)
            token = OPERATOR if operation["tags"][0] == "operations" else token
            await tour.call(401, name, "", **more)
            await tour.call(403, name, other, **more)
        if "requestBody" in operation:
            json_ = {"Content-Type": JSON}
            if name == "import_lines":
                json_ = {"Content-Type": "application/x-ndjson"}
            else:
                await tour.call(400, name, token, content=b"{", headers=json_, **more)
            limit = MAX_BATCH_BODY_BYTES if name == "post_batch" else MAX_BODY_BYTES
            await tour.call(413, name, token, content=b" " * (limit + 1), headers=json_, **more)
            await tour.call(415, name, token, content=b"{}", headers={"Content-Type": "text/plain"}, **more)


async def tour_of_devices_of_others(tour: Tour) -> None:
    await tour.api.as_user(1, "POST", f"/notifications/devices/{PHONE}")
    assert (await tour.call(200, "find_devices", OPERATOR, f"?ending={PHONE[-6:]}")).json()["data"]
    await tour.call(422, "find_devices", OPERATOR)
    [device] = (await tour.call(200, "get_person", OPERATOR, user_id=1)).json()["devices"]
    phone = {"user_id": 1, "device_id": device["id"]}
    answer = await tour.call(200, "test_device_of_person", OPERATOR, headers=AGAIN, **phone)
    assert answer.json()["state"] == "stopped", "without a key of the provider"
    await tour.call(409, "test_device_of_person", OPERATOR, headers=AGAIN, json={}, **phone)
    await tour.call(422, "test_device_of_person", OPERATOR, headers=TOO_LONG, **phone)
    await tour.call(404, "test_device_of_person", OPERATOR, user_id=1, device_id=UNKNOWN)


async def tour_of_limits(tour: Tour) -> None:
    """Call every operation that needs a token when the limits of all callers are used up."""
    settings = settings_for(limit_user_requests="1/hour", limit_service_requests="1/hour")
    before, limits = tour.api.app_state.limits, RateLimits(tour.api.app_state.database, settings)
    object.__setattr__(tour.api.app_state, "limits", limits)
    ids = dict.fromkeys(("user_id", "team_id", "key"), "1")
    ids |= dict.fromkeys(("notification_id", "event_id", "device_id"), UNKNOWN)
    for token in (USER, CRM):
        await tour.api.call("GET", "/notifications", token)
    for _, path, operation in operations(tour.document):
        if operation["security"]:
            more = {key: {**ids, "token": PHONE}[key] for key in re.findall(r"{(\w+)}", path)}
            token = USER if operation["tags"][0] in {"notifications", "devices"} else CRM
            await tour.call(429, operation["operationId"], token, **more)
    object.__setattr__(tour.api.app_state, "limits", before)


def test_every_kind_has_a_schema_that_its_sample_fits(document: dict[str, Any], api: Api) -> None:
    for name, sample in api.app_state.catalogue.samples.items():
        for part in ("data", "params"):
            schema = document["components"]["schemas"][f"{names_of(api.app_state.catalogue)[name]}{part.capitalize()}"]
            validator(document, schema).validate(sample["event"].get(part, {}))


@pytest.mark.one_cell("?cell= is a parameter only with several cells")
async def test_every_parameter_that_is_read_is_documented(document: dict[str, Any]) -> None:
    read = {
        ("/notifications", "get"): {"show", "page", "per_page", "cursor"},
        ("/notifications/changes", "get"): {"since"},
        ("/notifications/links", "get"): {"ids"},
        ("/events/{event_id}", "get"): {"wait"},
        ("/operations/history", "get"): {"minutes"},
        ("/operations/dead-letters", "get"): {"before", "limit"},
        ("/operations/users/{user_id}/events", "get"): {"since", "limit"},
        ("/operations/devices", "get"): {"ending"},
        ("/operations/users", "get"): {"search", "limit"},
        ("/operations/events/{event_id}/recipients", "get"): {"after", "limit", "pushed"},
        ("/operations/custom-notifications", "get"): {"before", "limit"},
        ("/operations/audit", "get"): {"before", "limit", "caller", "action", "since", "until"},
        ("/directory/users", "get"): {"after", "company_id", "limit"},
        ("/directory/teams", "get"): {"after", "company_id", "limit"},
    }
    for method, path, operation in operations(document):
        headers = {each["name"] for each in operation.get("parameters", []) if each["in"] == "header"}
        assert ("Idempotency-Key" in headers) == (method == "POST"), path
        named = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
        assert named == read.get((path, method.lower()), set()), path


async def test_api_reference_page_loads_nothing_from_other_hosts(api: Api) -> None:
    page = await api.call("GET", "/docs")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert_page_headers(page)
    assert re.search(r"https?:|//\w", page.text) is None
    links = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(links) >= 4
    kinds = {"css": "text/css", "js": "text/javascript"}
    for link in links:
        if link.startswith("data:"):
            continue
        asset = await api.call("GET", f"/{link}")
        assert asset.status_code == 200, link
        assert asset.headers["content-type"].partition(";")[0] == kinds[link.rpartition(".")[2]]
        assert asset.content
        assert asset.headers["x-content-type-options"] == "nosniff"
    start = (await api.call("GET", "/docs/start.js")).text
    assert 'url: "openapi.json"' in start
    assert re.search(r"https?:", start) is None
    style = (await api.call("GET", "/docs/swagger-ui.css")).text
    assert re.findall(r"url\((?!\s*['\"]?data:)[^)]{0,60}|@import", style) == []
