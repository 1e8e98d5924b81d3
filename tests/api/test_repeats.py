"""A list that did not change is answered without parsing a request again that is the same byte for byte."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.database import locked, renamed
from tests.support.events import custom
from tests.support.pages import listening
from tests.support.service import HOUR, SECRET, Api, serving
from tests.support.waiting import LONGEST_WAIT, until
from tocsin import capacity, logs
from tocsin.api import protocol, repeats, server
from tocsin.auth.keys import ALL_SPEAKERS, hs256
from tocsin.auth.minting import mint_user
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection

OTHER_SECRET = "another-secret-for-tests-only-0123456789"
LIST = "/notifications?per_page=5"


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """The responses to requests that were remembered; None for those that had to be processed."""
    found: list[bytes | None] = []
    response = repeats.Repeat.response

    async def noted(self: repeats.Repeat, default_headers: Any) -> bytes | None:
        answer = None
        try:
            answer = await response(self, default_headers)
        finally:
            found.append(answer)
        return answer

    monkeypatch.setattr(repeats.Repeat, "response", noted)
    return found


@dataclass
class Client:
    """A connection that sends requests as bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> bytes:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), LONGEST_WAIT)
        length = re.search(rb"content-length: (\d+)", head)
        return head + (await self.reader.readexactly(int(length[1])) if length else b"")

    async def ask(self, request: bytes) -> bytes:
        self.writer.write(request)
        return await self.answer()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield Client(reader, writer)
    writer.close()
    await writer.wait_closed()


def request_for(user: int = 1, tag: str | None = None, *more: str, path: str = LIST) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {mint_user(SECRET, user, HOUR)}", *more]
    return "\r\n".join([*lines, *([f"If-None-Match: {tag}"] if tag else []), "", ""]).encode()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def tag_of(answer: bytes) -> str:
    found = re.search(rb"etag: ([^\r]+)", answer)
    assert found, answer
    return found[1].decode()


async def remembered(client: Client, user: int = 1, *more: str) -> bytes:
    """Return a request of a list that did not change, which was answered once."""
    request = request_for(user, tag_of(await client.ask(request_for(user))), *more)
    assert status_of(await client.ask(request)) == 304
    return request


async def begin(api: Api, client: Client, request: bytes) -> None:
    """Send a request, and wait until it is processed, as it is while the heads are locked."""
    client.writer.write(request)
    await until(lambda: api.app_state.capacity.in_use == 1)


def without_own(answer: bytes) -> list[bytes]:
    """Return the lines of a response, in any order, without what differs in each."""
    return sorted(re.sub(rb"(date: |x-request-id: |;r=|;t=)[^\r;]+", rb"\1", answer).split(b"\r\n"))


async def test_repeated_request_gets_the_same_response(idle: Api, repeated: list[bytes | None]) -> None:
    await idle.people(1)
    async with listening(idle) as port, connected(port) as client:
        request = request_for(1, tag_of(await client.ask(request_for(1))))
        answers = [await client.ask(request) for _ in range(3)]
    assert repeated == answers[1:]
    assert [without_own(answer) for answer in answers] == [without_own(answers[0])] * 3
    assert b"ratelimit: " in answers[0]
    assert len({*re.findall(rb"x-request-id: (\S+)", b"".join(answers))}) == 3


async def test_repeated_request_counts_towards_metrics_limit_and_log(
    idle: Api, repeated: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    await idle.people(1)
    stream = io.StringIO()
    statuses = idle.app_state.metrics._requests._routes  # noqa: SLF001
    async with listening(idle) as port, connected(port) as client:
        request = await remembered(client)
        before = statuses["GET", "/notifications"].statuses[304]
        monkeypatch.setattr(logs, "_json_output", logs._Output(stream))  # noqa: SLF001
        answers = [await client.ask(request) for _ in range(2)]
    assert repeated == answers
    assert statuses["GET", "/notifications"].statuses[304] == before + 2
    first, second = (int(re.findall(rb";r=(\d+)", answer)[0]) for answer in answers)
    assert first == second + 1
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["path"], line["status"], line["caller"]) for line in lines] == [("/notifications", 304, "user 1")] * 2
    assert all(f"x-request-id: {line['request_id']}".encode() in answers[at] for at, line in enumerate(lines))


async def test_changed_list_is_answered_in_full_on_the_same_connection(api: Api, repeated: list[bytes | None]) -> None:
    await api.people(1)
    async with listening(api) as port, connected(port) as client:
        request = await remembered(client)
        await api.post(custom(1))
        changed = await client.ask(request)
        assert status_of(changed) == 200
        assert tag_of(changed).encode() not in request
        assert status_of(await client.ask(request)) == 200
    assert repeated == [None]


async def test_repeated_request_of_another_address_is_processed(idle: Api, repeated: list[bytes | None]) -> None:
    await idle.people(1)
    async with listening(idle) as port, connected(port) as client:
        request = await remembered(client)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        assert status_of(await Client(reader, writer).ask(request)) == 304
        writer.close()
        await writer.wait_closed()
        assert repeated == []
        async with connected(port) as other:
            assert status_of(await other.ask(request)) == 304
        assert len(repeated) == 1


@pytest.mark.parametrize(
    "header",
    [
        "X-Request-Id: mine",
        f"traceparent: 00-{'a' * 32}-{'b' * 16}-01",
        "Origin: https://a.test",
        f"X-Long: {'x' * repeats.MAX_BYTES}",
    ],
)
async def test_request_with_a_header_of_its_own_is_always_processed(
    idle: Api, repeated: list[bytes | None], header: str
) -> None:
    await idle.people(1)
    async with listening(idle) as port, connected(port) as client:
        request = await remembered(client, 1, header)
        assert status_of(await client.ask(request)) == 304
    assert repeated == []


async def test_head_of_an_unchanged_list_is_always_processed(idle: Api, repeated: list[bytes | None]) -> None:
    await idle.people(1)
    async with listening(idle) as port, connected(port) as client:
        request = (await remembered(client)).replace(b"GET", b"HEAD")
        assert [status_of(await client.ask(request)) for _ in range(2)] == [304, 304]
    assert repeated == []


async def test_request_in_parts_or_with_another_one_is_not_remembered(idle: Api, repeated: list[bytes | None]) -> None:
    await idle.people(1)
    async with listening(idle) as port, connected(port) as client:
        request = request_for(1, tag_of(await client.ask(request_for(1))))
        client.writer.write(request[:50])
        await client.writer.drain()
        await asyncio.sleep(0.05)
        assert status_of(await client.ask(request[50:])) == 304
        assert [status_of(await client.ask(request + request)), status_of(await client.answer())] == [304, 304]
        assert repeated == []
        assert status_of(await client.ask(request)) == 304
        assert status_of(await client.ask(request)) == 304
    assert len(repeated) == 1


async def test_request_behind_a_refused_one_is_not_remembered_with_it(
    url: str, catalogue: Catalogue, repeated: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(capacity.SLOTS_OF_KINDS, "POST /events", 0)
    refused = b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    async with serving(url, catalogue, with_worker=False) as busy:
        await busy.people(1)
        async with connected(int(busy.http.base_url.port or 0)) as client:
            request = request_for(1, tag_of(await client.ask(request_for(1))))
            for _ in range(2):
                busy.app_state.capacity.refuse("POST /events")
                assert status_of(await client.ask(refused + request)) == 503
                assert status_of(await client.answer()) == 304
    assert repeated == []


async def test_request_before_invalid_bytes_is_remembered_for_no_other_one(
    idle: Api, repeated: list[bytes | None]
) -> None:
    await idle.people(1, 2)
    async with listening(idle) as port, connected(port) as client, connected(port) as other:
        last = request_for(2, tag_of(await client.ask(request_for(2)))) + b"XX"
        first = await remembered(client)
        assert [status_of(await client.ask(last)), status_of(await client.answer())] == [304, 400]
        assert tag_of(await other.ask(first)).encode() in first
        assert [status_of(await other.ask(last)), status_of(await other.answer())] == [304, 400]
    assert len(repeated) == 1


async def test_repeated_request_with_a_withdrawn_key_is_refused(idle: Api, repeated: list[bytes | None]) -> None:
    await idle.people(1)
    verifier = idle.app_state.verifier
    async with listening(idle) as port, connected(port) as client:
        request = await remembered(client)
        try:
            verifier.take([hs256(OTHER_SECRET, ALL_SPEAKERS)])
            assert status_of(await client.ask(request)) == 401
        finally:
            verifier.take([hs256(SECRET, ALL_SPEAKERS)])
        assert status_of(await client.ask(request)) == 304
    assert repeated == [None]


async def test_repeated_request_with_an_expired_token_is_refused(
    idle: Api, repeated: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    await idle.people(1)
    verifier = idle.app_state.verifier
    async with listening(idle) as port, connected(port) as client:
        request = await remembered(client)
        now = verifier._clock()  # noqa: SLF001
        monkeypatch.setattr(verifier, "_clock", lambda: now + 2 * HOUR.total_seconds())
        assert status_of(await client.ask(request)) == 401
    assert repeated == [None]


@pytest.mark.parametrize("is_erased", [False, True])
async def test_repeated_request_of_a_user_who_has_gone_is_refused(
    api: Api, repeated: list[bytes | None], *, is_erased: bool
) -> None:
    await api.people(1)
    async with listening(api) as port, connected(port) as client:
        request = await remembered(client)
        if is_erased:
            assert (await api.as_service("DELETE", "/directory/users/1")).status_code == 204
        else:
            await api.people(1, active=False)
        assert status_of(await client.ask(request)) == 401
    assert repeated == [None]


async def test_repeated_requests_end_at_the_rate_limit(
    url: str, catalogue: Catalogue, repeated: list[bytes | None]
) -> None:
    async with serving(url, catalogue, with_worker=False, limit_user_requests="200/hour") as limited:
        await limited.people(1)
        async with listening(limited) as port, connected(port) as client:
            request = await remembered(client)
            statuses = [status_of(await client.ask(request)) for _ in range(200)]
    assert statuses == [304] * 198 + [429] * 2
    assert len([answer for answer in repeated if answer]) > 150


async def test_requests_behind_a_repeated_one_are_answered_in_order(
    idle: Api, dba: Connection, repeated: list[bytes | None]
) -> None:
    await idle.people(1)
    async with listening(idle) as port, connected(port) as client:
        request = await remembered(client)
        async with locked(dba, "heads"):
            await begin(idle, client, request)
            client.writer.write(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n" + request[:40])
            await asyncio.sleep(0.05)
            client.writer.write(request[40:])
        assert [status_of(await client.answer()) for _ in range(3)] == [304, 404, 304]
    assert len(repeated) == 1
    assert idle.app_state.capacity.in_use == 0


async def test_client_that_leaves_during_a_repeated_request_releases_its_slot(
    idle: Api, dba: Connection, repeated: list[bytes | None]
) -> None:
    await idle.people(1)
    async with listening(idle) as port, connected(port) as client:
        request = await remembered(client)
        async with locked(dba, "heads"), connected(port) as other:
            await begin(idle, other, request)
        await until(lambda: idle.app_state.capacity.in_use == 0)
        assert status_of(await client.ask(request)) == 304
    assert len(repeated) == 2


async def test_stop_lets_a_repeated_request_end_and_closes_its_connection(
    idle: Api, dba: Connection, repeated: list[bytes | None]
) -> None:
    await idle.people(1)
    stack = AsyncExitStack()
    async with connected(await stack.enter_async_context(listening(idle))) as client:
        request = await remembered(client)
        async with locked(dba, "heads"):
            await begin(idle, client, request)
            stopping = asyncio.create_task(stack.aclose())
            await asyncio.sleep(0.2)
        answer = await client.answer()
        assert status_of(answer) == 304
        assert b"connection: close" in answer
        assert await client.reader.read() == b""
        await stopping
    assert repeated == [answer]


async def test_stop_answers_a_repeated_request_that_hangs(
    idle: Api, dba: Connection, repeated: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "GRACE", 1)
    await idle.people(1)
    stack = AsyncExitStack()
    async with connected(await stack.enter_async_context(listening(idle))) as client:
        request = await remembered(client)
        async with locked(dba, "heads"):
            await begin(idle, client, request)
            await stack.aclose()
            answer = await client.answer()
    assert status_of(answer) == 503
    assert b"The service is stopping." in answer
    assert repeated == [answer]


async def test_repeated_request_behind_a_lock_is_refused_once_as_others_are(
    idle: Api, dba: Connection, repeated: list[bytes | None]
) -> None:
    await idle.people(1)
    async with listening(idle) as port, connected(port) as client, connected(port) as other:
        request = await remembered(client)
        async with locked(dba, "heads"):
            asked = client.ask(request), other.ask(request.replace(b"Host: x", b"Host: x\r\nX-Request-Id: mine"))
            refused, usual = await asyncio.gather(*asked)
    assert repeated == [refused]
    assert status_of(refused) == status_of(usual) == 503
    assert without_own(refused) == without_own(usual)


async def test_failed_look_up_of_a_repeated_request_is_reported(
    idle: Api, dba: Connection, repeated: list[bytes | None]
) -> None:
    await idle.people(1)
    async with listening(idle) as port, connected(port) as client:
        request = await remembered(client)
        async with renamed(dba, "heads"):
            assert status_of(await client.ask(request)) == 500
        assert status_of(await client.ask(request)) == 304
    assert repeated == [None]


async def test_memory_for_repeated_requests_is_bounded(
    idle: Api, repeated: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_REPEATS", 2)
    await idle.people(1, 2, 3)
    async with listening(idle) as port, connected(port) as client:
        requests = [await remembered(client, user) for user in (1, 2, 3)]
        for request in reversed(requests):
            assert status_of(await client.ask(request)) == 304
    assert len(repeated) == 2
