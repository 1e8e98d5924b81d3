"""Idempotency-Key: a repeated POST request is executed once."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.answers import routes_of
from tests.support.database import everything
from tests.support.events import custom, in_future
from tests.support.imports import NDJSON
from tests.support.pushes import IPHONE, register
from tests.support.resolutions import settled
from tests.support.service import DAY, HOUR, SECRET, Api, at_rest, standing_token
from tests.support.waiting import reaches, until
from tocsin.api.routes import require_keys, router
from tocsin.audit import Actor
from tocsin.auth.minting import mint_service, mint_user
from tocsin.db.pool import Database
from tocsin.pubsub import PubSub
from tocsin.transfer.imports import Import, applied
from tocsin.worker import Worker
from tocsin_phones import Phones

KEY = {"Idempotency-Key": "order-42"}
LINES = b'{"user": {"id": 1, "first_name": "John", "last_name": "Doe"}}'


async def post(api: Api, body: Any = None, key: str = "order-42", **more: Any) -> httpx.Response:
    return await api.as_service("POST", "/events", json=body or custom(1), headers={"Idempotency-Key": key}, **more)


async def events(api: Api) -> int:
    count: int = await api.app_state.database.value("select count(*) from events")
    return count


async def test_repeated_idempotency_key_returns_the_first_response(api: Api) -> None:
    await api.people(1)
    first = await post(api)
    again = await post(api)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.content == first.content
    assert again.headers["content-type"] == first.headers["content-type"]
    assert await events(api) == 1
    state = await api.as_service("GET", f"/events/{first.json()['id']}?wait=30")
    assert state.json()["recipients"] == 1


async def test_concurrent_repeats_wait_for_the_first(api: Api) -> None:
    await api.people(1)
    answers = await asyncio.gather(*[post(api) for _ in range(5)])
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert await events(api) == 1


async def test_idempotency_key_with_another_body_is_rejected(api: Api) -> None:
    await api.people(1)
    await post(api)
    answer = await post(api, custom(1, body="another"))
    assert answer.status_code == 409
    assert answer.json()["errors"][0]["code"] == "conflict.key_reused"
    assert await events(api) == 1


async def test_idempotency_keys_are_scoped_to_caller_company_and_path(api: Api) -> None:
    await api.people(1)
    ids = {(await post(api)).json()["id"], (await post(api, name="erp")).json()["id"]}
    ids.add((await post(api, company_id=1)).json()["id"])
    batch = await api.as_service("POST", "/events/batch", json={"events": [custom(1)]}, headers=KEY)
    ids.update(batch.json()["ids"])
    assert len(ids) == await events(api) == 4


async def test_failed_requests_do_not_consume_the_idempotency_key(api: Api) -> None:
    await api.people(1)
    assert (await post(api, custom(1, 2))).status_code == 422
    assert (await post(api, {"type": "none"})).status_code == 422
    assert await api.app_state.database.value("select count(*) from idempotency_keys") == 0
    await api.people(2)
    assert (await post(api, custom(1, 2))).status_code == 202


async def test_idempotency_key_works_for_batches_and_user_requests(api: Api) -> None:
    await api.people(1, 2)
    batch = {"events": [custom(1), custom(1)]}
    answers = [await api.as_service("POST", "/events/batch", json=batch, headers=KEY) for _ in range(2)]
    assert answers[0].content == answers[1].content
    message = {"message": "Hello", "notify": {"users": [2]}}
    mine = [await api.as_user(1, "POST", "/notifications", json=message, headers=KEY) for _ in range(2)]
    assert [answer.json() for answer in mine] == [{"queued": True}] * 2
    assert await events(api) == 3


async def test_idempotency_key_expires_after_a_day(api: Api) -> None:
    await api.people(1)
    first = await post(api)
    await api.app_state.database.value("update idempotency_keys set kept_at = now() - interval '25 hours'")
    second = await post(api, custom(1, body="another"))
    assert second.status_code == 202
    assert second.json()["id"] != first.json()["id"]


async def test_idempotent_repeat_still_checks_authorization(api: Api) -> None:
    await api.people(1, 2)
    message = {"message": "Hello", "notify": {"users": [2]}}
    assert (await api.as_user(1, "POST", "/notifications", json=message, headers=KEY)).status_code == 202
    await api.people(1, active=False)
    assert (await api.as_user(1, "POST", "/notifications", json=message, headers=KEY)).status_code == 401
    await post(api, custom(2))
    answer = await api.as_service("POST", "/events", "directory:write", json=custom(2), headers=KEY)
    assert answer.status_code == 403


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_idempotency_key_has_1_to_255_characters(api: Api, key: str) -> None:
    await api.people(1)
    answer = await post(api, key=key)
    assert answer.status_code == 422
    [field_error] = answer.json()["errors"]
    assert (field_error["field"], field_error["code"]) == ("Idempotency-Key", "validation.string_between")


async def test_idempotent_requests_still_validate_the_body(api: Api) -> None:
    await api.people(1)
    large = await api.as_service("POST", "/events", content=b"x" * (2**20 + 1), headers=KEY)
    assert large.status_code == 413
    bad = await api.as_service("POST", "/events", content=b"{", headers={**KEY, "Content-Type": "application/json"})
    assert bad.status_code == 400
    assert await api.app_state.database.value("select count(*) from idempotency_keys") == 0


async def test_two_idempotency_keys_in_one_request_are_rejected(idle: Api) -> None:
    await idle.people(1)
    keys = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    by = {"Authorization": f"Bearer {mint_user(SECRET, 1, HOUR)}"}
    body = {"message": "x", "notify": {"users": [1]}}
    answer = await idle.http.post("/notifications", headers=[*by.items(), *keys], json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "Idempotency-Key"


@dataclass(frozen=True)
class Try:
    """A POST request, and what undoes its effect, so that a second execution is visible."""

    token: str
    path: str
    body: Any = None
    undo: Callable[[], Awaitable[Any]] = field(default=lambda: asyncio.sleep(0))

    async def send(self, api: Api, key: str) -> httpx.Response:
        lines = isinstance(self.body, bytes)
        more = {"content": self.body} if lines else {"json": self.body}
        return await api.call(
            "POST", self.path, self.token, headers={**(NDJSON if lines else {}), "Idempotency-Key": key}, **more
        )


Prepare = Callable[[Api, Phones], Awaitable[Try]]
ME = standing_token(1)
CRM = mint_service(SECRET, "crm", ("events:write", "directory:write"), DAY)
OPERATOR = mint_service(SECRET, "operator", ("operations",), DAY)
GIVEN_UP = (
    "with j as (delete from jobs returning *) insert into dead_letters (id, task, lane, attempts, progress, reason)"
    " select id, task, lane, 8, 0, 'of a test' from j"
)


async def an_event(_: Api, __: Phones) -> Try:
    return Try(CRM, "/events", custom(1))


async def a_batch(_: Api, __: Phones) -> Try:
    return Try(CRM, "/events/batch", {"events": [custom(1), custom(2)]})


async def a_resolution(api: Api, _: Phones) -> Try:
    id_ = await api.post({**custom(1), "about": ["order:1"]})
    unread = partial(api.as_user, 1, "PUT", f"/notifications/{id_}/unread")
    return Try(CRM, "/events/resolve", {"about": "order:1", "as": "read"}, unread)


async def a_message(_: Api, __: Phones) -> Try:
    return Try(ME, "/notifications", {"message": "Hello", "notify": {"users": [2]}})


async def a_phone(api: Api, _: Phones) -> Try:
    detach = partial(api.as_user, 1, "DELETE", f"/notifications/devices/{IPHONE}")
    return Try(ME, f"/notifications/devices/{IPHONE}", {}, detach)


async def a_phone_in_a_body(api: Api, phones: Phones) -> Try:
    return Try(ME, "/notifications/devices", {"token": IPHONE}, (await a_phone(api, phones)).undo)


async def a_test_of_a_phone(api: Api, _: Phones) -> Try:
    await register(api, 1, IPHONE)
    return Try(ME, f"/notifications/devices/{IPHONE}/test")


async def a_test_by_support(api: Api, _: Phones) -> Try:
    await register(api, 1, IPHONE)
    device = await api.app_state.database.value("select id from devices")
    return Try(OPERATOR, f"/operations/users/1/devices/{device}/test")


async def a_browser(api: Api, phones: Phones) -> Try:
    subscription = phones.subscribe((await api.as_user(1, "GET", "/notifications/web-push/key")).json()["key"])
    endpoint = {"endpoint": subscription["endpoint"]}
    undo = partial(api.as_user, 1, "DELETE", "/notifications/web-push", json=endpoint)
    return Try(ME, "/notifications/web-push", subscription, undo)


async def a_test_of_a_browser(api: Api, phones: Phones) -> Try:
    browser = await a_browser(api, phones)
    await browser.send(api, "another")
    return Try(ME, "/notifications/web-push/test", {"endpoint": browser.body["endpoint"]})


async def an_import(api: Api, _: Phones) -> Try:
    renamed = {"first_name": "Renamed", "last_name": "Since"}
    undo = partial(api.as_service, "PUT", "/directory/users/1", json=renamed)
    return Try(CRM, "/directory/import", LINES, undo)


async def a_replay(api: Api, _: Phones) -> Try:
    ids = [str(uuid4()), str(uuid4())]

    async def give_up(id_: str) -> None:
        await api.as_service("POST", "/events", json={**custom(1), "id": id_, "deliver_at": in_future()})
        await api.app_state.database.value(GIVEN_UP)

    await give_up(ids[0])
    return Try(OPERATOR, "/operations/replay", {"events": ids}, partial(give_up, ids[1]))


async def an_opened_console(_: Api, __: Phones) -> Try:
    return Try(OPERATOR, "/operations/console", {})


POSTS: dict[str, Prepare] = {
    "/events": an_event,
    "/events/batch": a_batch,
    "/events/resolve": a_resolution,
    "/notifications": a_message,
    "/notifications/devices": a_phone_in_a_body,
    "/notifications/devices/{token}": a_phone,
    "/notifications/devices/{token}/test": a_test_of_a_phone,
    "/operations/users/{user_id}/devices/{device_id}/test": a_test_by_support,
    "/notifications/web-push": a_browser,
    "/notifications/web-push/test": a_test_of_a_browser,
    "/directory/import": an_import,
    "/operations/replay": a_replay,
    "/operations/console": an_opened_console,
}
"""A request for every POST route, without exception."""


OF_THE_SERVICE = {"idempotency_keys", "lanes", "operator_rules"}
"""What changes by itself or with every key."""


async def state_of(api: Api, phones: Phones) -> tuple[Any, ...]:
    """Return all tables that a request could change, once the queue is empty."""
    await at_rest(api)
    await settled(api)
    found = await everything(api)
    return {name: text for name, text in found.items() if name not in OF_THE_SERVICE}, phones.pushes()


def test_idempotency_tests_cover_every_post_route(api: Api) -> None:
    assert {path for method, path in routes_of(api) if method == "POST"} == set(POSTS)


@pytest.mark.parametrize("path", POSTS)
async def test_every_post_with_idempotency_key_is_executed_once(pushing: Api, phones: Phones, path: str) -> None:
    asked = await POSTS[path](pushing, phones)
    untouched = await state_of(pushing, phones)
    first = await asked.send(pushing, "first")
    assert first.is_success, first.text
    assert await state_of(pushing, phones) != untouched, "nothing was done, so that nothing could be done again"
    await asked.undo()
    undone = await state_of(pushing, phones)
    again = await asked.send(pushing, "first")
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers.get("content-type") == first.headers.get("content-type")
    assert await state_of(pushing, phones) == undone, "the repeat did something"
    assert (await asked.send(pushing, "second")).is_success
    assert await state_of(pushing, phones) != undone, "another key is another request"


@pytest.mark.parametrize("path", POSTS)
async def test_every_post_rejects_idempotency_key_of_another_body(pushing: Api, phones: Phones, path: str) -> None:
    asked = await POSTS[path](pushing, phones)
    assert (await asked.send(pushing, "first")).is_success
    before = await state_of(pushing, phones)
    other = b"%b\n" % asked.body if isinstance(asked.body, bytes) else {**(asked.body or {}), "more": 1}
    answer = await replace(asked, body=other).send(pushing, "first")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (409, "conflict.key_reused")
    assert await state_of(pushing, phones) == before


@pytest.mark.parametrize("path", POSTS)
async def test_every_post_rejects_idempotency_key_that_is_too_long(pushing: Api, phones: Phones, path: str) -> None:
    asked = await POSTS[path](pushing, phones)
    before = await state_of(pushing, phones)
    answer = await asked.send(pushing, "x" * 256)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "Idempotency-Key")
    assert await state_of(pushing, phones) == before


async def test_post_route_without_idempotency_support_cannot_be_added() -> None:
    async def ignore(_: Request) -> Response:
        return Response()

    ignoring = APIRouter()
    ignoring.post("/ignores")(ignore)
    for routes in (ignoring.routes, [Route("/ignores", ignore, methods=["GET", "POST"])]):
        with pytest.raises(TypeError, match="POST /ignores would ignore the Idempotency-Key"):
            require_keys(routes)
    knowing = router("events")
    knowing.post("/knows")(ignore)
    require_keys([Route("/reads", ignore, methods=["GET"]), *knowing.routes])


@pytest.mark.parametrize("path", ["/events", "/directory/import"])
async def test_interrupted_request_leaves_no_idempotency_key(api: Api, path: str) -> None:
    await api.people(1)
    body = LINES if path == "/directory/import" else json.dumps(custom(1)).encode()
    media = "application/x-ndjson" if path == "/directory/import" else "application/json"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CRM}\r\nIdempotency-Key: cut\r\n"
        f"Content-Type: {media}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    _, writer = await asyncio.open_connection("127.0.0.1", api.http.base_url.port)
    writer.write(head.encode() + body[:-1])
    await writer.drain()
    writer.close()
    answer = await Try(CRM, path, body if path == "/directory/import" else custom(1)).send(api, "cut")
    assert answer.is_success, answer.text
    assert await api.app_state.database.value("select count(*) from idempotency_keys") == 1


async def becomes_true(api: Api, condition: str) -> None:
    await until(lambda: api.app_state.database.value(f"select {condition}"))


async def test_repeated_import_waits_until_the_first_is_applied(
    idle: Api, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: dict[Any, UUID] = {}

    async def noted(database: Database, pubsub: PubSub, id_: UUID) -> int | None:
        waiting[asyncio.current_task()] = id_
        return await applied(database, pubsub, id_)

    monkeypatch.setattr("tocsin.api.imports.applied", noted)
    asked = Try(CRM, "/directory/import", LINES)
    sending = [asyncio.create_task(asked.send(idle, "once")) for _ in range(3)]
    await becomes_true(idle, "count(*) = 1 from jobs")
    sending.append(asyncio.create_task(asked.send(idle, "once")))
    await reaches(lambda: len(waiting), len(sending))
    assert len(set(waiting.values())) == 1
    assert await idle.app_state.database.value("select count(*) from imports") == 1
    assert not any(task.done() for task in sending)
    worker = Worker(database, idle.app_state.catalogue, idle.app_state.pubsub)
    running = asyncio.create_task(worker.run())
    answers = await asyncio.gather(*sending)
    worker.stop()
    await running
    assert {answer.content for answer in answers} == {b'{"users":1,"teams":0,"devices":0,"notifications":0}'}
    assert await idle.app_state.database.value("select count(*) from import_lines") == 0


async def test_failed_import_releases_its_idempotency_key(idle: Api, database: Database) -> None:
    asked = Try(CRM, "/directory/import", LINES)
    first = asyncio.create_task(asked.send(idle, "once"))
    await becomes_true(idle, "count(*) = 1 from jobs")
    await idle.app_state.database.value(GIVEN_UP)
    assert (await first).status_code == 500
    again = asyncio.create_task(asked.send(idle, "once"))
    await becomes_true(idle, "count(*) = 1 from jobs")
    worker = Worker(database, idle.app_state.catalogue, idle.app_state.pubsub)
    running = asyncio.create_task(worker.run())
    assert (await again).status_code == 200
    worker.stop()
    await running


async def test_notified_reader_sees_the_committed_idempotent_request(
    idle: Api, phones: Phones, monkeypatch: pytest.MonkeyPatch
) -> None:
    await idle.people(1)
    asked = await a_replay(idle, phones)
    rung: list[tuple[str, int]] = []
    monkeypatch.setattr(
        idle.app_state.pubsub, "publish", lambda name: rung.append((name, idle.app_state.database.in_use))
    )
    assert (await asked.send(idle, "once")).json() == {"jobs": 1, "pushes": 0}
    assert set(rung) == {("direct", 0), ("bulk", 0), ("push", 0)}, "something was rung for before it was committed"


async def test_accepted_import_survives_an_unconfirmed_commit(idle: Api) -> None:
    app_state = idle.app_state
    incoming = Import(app_state.database, app_state.pubsub, app_state.catalogue, Actor("test"))
    await incoming.open()
    await incoming.feed(LINES)
    await incoming.end()
    async with app_state.database.transaction() as connection:
        await incoming.accept(connection)
    await incoming.discard()
    assert await app_state.database.value("select count(*) from imports join import_lines on id = import_id") == 1
