"""The OpenAPI document: sound in itself, complete, and true; and the page that shows it."""

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from conftest import Api
from test_problems import UNKNOWN, at_rest, routes_of
from test_road import custom, note

JSON = "application/json"
OF_THE_DOCUMENT = {"/openapi.json", "/docs", "/docs/{name}"}
"""The document and the page that shows it do not describe themselves."""


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
    for found in inside(document["paths"]):
        if isinstance(found, dict) and "schema" in found:
            yield found["schema"]


def validator(document: dict[str, Any], schema: Any) -> Draft202012Validator:
    """Return what checks a value by a schema of the document, whose references lead into it."""
    resource = DRAFT202012.create_resource(document)
    resolver = Registry().with_resource("urn:tocsin", resource)
    absolute = json.loads(json.dumps(schema).replace('"$ref": "#/', '"$ref": "urn:tocsin#/'))
    return Draft202012Validator(absolute, registry=resolver, format_checker=FormatChecker())


def test_it_is_of_version_3_1_and_says_what_it_is(document: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert document["info"]["title"]
    assert document["info"]["version"]
    assert set(document) <= {"openapi", "info", "paths", "components", "tags", "servers", "security"}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = {found["$ref"] for found in inside(document) if isinstance(found, dict) and "$ref" in found}
    assert references
    for reference in references:
        assert reference.startswith("#/"), reference
        place = document
        for key in reference[2:].split("/"):
            place = place[key]


def test_every_schema_is_one(document: dict[str, Any]) -> None:
    found = list(schemas(document))
    assert len(found) > 50
    for schema in found:
        Draft202012Validator.check_schema(schema)


def test_every_operation_is_well_formed(document: dict[str, Any]) -> None:
    names = []
    for method, path, operation in operations(document):
        names.append(operation["operationId"])
        assert operation["summary"], path
        in_path = [each["name"] for each in operation.get("parameters", []) if each["in"] == "path"]
        assert sorted(in_path) == sorted(re.findall(r"\{(\w+)\}", path))
        assert all(each["required"] for each in operation.get("parameters", []) if each["in"] == "path")
        assert ("requestBody" in operation) <= (method in {"POST", "PUT", "PATCH"})
        assert any(status.startswith("2") for status in operation["responses"])
        assert all(response["description"] for response in operation["responses"].values())
        is_open = path in {"/healthz", "/readyz"}
        assert operation.get("security") == (None if is_open else [{"bearer": []}]), path
        assert {"401", "403"}.isdisjoint(operation["responses"]) is is_open
        for each in operation.get("parameters", []):
            Draft202012Validator.check_schema(each["schema"])
    assert len(set(names)) == len(names)
    assert set(document["components"]["securitySchemes"]) == {"bearer"}


def test_it_has_every_route_and_no_other(document: dict[str, Any], api: Api) -> None:
    described = {(method, path) for method, path, _ in operations(document)}
    assert described == {route for route in routes_of(api) if route[1] not in OF_THE_DOCUMENT}


def test_every_example_is_what_its_schema_allows(document: dict[str, Any]) -> None:
    count = 0
    for _, _, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for example in content.get("examples", {}).values():
                validator(document, content["schema"]).validate(example["value"])
                count += 1
    assert count > 20


async def test_every_answer_is_what_the_document_says(document: dict[str, Any], api: Api) -> None:
    await api.people(1, 4)
    await api.people(5, profile_picture="https://x/y.png", email="a@b", locale="da-DK")
    await api.team(7, 1, 5)
    ids = [await api.post(event) for event in (custom(1, 5), note(1))]
    await api.as_user(1, "PUT", f"/notifications/{ids[0]}/read")
    user, service = partial(api.as_user, 1), api.as_service
    notification, event = "/notifications/{notification_id}", "/events/{event_id}"
    person, team = "/directory/users/{user_id}", "/directory/teams/{team_id}"
    body = {"message": "x", "notify": {"users": [1]}}
    calls = [
        ("/notifications", 200, await user("GET", "/notifications?per_page=1")),
        ("/notifications", 422, await user("GET", "/notifications?per_page=x&page=0")),
        ("/notifications", 401, await api.call("GET", "/notifications")),
        ("/notifications", 202, await user("POST", "/notifications", json=body)),
        ("/notifications", 400, await user("POST", "/notifications", content=b"{", headers={"Content-Type": JSON})),
        ("/notifications", 415, await user("POST", "/notifications", content=b"{}", headers={"Content-Type": "x"})),
        ("/notifications", 403, await service("POST", "/notifications", json=body)),
        (notification, 200, await user("GET", f"/notifications/{ids[0]}")),
        (notification, 200, await user("GET", f"/notifications/{ids[1]}")),
        (notification, 404, await user("GET", f"/notifications/{UNKNOWN}")),
        (f"{notification}/read", 204, await user("PUT", f"/notifications/{ids[1]}/read")),
        ("/notifications/read", 204, await user("PUT", "/notifications/read")),
        ("/events", 202, await service("POST", "/events", json=custom(1))),
        ("/events", 422, await service("POST", "/events", json={})),
        (event, 200, await service("GET", f"/events/{ids[0]}?wait=1")),
        (event, 404, await service("GET", f"/events/{UNKNOWN}")),
        (person, 200, await service("GET", "/directory/users/1")),
        (person, 200, await service("GET", "/directory/users/5")),
        (person, 404, await service("GET", "/directory/users/99")),
        (person, 422, await service("PUT", "/directory/users/1", json={})),
        (team, 200, await service("GET", "/directory/teams/7")),
        (team, 204, await service("PUT", "/directory/teams/7", json={"name": "x"})),
        ("/healthz", 200, await api.call("GET", "/healthz")),
        ("/readyz", 200, await api.call("GET", "/readyz")),
    ]
    await at_rest(api)
    for path, status, answer in calls:
        assert answer.status_code == status, answer.text
        described = document["paths"][path][answer.request.method.lower()]["responses"][str(status)]
        if status == 204:
            assert "content" not in described
            assert answer.content == b""
        else:
            schema = described["content"]["application/json"]["schema"]
            assert schema or path in {"/healthz", "/readyz"}, path
            validator(document, schema).validate(answer.json())


def test_every_kinds_data_and_params_have_a_schema_that_its_sample_fits(document: dict[str, Any], api: Api) -> None:
    for name, sample in api.house.catalogue.samples.items():
        for part in ("data", "params"):
            schema = document["components"]["schemas"][f"{name.replace('/', '.')}.{part}"]
            validator(document, schema).validate(sample["event"].get(part, {}))


async def test_a_parameter_is_described_for_every_one_that_is_read(document: dict[str, Any]) -> None:
    read = {
        ("/notifications", "get"): {"show", "page", "per_page", "cursor"},
        ("/notifications/changes", "get"): {"since"},
        ("/events/{event_id}", "get"): {"wait"},
        ("/directory/users", "get"): {"after", "company_id", "limit"},
        ("/directory/teams", "get"): {"after", "company_id", "limit"},
    }
    for method, path, operation in operations(document):
        named = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
        assert named == read.get((path, method.lower()), set()), path


async def test_the_page_that_shows_it_loads_nothing_from_elsewhere(api: Api) -> None:
    page = await api.call("GET", "/docs")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
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
