"""Validation: invalid input is rejected with all its errors; unusual but valid input is kept unchanged."""

import asyncio
import copy
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from tests.support.answers import codes_of, raw, sealed
from tests.support.events import custom, note
from tests.support.service import DAY, SECRET, Api, standing_token
from tocsin.auth.minting import mint_service
from tocsin.catalogue import Catalogue
from tocsin.catalogue.rendering import one_line

MIB = 2**20
JSON = "application/json"
USER = standing_token(1)
CRM = mint_service(SECRET, "crm", ["events:write", "directory:write"], DAY)
OPERATOR = mint_service(SECRET, "crm", ["events:write", "operations"], DAY)
UNKNOWN = "00000000-0000-4000-8000-000000000000"
DOORS = [
    ("POST", "/notifications", USER),
    ("POST", "/events", CRM),
    ("PUT", "/directory/users/9", CRM),
    ("PUT", "/directory/teams/9", CRM),
]
"""Every endpoint with a body, with a token that is authorized."""

GOOD = {"message": "x", "notify": {"users": [1]}}

NO_JSON = {
    "NUL": b'{"message": "a\0b"}',
    "escaped NUL": b'{"message": "a\\u0000b"}',
    "escaped NUL in a key": b'{"a\\u0000b": 1}',
    "escaped NUL deep inside": b'{"x": [[{"y": ["\\u0000"]}]]}',
    "lone high surrogate": b'{"message": "\\ud83d"}',
    "lone low surrogate": b'{"message": "\\udd14"}',
    "swapped surrogates": b'{"message": "\\udd14\\ud83d"}',
    "surrogate in a key": b'{"\\uDBFF": 1}',
    "surrogate as UTF-8": b'{"message": "\xed\xa0\xbd"}',
    "NaN": b'{"message": NaN}',
    "Infinity": b'{"message": Infinity}',
    "-Infinity": b'{"message": [-Infinity]}',
    "a number beyond doubles": b'{"message": 1e999}',
    "a key twice": b'{"message": "a", "message": "a"}',
    "a key twice, once escaped": b'{"message": "a", "m\\u0065ssage": "b"}',
    "a key twice inside": b'{"notify": {"users": [1], "users": [2]}}',
    "33 deep": b'{"x": ' + b"[" * 32 + b"]" * 32 + b"}",
    "100 deep arrays": b'{"x": ' + b"[" * 100 + b"]" * 100 + b"}",
    "100 deep objects": b'{"x":' * 100 + b"1" + b"}" * 100,
    "500,000 deep": b"[" * 500_000,
    "500,000 deep objects": b'{"x":' * 200_000,
    "latin-1": '{"message": "é"}'.encode("latin-1"),
    "overlong": b'{"message": "\xc0\xaf"}',
    "beyond Unicode": b'{"message": "\xf4\x90\x80\x80"}',
    "cut in a character": b'{"message": "\xf0\x9f\x94',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "an array": b"[]",
    "an array of one": b'[{"message": "x"}]',
    "a number": b"1",
    "a string": b'"x"',
    "null": b"null",
    "true": b"true",
    "white space": b" \n",
    "truncated": b'{"message": "x"',
    "truncated string": b'{"message": "x',
    "a comma too many": b'{"message": "x",}',
    "single quotes": b"{'message': 'x'}",
    "a comment": b'{"message": "x"} // y',
    "two values": b"{} {}",
    "a raw control character": b'{"message": "a\nb"}',
    "leading zero": b'{"message": 01}',
    "a plus": b'{"message": +1}',
    "hex": b'{"message": 0x1}',
    "a bad escape": b'{"message": "\\x41"}',
    "a form": b"message=x&notify=1",
    "a lone bracket": b"}",
}


async def stored(api: Api) -> list[Any]:
    """Return what the service stores, except the users of the test."""
    counted = "select (select count(*) from {}), (select count(*) from {}), (select count(*) from {})"
    row = await api.app_state.database.row(counted.format("events", "jobs", "subjects"))
    return [
        *(row or []),
        *await api.app_state.database.rows("select id from users where id = 9 union select id from teams"),
    ]


@pytest.fixture
async def guarded(api: Api) -> AsyncIterator[Api]:
    """The service with users 1 and 2, which must have stored nothing at the end of the test."""
    await api.people(1, 2)
    yield api
    assert await stored(api) == [0, 0, 0]


async def send(api: Api, handler: tuple[str, str, str], body: bytes, content_type: str | None = JSON) -> httpx.Response:
    method, path, token = handler
    headers = {"Content-Type": content_type} if content_type is not None else {}
    return await api.call(method, path, token, content=body, headers=headers)


async def both(api: Api, event: dict[str, Any]) -> tuple[Any, Any]:
    """Return the responses of both endpoints with `notify` to the same `notify`."""
    posted = await api.call("POST", "/notifications", USER, json={"message": "x", **event})
    produced = await api.call("POST", "/events", CRM, json={**custom(), **event})
    return codes_of(posted), codes_of(produced)


async def test_every_endpoint_rejects_json_that_is_not_strict(guarded: Api) -> None:
    wrong = {}
    for handler in DOORS:
        answers = await asyncio.gather(*[send(guarded, handler, body) for body in NO_JSON.values()])
        for name, answer in zip(NO_JSON, answers, strict=True):
            if codes_of(answer) != (400, [("malformed", None)]) or not sealed(answer):
                wrong[handler[1], name] = answer.status_code, answer.text
    assert wrong == {}


async def test_unusual_but_valid_json_of_32_levels_is_accepted(idle: Api) -> None:
    await idle.people(1)
    more = [
        b'"x": ' + b"[" * 31 + b"]" * 31,
        b'"x": "\\ud83d\\udd14 \\\\u0000 \\\\ud800"',
        b'"x": "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["',
        b'"x": -1.5e-300, "__proto__": {"y": null}, "": ""',
        b'"x": ' + b"9" * 5000,
    ]
    for given in more:
        body = b' \t\r\n{"message": "x", "notify": {"users": [1]}, %s}\n' % given
        assert (await send(idle, DOORS[0], body)).status_code == 202, given[:60]


async def test_integer_fields_reject_other_types(guarded: Api) -> None:
    integer, between = "validation.integer", "validation.numeric_between"
    table: list[tuple[str, str]] = [
        *[(value, integer) for value in ("true", "false", '"1"', "1.0", "1e0", "1.5", "null", "[]", "{}", "[1]", '""')],
        *[(value, between) for value in ("0", "-1", "-0", "2147483648", "1" * 30, "-" + "9" * 30, "9" * 4000)],
    ]
    wrong = {}
    for value, code in table:
        notify = b'{"message": "x", "notify": {"users": [1, %s], "teams": [%s]}}' % ((value.encode(),) * 2)
        members = b'{"name": "x", "users": [1, %s]}' % value.encode()
        user = b'{"first_name": "a", "last_name": "b", "company_id": %s}' % value.encode()
        due = [(code, "notify.users.1"), (code, "notify.teams.0")]
        said = [
            codes_of(await send(guarded, DOORS[0], notify)) == (422, due),
            codes_of(await send(guarded, DOORS[3], members)) == (422, [(code, "users.1")]),
            value == "null" or codes_of(await send(guarded, DOORS[2], user)) == (422, [(code, "company_id")]),
        ]
        if not all(said):
            wrong[value[:40]] = said
    assert wrong == {}


async def test_integer_fields_of_event_data_reject_other_types(guarded: Api) -> None:
    wrong = {}
    for value, code in ((True, "integer"), ("6", "integer"), (6.0, "integer"), (None, "integer"), ([], "integer")):
        event = note(1)
        event["data"] = {**event["data"], "case": {**event["data"]["case"], "case_number": value}}
        answer = codes_of(await guarded.call("POST", "/events", CRM, json=event))
        if answer != (422, [(f"validation.{code}", "data.case.case_number")]):
            wrong[str(value)] = answer
    for value in (-1, 2**53, 10**30, -(10**30)):
        event = note(1)
        event["data"] = {**event["data"], "case": {**event["data"]["case"], "case_number": value}}
        answer = codes_of(await guarded.call("POST", "/events", CRM, json=event))
        if answer != (422, [("validation.numeric_between", "data.case.case_number")]):
            wrong[str(value)] = answer
    assert wrong == {}


async def parts(size: int) -> AsyncIterator[bytes]:
    yield b'{"message": "'
    for _ in range(size // 65_536):
        yield b"x" * 65_536
    yield b'"}'


async def test_body_over_the_limit_is_413(guarded: Api) -> None:
    for method, path, token in DOORS:
        headers = {"Content-Type": JSON}
        for content in (b"x" * 2 * MIB, b" " * (MIB + 1), parts(2 * MIB)):
            answer = await guarded.call(method, path, token, content=content, headers=headers)
            assert codes_of(answer) == (413, [("too_large", None)]), (path, answer.text)
            assert sealed(answer)
        announced = f"{method} {path} HTTP/1.1\nAuthorization: Bearer {token}\nContent-Length: {10**15}\n"
        assert codes_of(await raw(guarded, announced)) == (413, [("too_large", None)])
        announced = f"{method} {path} HTTP/1.1\nAuthorization: Bearer {token}\nContent-Length: {'0' * 5_000}{10**15}\n"
        assert codes_of(await raw(guarded, announced)) == (413, [("too_large", None)])
    assert (await guarded.as_user(1, "GET", "/notifications")).status_code == 200


async def test_body_at_the_limit_is_accepted(guarded: Api) -> None:
    body = json.dumps({"message": "x" * (MIB - 16)}).encode()
    assert len(body) <= MIB
    assert (await send(guarded, DOORS[0], body)).status_code == 422
    assert (await send(guarded, DOORS[0], b" " * (MIB - 2) + b"{}")).status_code == 422


async def test_content_type_must_be_json(guarded: Api) -> None:
    bad = [
        None,
        *("", "json", "application", "application/", "text/plain", "text/json", "*/*", "application/*", JSON + "x"),
        *("application/json5", "application/x-ndjson", "application/merge-patch+json", "application/vnd.x+json"),
        *("multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "text/plain; application/json"),
        *(f"{JSON}, text/plain", f"text/plain, {JSON}", f";{JSON}", f'"{JSON}"', "a" * 10_000, "\xe9/\xe9"),
    ]
    wrong = {}
    for handler in DOORS:
        for given in bad:
            header = given.encode("latin-1") if given is not None else None
            headers = [
                (b"Authorization", f"Bearer {handler[2]}".encode()),
                *([(b"Content-Type", header)] if header else []),
            ]
            answer = await guarded.http.request(*handler[:2], headers=headers, content=b'{"x": 1}')
            if codes_of(answer) != (415, [("content_type", None)]):
                wrong[handler[1], given] = answer.status_code, answer.text
    assert wrong == {}


async def test_content_type_parameters_and_case_are_ignored(guarded: Api) -> None:
    good = [JSON, "Application/JSON", f"{JSON};", f"{JSON}; charset=utf-8", f"{JSON} ; charset=UTF-8; x=y"]
    for handler in DOORS:
        for given in good:
            assert (await send(guarded, handler, b'{"x": 1}', given)).status_code == 422, (handler, given)
        for absent in (None, "text/plain", JSON):
            assert (await send(guarded, handler, b"", absent)).status_code == 422, (handler, absent)
        chunked = (
            f"{handler[0]} {handler[1]} HTTP/1.1\nAuthorization: Bearer {handler[2]}\nTransfer-Encoding: chunked\n"
        )
        assert (await raw(guarded, chunked, b"0\r\n\r\n")).status_code == 422


async def test_compressed_body_is_refused_by_its_coding(guarded: Api) -> None:
    routes = [*((*door, JSON) for door in DOORS), ("POST", "/directory/import", CRM, "application/x-ndjson")]
    for method, path, token, kind in routes:
        for coding, content in (("gzip", gzip.compress(b"{}")), ("Deflate", zlib.compress(b"{}"))):
            headers = {"Content-Type": kind, "Content-Encoding": coding}
            answer = await guarded.call(method, path, token, content=content, headers=headers)
            assert codes_of(answer) == (415, [("content_type", None)]), (path, coding)
            assert "Content-Encoding" in answer.json()["errors"][0]["message"]
        headers = {"Content-Type": kind, "Content-Encoding": "identity"}
        assert (await guarded.call(method, path, token, content=b"{}", headers=headers)).status_code == 422


async def test_custom_notification_reports_all_errors(guarded: Api) -> None:
    body = {"message": 5, "notify": {"users": [1, True, "2", 0], "teams": [10**30, None, []]}}
    answer = await guarded.call("POST", "/notifications", USER, json=body)
    assert codes_of(answer) == (
        422,
        [
            ("validation.string", "message"),
            ("validation.integer", "notify.users.1"),
            ("validation.integer", "notify.users.2"),
            ("validation.numeric_between", "notify.users.3"),
            ("validation.numeric_between", "notify.teams.0"),
            ("validation.integer", "notify.teams.1"),
            ("validation.integer", "notify.teams.2"),
        ],
    )
    many = await guarded.call("POST", "/notifications", USER, json={"notify": {"users": [True] * 3000}})
    assert (len(codes_of(many)[1]), many.json()["more"]) == (100, 2901)


async def test_event_reports_all_errors(guarded: Api) -> None:
    event = {
        "type": "note",
        "notify": {"users": {"1": 1}, "teams": [7, "8"]},
        "data": {"user": {"id": "4", "first_name": 1, "x": 2}, "case": {"id": "6", "case_number": -1}, "colour": "red"},
        "params": {"contact": " ", "contact_id": 5, "body": "x" * 10_001, "more": None},
    }
    status, found = codes_of(await guarded.call("POST", "/events", CRM, json=event))
    assert status == 422
    assert set(found) == {
        ("validation.array", "notify.users"),
        ("validation.unknown", "notify.teams.0"),
        ("validation.integer", "notify.teams.1"),
        ("validation.integer", "data.user.id"),
        ("validation.string", "data.user.first_name"),
        ("validation.required", "data.user.last_name"),
        ("validation.required", "data.user.profile_picture"),
        ("validation.prohibited", "data.user.x"),
        ("validation.uuid", "data.case.id"),
        ("validation.numeric_between", "data.case.case_number"),
        ("validation.required", "data.case.relations_path_name"),
        ("validation.prohibited", "data.colour"),
        ("validation.string_between", "params.contact"),
        ("validation.uuid", "params.contact_id"),
        ("validation.string_between", "params.body"),
        ("validation.prohibited", "params.more"),
    }
    assert len(found) == 16


@pytest.mark.parametrize(
    ("event", "due"),
    [
        ({}, [("required", "type"), ("required_without", "notify.users"), ("required_without", "notify.teams")]),
        ({"type": None, "notify": {"users": [1]}}, [("required", "type")]),
        ({"type": 1, "notify": [1], "data": [], "params": ""}, ["string", "object", "object", "object"]),
        ({"type": {"a": 1}, "notify": {"users": [1]}}, [("string", "type")]),
        ({"type": "Note", "notify": {"users": [1]}}, [("in", "type")]),
        ({"type": "gamification/new_level", "notify": {"users": [1]}}, [("in", "type")]),
        ({"type": "gamification", "notify": {"users": [1]}}, [("required", "data")]),
        ({"type": "gamification", "notify": {"users": [1]}, "data": []}, [("object", "data")]),
        ({"type": "gamification", "notify": {"users": [1]}, "data": {"event": "x"}}, [("object", "data.event")]),
        ({"type": "gamification", "notify": {"users": [1]}, "data": {"event": {}}}, [("required", "data.event.type")]),
        ({"type": "gamification", "notify": {"users": [1]}, "data": {"event": {"type": [[]]}}}, ["string"]),
        ({"type": "gamification", "notify": {"users": [1]}, "data": {"event": {"type": "x"}}}, ["in"]),
        ({"type": "custom", "notify": {"users": [1]}}, [("required", "params")]),
        ({"type": "custom", "notify": {"users": [1]}, "params": []}, [("object", "params")]),
        ({"type": "custom", "notify": {"users": [1]}, "params": {"body": " \n"}}, [("required", "params.body")]),
    ],
)
async def test_event_must_be_a_valid_object(guarded: Api, event: dict[str, Any], due: list[Any]) -> None:
    status, found = codes_of(await guarded.call("POST", "/events", CRM, json=event))
    assert status == 422
    for (code, name), expected in zip(found, due, strict=True):
        assert code.removeprefix("validation.") in expected if isinstance(expected, str) else True
        assert isinstance(expected, str) or (code.removeprefix("validation."), name) == expected


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Return the path of each value in a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, found in inner:
        yield from places(found, (*path, key))


def put(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """Return a copy of a JSON value with another value at a path."""
    changed = copy.deepcopy(value)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return changed


@pytest.mark.parametrize("name", ["note", "high_fived/activity_created", "custom"])
async def test_wrong_type_is_reported_at_its_field(guarded: Api, catalogue: Catalogue, name: str) -> None:
    event = {**(catalogue.samples[name]["event"] if name != "custom" else custom()), "notify": {"users": [1]}}
    odd = [True, 1.5, -7, 10**30, [], {}, [[]], {"a": {}}, "\U0010ffff" * 10_001]
    tried = [(path, new) for path in places(event) if path for new in odd]
    answers = await asyncio.gather(
        *[guarded.call("POST", "/events", CRM, json=put(event, path, new)) for path, new in tried]
    )
    wrong = []
    for (path, new), answer in zip(tried, answers, strict=True):
        status, found = codes_of(answer)
        place = ".".join(map(str, path))
        empty = path[0] == "notify" and new in ([], {}) and found == NOBODY
        related = [field for _, field in found if field == place or f"{field}".startswith(f"{place}.")]
        if status != 422 or not (empty or related):
            wrong.append((place, str(new)[:20], status, found))
    assert wrong == []


NOBODY = [("validation.required_without", f"notify.{name}") for name in ("users", "teams")]


async def test_empty_array_counts_as_absent(guarded: Api) -> None:
    empty: list[dict[str, list[int]]] = [{}, {"users": []}, {"teams": []}, {"users": [], "teams": []}]
    for notify in empty:
        assert await both(guarded, {"notify": notify}) == ((422, NOBODY), (422, NOBODY)), notify
    assert codes_of(await guarded.call("POST", "/notifications", USER, json={"message": "x"})) == (422, NOBODY)
    unknown = [("validation.unknown", "notify.teams.0")]
    assert await both(guarded, {"notify": {"users": [], "teams": [7]}}) == ((422, unknown), (422, unknown))


@pytest.mark.parametrize(
    ("method", "path", "body", "due"),
    [
        ("PUT", "/notifications/read", {"ids": None}, ("validation.array", "ids")),
        ("PUT", "/notifications/read", {"up_to": None}, ("validation.uuid", "up_to")),
        ("POST", "/events/resolve", {"about": "order:42", "as": "gone", "users": None}, ("validation.array", "users")),
        ("POST", "/operations/replay", {"events": None, "lane": "apns/default"}, ("validation.array", "events")),
        ("POST", "/operations/replay", {"events": [UNKNOWN], "lane": None}, ("validation.string", "lane")),
    ],
)
async def test_null_in_a_field_that_narrows_a_request_is_refused(
    idle: Api, method: str, path: str, body: dict[str, Any], due: tuple[str, str]
) -> None:
    await idle.people(1)
    token = USER if path == "/notifications/read" else OPERATOR
    assert codes_of(await idle.call(method, path, token, json=body)) == (422, [due])


async def test_ids_of_other_companies_are_reported_as_unknown(guarded: Api) -> None:
    await guarded.people(3, company_id=2)
    await guarded.app_state.database.value("insert into teams values (7, 1, 'ours'), (8, 2, 'theirs')")
    notify = {"users": [1, 3, 2, 99, 3], "teams": [7, 8, 9]}
    answer = await guarded.call("POST", "/notifications", USER, json={"message": "x", "notify": notify})
    fields = ("notify.users.1", "notify.users.3", "notify.users.4", "notify.teams.1", "notify.teams.2")
    assert codes_of(answer) == (422, [("validation.unknown", name) for name in fields])
    messages = [error["message"].replace(error["field"], "") for error in answer.json()["errors"]]
    assert (len(set(messages[:3])), len(set(messages[3:]))) == (1, 1)
    await guarded.app_state.database.value("delete from teams")


async def test_event_has_at_most_10000_ids(guarded: Api) -> None:
    between = ("validation.array_between", "notify")
    for notify in ({"users": [1] * 10_001}, {"teams": [1] * 10_001}, {"users": [1] * 5000, "teams": [1] * 5001}):
        assert await both(guarded, {"notify": notify}) == ((422, [between]), (422, [between]))
    mixed = await guarded.call("POST", "/notifications", USER, json={"notify": {"users": [0, *[1] * 10_000]}})
    due = {("validation.required", "message"), between}
    assert set(codes_of(mixed)[1]) == due
    unknown = await both(guarded, {"notify": {"users": list(range(10, 10_010))}})
    assert [(status, len(found)) for status, found in unknown] == [(422, 100)] * 2


async def test_trimmed_message_has_1_to_512_characters(idle: Api) -> None:
    await idle.people(1)
    bell = "\U0001f514"
    table = [
        (bell * 512, 202),
        (f"\n \t\u3000\u2003{'x' * 512}\r\n\xa0", 202),
        ("\u200b", 202),
        (bell * 513, "string_between"),
        ("e\u0301" * 257, "string_between"),
        ("x" * 513 + " " * 10, "string_between"),
        ("", "required"),
        (" ", "required"),
        ("\r\n\t\u3000\u2028\x85\xa0", "required"),
        (None, "required"),
        (["x"], "string"),
        (True, "string"),
    ]
    wrong = []
    for message, due in table:
        body = {"message": message, "notify": {"users": [1]}}
        answer = codes_of(await idle.call("POST", "/notifications", USER, json=body))
        expected = (202, []) if due == 202 else (422, [(f"validation.{due}", "message")])
        if answer != expected:
            wrong.append((message, answer))
        if message is not None:
            given = codes_of(await idle.call("POST", "/events", CRM, json={**custom(1), "params": {"body": message}}))
            if given != (answer[0], [(code, "params.body") for code, _ in answer[1]]):
                wrong.append((message, given))
    assert wrong == []
    assert [row["n"] for row in await idle.app_state.database.rows("select count(*) as n from events")] == [6]


async def test_invalid_query_parameters_are_reported(api: Api) -> None:
    await api.people(1)
    integer = [
        "",
        " 5",
        "5 ",
        "+5",
        "1e3",
        "1.0",
        "0x1",
        "1_0",
        "٣",
        "x",
        "null",
        "-",
        "--1",
        "5\0",
        "%00",
        "\uff11",
        "[]",
    ]
    integer += ["\ud7ff", "1,2", "1;2", "true", "1\n"]
    wrong = []
    for name, highest in (("page", 10**6), ("per_page", 100), ("cursor", 2**63 - 1)):
        small = [str(-(2**62) - 1)] if name == "cursor" else ["0", "-1", "-0", "00"]
        between = [*small, str(highest + 1), "1" * 30, "-" + "9" * 30]
        for value, code in [*[(v, "integer") for v in integer], *[(v, "numeric_between") for v in between]]:
            answer = await api.call("GET", "/notifications", USER, params=[(name, "1"), (name, value)])
            if codes_of(answer) != (422, [(f"validation.{code}", name)]):
                wrong.append((name, value, answer.text))
        for value in ("1", str(highest), "007"):
            answer = await api.call("GET", "/notifications", USER, params=[(name, "x"), (name, value)])
            if answer.status_code != 200:
                wrong.append((name, value, answer.text))
    for value in ("", "all", "read", "UNREAD", "unread ", "unread\0", "true", "unread,unread"):
        answer = await api.call("GET", "/notifications", USER, params=[("show", "unread"), ("show", value)])
        if codes_of(answer) != (422, [("validation.in", "show")]):
            wrong.append(("show", value, answer.text))
    assert wrong == []
    answer = await api.call("GET", "/notifications?page=x&per_page=0&cursor=-x&show=", USER)
    assert [name for _, name in codes_of(answer)[1]] == ["page", "per_page", "cursor", "show"]
    assert (await api.call("GET", "/notifications?show=all&show=unread", USER)).status_code == 200


async def test_invalid_wait_parameter_is_reported(api: Api) -> None:
    await api.people(1)
    id_ = await api.post(custom(1))
    for value, code in (("", "integer"), ("x", "integer"), ("1.5", "integer"), ("-1", "numeric_between")):
        answer = await api.call("GET", f"/events/{id_}", CRM, params=[("wait", "0"), ("wait", value)])
        assert codes_of(answer) == (422, [(f"validation.{code}", "wait")])
    for value in ("31", "9" * 30):
        answer = await api.call("GET", f"/events/{id_}?wait={value}", CRM)
        assert codes_of(answer) == (422, [("validation.numeric_between", "wait")])
    for value in ("0", "30"):
        assert (await api.call("GET", f"/events/{id_}?wait=x&wait={value}", CRM)).json()["state"] == "delivered"


async def test_query_strings_of_any_bytes_are_kept_in_urls_or_ignored(api: Api) -> None:
    await api.people(1)
    for query in (
        "x=%ff%fe",
        "x=%00",
        "%00=%00",
        "=",
        "&&&",
        "x",
        "x=%",
        "%zz=%zz",
        "a;b",
        "x=/../..",
        "page=2%26page",
        "z&a=%F0&b=a%20b+c",
    ):
        given = f"GET /notifications?{query}&page=2 HTTP/1.1\nAuthorization: Bearer {USER}\n"
        answer = await raw(api, given)
        assert answer.status_code == 200, query
        previous = answer.json()["pagination"]["urls"]["previous"]
        kept = "" if query in {"&&&", "page=2%26page"} else f"{query}&"
        assert previous == f"http://x/notifications?{kept}page=1"
    for host in ("[", 'a"b', "a:99999999", "<script>", "é", ""):
        with_host = f"GET /notifications?page=2 HTTP/1.0\nHost: {host}\nAuthorization: Bearer {USER}\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", api.http.base_url.port)
        writer.write(with_host.replace("\n", "\r\n").encode() + b"\r\n")
        assert (await reader.readline()).split()[1] == b"200", host
        writer.close()
        await writer.wait_closed()


PLANES = "".join(chr(plane * 0x10000 + at) for plane in range(17) for at in (0x20, 0x3A9, 0x1F44, 0xFFFD, 0xFFFF))
ODD = {
    "planes": PLANES,
    "combining": "Z\u0351\u036b\u0343a\u030a\u0327 \u1112\u1161\u11ab \ufb01 \u212b",
    "rtl": "\u05e9\u05dc\u05d5\u05dd \u202eabc\u202c \u2066x\u2069 \u200f\u0645\u0631\u062d\u0628\u0627",
    "invisible": "a\u200b\u200c\u200d\u2060\ufeffb \x01\x1b[31m\x7f \x85\u2028\u2029 c",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f4\U000e0067\U000e007f \u2764\ufe0f \U0001f1e9",
    "marks": "** {x} *a* %s %(x)s {{7*7}} ${x} \\n \\u0041 __x__ {0} {user} ' \" ` $1",
    "html": "<script>alert(1)</script> &amp; </p> <img src=x onerror=alert(1)> &lt; <!-- x --> <br> ]]> a&b <a",
}


class Tags(HTMLParser):
    """Collects the tags and the text of HTML, and checks that each tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert attrs == []
        self.tags.add(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(decl)

    def handle_pi(self, data: str) -> None:
        raise AssertionError(data)


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def strings_of(event: dict[str, Any]) -> list[tuple[str | int, ...]]:
    """Return the paths of the strings of an event that can be anything."""
    found = []
    for path in places(event):
        value = at(event, path)
        if isinstance(value, str) and path[0] != "type" and path[1:] != ("event", "type") and value.count("-") != 4:
            found.append(path)
    return found


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
async def test_any_text_in_event_fields_is_shown_unchanged(api: Api, catalogue: Catalogue, text: str) -> None:
    await api.people(1)
    sent: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, sample in catalogue.samples.items():
        event = {**sample["event"], "notify": {"users": [1]}}
        for path in strings_of(event):
            event = put(event, path, f"<{'.'.join(map(str, path))}> {text} </{path[-1]}>")
        answer = await api.call("POST", "/events", CRM, json=event)
        assert answer.status_code == 202, (name, answer.text)
        sent[answer.json()["id"]] = name, event
    await api.call("GET", f"/events/{list(sent)[-1]}?wait=30", CRM)
    page = (await api.call("GET", "/notifications?per_page=100", USER)).json()
    assert [entry["id"] for entry in page["data"]] == list(sent)[::-1]
    for entry in page["data"]:
        name, event = sent[entry["id"]]
        if "data" in event:
            assert entry["data"] == event["data"], name
        html = Tags(entry["message_formatted"])
        assert html.tags <= {"p", "strong", "em", "br"}, name
        for value in spoken(catalogue.samples[name], event):
            assert value.strip() in entry["message"], name
            if not any(mark in value for mark in "\r\n"):
                assert value.strip() in html.text, name


def spoken(sample: dict[str, Any], event: dict[str, Any]) -> list[str]:
    """Return the texts of an event in place of which its sample has words that its message shows; names in one line."""
    return [
        at(event, path) if path == ("params", "body") else one_line(at(event, path))
        for path in strings_of(sample["event"])
        if path[0] == "params" or at(sample["event"], path) in sample["notification"]["message"]
    ]


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
async def test_directory_keeps_any_text_and_puts_names_on_one_line(api: Api, text: str) -> None:
    user = {
        "first_name": text,
        "last_name": text[::-1],
        "profile_picture": f"https://x/{text}",
        "email": text,
        "company_id": 1,
        "locale": "en",
        "time_zone": "UTC",
        "active": True,
    }
    await api.people(2)
    assert (await api.call("PUT", "/directory/users/1", CRM, json=user)).status_code == 204
    user |= {"first_name": one_line(text), "last_name": one_line(text[::-1])}
    assert (await api.call("GET", "/directory/users/1", CRM)).json() == {"id": 1, **user}
    assert (await api.call("PUT", "/directory/teams/7", CRM, json={"name": text, "users": [1, 2]})).status_code == 204
    assert (await api.call("GET", "/directory/teams/7", CRM)).json()["name"] == one_line(text)
    await api.post({**note(2), "data": {**note(2)["data"], "user": 1}})
    message = {"message": f" {text} ", "notify": {"users": [2]}}
    assert (await api.call("POST", "/notifications", USER, json=message)).status_code == 202
    id_ = await api.app_state.database.value("select id from events where service is null")
    await api.as_service("GET", f"/events/{id_}?wait=30", "operations")
    said, mentioned = (await api.inbox(2))["data"]
    person = {key: {"id": 1, **user}[key] for key in ("id", "first_name", "last_name", "profile_picture")}
    assert said["data"]["user"] == mentioned["data"]["user"] == person
    assert said["message"] == text.strip()
    assert Tags(said["message_formatted"]).text.replace("\r", "") == text.strip()
    assert one_line(f"{text} {text[::-1]}").strip() in mentioned["message"]
