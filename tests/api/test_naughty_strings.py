"""No string breaks a request, wherever it stands, and every string that is accepted arrives unchanged."""

import asyncio
import json
import statistics
import time
from typing import Any

import httpx
import pytest

from tests.support.answers import codes_of
from tests.support.fields import Field, Filled, fields_of
from tests.support.imports import import_lines
from tests.support.naughty import STRINGS, is_sendable, part_of
from tests.support.properties import rounds
from tests.support.pushes import ANDROID, IPHONE, register
from tests.support.service import HOUR, SECRET, Api, at_rest
from tests.support.streams import watching
from tests.support.waiting import LONGEST_WAIT, reaches
from tocsin.audit import Actor
from tocsin.auth.claims import SCOPES
from tocsin.auth.minting import mint_service, mint_user
from tocsin.catalogue.fields import MAX_MESSAGE_LENGTH
from tocsin.ids import new_id
from tocsin.transfer.exports import export
from tocsin_phones import Phones

PARTS = rounds(16, soak=1)
"""Each field gets NUL, which PostgreSQL refuses, and one of so many parts of the strings, the next field the next part.
`make soak` gives it all."""

SLOWEST = 200
"""How many times the processor time of a plain request any other may cost."""

CALLER = 50
"""The user who calls. Some of the strings are ids, of which the operations with these tags erase the users."""

ERASING = {"directory"}

OF_USERS = {"notifications", "devices"}

NEVER_ACCEPTED = {("POST", "/notifications/web-push/test")}
"""Operations with a body that accept none of the strings: the browser of the example is not registered."""


class RawConnection:
    """A connection that sends requests byte by byte as they are, and is opened again when the service closed it."""

    def __init__(self, api: Api) -> None:
        self._port = int(api.http.base_url.port or 0)
        self._user, self._service = mint_user(SECRET, CALLER, HOUR), mint_service(SECRET, "crm", sorted(SCOPES), HOUR)
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, field: Field, filled: Filled) -> httpx.Response:
        if field.place == "header":  # what follows a line end in a header may be another request
            self.close()
        if self._open is None:
            self._open = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._open
        writer.write(self._head(field, filled) + filled.body)
        answer = await asyncio.wait_for(_read(reader), LONGEST_WAIT)
        if field.place == "header" or "content-length" not in answer.headers or answer.is_error:
            self.close()
        return answer

    def _head(self, field: Field, filled: Filled) -> bytes:
        given = {
            "Host": "x",
            "Authorization": f"Bearer {self._user if field.tag in OF_USERS else self._service}",
            "Content-Type": filled.media_type,
            "Content-Length": str(len(filled.body)),
            **filled.headers,
        }
        lines = [f"{filled.method} {filled.path} HTTP/1.1", *(f"{name}: {text}" for name, text in given.items())]
        return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass")

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


async def _read(reader: asyncio.StreamReader) -> httpx.Response:
    """Return the next answer; that of a stream without its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = httpx.Headers([(name, value) for name, _, value in (line.partition(": ") for line in head[1:-2])])
    length = int(headers.get("content-length", "0"))
    return httpx.Response(int(head[0].split(" ")[1]), headers=headers, content=await reader.readexactly(length))


def problem_of(answer: httpx.Response) -> str | None:
    """Return what is wrong with an answer that is neither a success nor an error of a client in the contract's form."""
    if answer.is_success or answer.status_code == 304:
        return None
    if not answer.is_client_error:
        return f"{answer.status_code}: {answer.text}"
    try:
        codes_of(answer)
    except (AssertionError, KeyError, ValueError) as error:
        return f"{answer.status_code}: {answer.text}: {error!r}"
    return None


@pytest.mark.slow
@pytest.mark.usefixtures("unlimited")
async def test_no_string_in_any_field_breaks_a_request(pushing: Api) -> None:
    """Each is answered by a success or an error of a client, in time, and nothing that is accepted fails later."""
    await pushing.people(*range(1, 60))
    await pushing.team(7, 1, 2)
    fields = sorted(
        fields_of((await pushing.call("GET", "/openapi.json")).json()), key=lambda each: each.tag in ERASING
    )
    connection, problems, took = RawConnection(pushing), dict[tuple[str, str], str](), dict[tuple[str, str], float]()
    successes, plain = set[tuple[str, str]](), list[float]()
    for turn, field in enumerate(fields):
        for name, text in {"plain": "x", "NUL": STRINGS["NUL"], **dict(part_of(turn, PARTS))}.items():
            began = time.thread_time()
            answer = await connection.ask(field, field.request(text))
            took[str(field), name] = time.thread_time() - began
            if problem := problem_of(answer):
                problems[str(field), name] = problem
            if answer.is_success:
                successes.add((field.method, field.path))
        plain.append(took[str(field), "plain"])
    most = SLOWEST * statistics.median(plain)
    for field in fields:
        for name, text in STRINGS.items():
            if took.get((str(field), name), 0.0) > most:  # or the garbage collector came during that request
                began = time.thread_time()
                await connection.ask(field, field.request(text))
                took[str(field), name] = time.thread_time() - began
    connection.close()
    assert problems == {}
    assert {(field.method, field.path) for field in fields if field.media_type} - successes == NEVER_ACCEPTED
    assert {at: spent for at, spent in took.items() if spent > most} == {}
    await at_rest(pushing)
    assert await pushing.app_state.database.rows("select id, reason from dead_letters") == []


MESSAGES = {
    name: text.strip()
    for name, text in STRINGS.items()
    if is_sendable(text) and 1 <= len(text.strip()) <= MAX_MESSAGE_LENGTH
}
"""The strings that a custom notification accepts, as it keeps them."""


@pytest.fixture
async def phones_of_2(pushing: Api, phones: Phones) -> list[str]:
    """An iPhone, an Android phone and a browser of user 2."""
    await register(pushing, 2, IPHONE)
    await register(pushing, 2, ANDROID, type="Android")
    key = (await pushing.as_user(2, "GET", "/notifications/web-push/key")).json()["key"]
    subscription = phones.subscribe(key)
    answer = await pushing.as_user(2, "POST", "/notifications/web-push", json=subscription)
    assert answer.status_code == 204, answer.text
    return [IPHONE, ANDROID, subscription["endpoint"]]


@pytest.mark.slow
@pytest.mark.usefixtures("unlimited")
async def test_accepted_text_arrives_unchanged_everywhere(pushing: Api, phones: Phones, phones_of_2: list[str]) -> None:
    """In the inbox, the stream, on phones and browsers, in an export, and after its import."""
    async with watching(pushing, 2) as watch:
        for text in MESSAGES.values():
            body = {"message": f" {text}\n", "notify": {"users": [2]}}
            assert (await pushing.as_user(1, "POST", "/notifications", json=body)).status_code == 202, text
        await at_rest(pushing)
        streamed = await watch.until_received("notification", len(MESSAGES))
    listed = (await pushing.inbox(2, "?per_page=100"))["data"]
    texts = {entry["id"]: entry["message"] for entry in listed}
    assert sorted(texts.values()) == sorted(MESSAGES.values())
    assert {entry["id"]: entry for entry in streamed} == {entry["id"]: entry for entry in listed}
    await reaches(
        lambda: pushing.app_state.database.value("select count(*) from deliveries where settled_at is null"), 0
    )
    for token in phones_of_2:
        shown = {push["visible"]["id"]: push["visible"]["body"] for push in phones.pushes(token=token)}
        assert shown.keys() == texts.keys()
        assert {id_: text for id_, text in texts.items() if not is_shown(text, shown[id_])} == {}
    assert await imported_again(pushing, 2, 1) == sorted(
        (entry["message"], entry["message_formatted"], json.dumps(entry["data"])) for entry in listed
    )


def is_shown(text: str, body: str) -> bool:
    """Return whether a push shows a text, or its beginning if it is long. The mark of a line break is one there."""
    text = text.replace(" <br> ", "\n")
    return body == text or (len(text.encode()) > 1_000 and body.endswith("…") and text.startswith(body[:-1]))


async def imported_again(api: Api, user: int, other: int) -> list[tuple[str, str, str]]:
    """Export the notifications of a user, import them for another, and return theirs."""
    lines = [json.loads(line) async for line in export(api.app_state.database, Actor("test"))]
    theirs = [line["notification"] for line in lines if line.get("notification", {}).get("user_id") == user]
    moved = [{"notification": {**each, "user_id": other, "id": str(new_id())}} for each in theirs]
    await import_lines(api, *moved)
    listed = (await api.inbox(other, "?per_page=100"))["data"]
    return sorted((entry["message"], entry["message_formatted"], json.dumps(entry["data"])) for entry in listed)


def notes() -> list[dict[str, Any]]:
    """Return an event for each string that fits into its fields."""
    return [
        {
            "type": "note",
            "notify": {"users": [2]},
            "data": {
                "user": {"id": 4, "first_name": text, "last_name": text, "profile_picture": text},
                "case": {"id": "65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88", "case_number": 6, "relations_path_name": text},
            },
            "params": {"contact": text, "body": text},
        }
        for text in STRINGS.values()
        if is_sendable(text) and text.strip() and len(text) <= 1_000
    ]


async def test_accepted_data_and_texts_of_events_arrive_unchanged(api: Api) -> None:
    await api.people(2)
    events = notes()
    answer = await api.as_service("POST", "/events/batch", json={"events": events})
    assert answer.status_code == 202, answer.text
    await at_rest(api)
    listed = {entry["id"]: entry for entry in (await api.inbox(2, "?per_page=100"))["data"]}
    assert len(listed) == len(events) > 50
    for id_, event in zip(answer.json()["ids"], events, strict=True):
        assert listed[id_]["data"] == event["data"]
        assert listed[id_]["message"].endswith(f" <br> {event['params']['body']}")
