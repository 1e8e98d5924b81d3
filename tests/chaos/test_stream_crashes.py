"""Streams survive killed processes: every reader converges with the inbox list."""

import asyncio
import contextlib
import json
import signal
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse

from tests.support.processes import Program, data_folder, kill_postgres, random_source
from tests.support.properties import rounds
from tests.support.servers import nats
from tests.support.service import HOUR, SECRET
from tests.support.waiting import until
from tocsin.auth.minting import mint_service, mint_user

PEOPLE = range(1, 6)
ROUNDS = rounds(3, soak=18)


class App:
    """A client that keeps its list up to date by the stream alone, and fetches it after a resync."""

    def __init__(self, service: Program, user: int) -> None:
        self.service, self.user = service, user
        self.read: dict[str, bool] = {}
        self.order: list[str] = []
        self.unread = -1
        self.mark = ""
        self.connections = self.resyncs = 0

    @property
    def client(self) -> httpx.AsyncClient:
        host, port = self.service.address
        headers = {"Authorization": f"Bearer {mint_user(SECRET, self.user, HOUR)}"}
        return httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=headers, timeout=20)

    async def follow(self) -> None:
        """Read until cancelled, and resume after disconnects."""
        while True:
            with contextlib.suppress(httpx.HTTPError):
                await self._read()
            await asyncio.sleep(0.1)

    async def _read(self) -> None:
        headers = {"Last-Event-ID": self.mark} if self.mark else {}
        async with (
            self.client as http,
            aconnect_sse(http, "GET", "/notifications/stream", headers=headers) as source,
        ):
            if source.response.status_code != 200:
                return
            self.connections += 1
            async for event in source.aiter_sse():
                if event.data:  # after a comment httpx-sse hands out an event without any, against the specification
                    await self._take(http, event.event, json.loads(event.data))
                    self.mark = event.id or self.mark

    async def _take(self, http: httpx.AsyncClient, event: str, data: Any) -> None:
        match event:
            case "count":
                self.unread = data["unread"]
            case "notification":
                if data["id"] not in self.read:
                    self.order.insert(0, data["id"])
                self.read[data["id"]] = data["read"]
            case "read" if data.get("all"):
                older = self.order[self.order.index(data["up_to"]) :] if data["up_to"] in self.order else []
                self.read.update(dict.fromkeys(older, True))
            case "read" | "unread":
                self.read.update(dict.fromkeys(data.get("ids") or [data["id"]], event == "read"))
            case "deleted":
                for id_ in data.get("ids") or [data["id"]]:
                    self.read.pop(id_, None)
                    if id_ in self.order:  # otherwise it arrived and was deleted between two reads
                        self.order.remove(id_)
            case "resync":
                self.resyncs += 1
                found = await whole(http)
                self.order, self.read = [entry["id"] for entry in found], {e["id"]: e["read"] for e in found}


async def whole(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    """Return an inbox, page by page."""
    found, url = [], "/notifications?per_page=100"
    while url:
        answer = (await http.get(url)).json()
        found += answer["data"]
        url = answer["pagination"]["urls"]["next"]
    return found


async def use(app: App, dice: Random) -> None:
    """Run random inbox operations and ignore failures."""
    while True:
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            async with app.client as http:
                entries = (await http.get("/notifications?per_page=20")).json()["data"]
                if entries:
                    id_ = dice.choice(entries)["id"]
                    method, path, body = dice.choice(
                        (
                            ("PUT", f"/{id_}/read", None),
                            ("PUT", f"/{id_}/unread", None),
                            ("DELETE", f"/{id_}", None),
                            ("PUT", "/read", {"up_to": id_}),
                        )
                    )
                    await http.request(method, f"/notifications{path}", json=body)
        await asyncio.sleep(dice.uniform(0.05, 0.2))


async def post(service: Program, dice: Random) -> None:
    """Post events and ignore failures."""
    while True:
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            await post_one(service, dice.sample(PEOPLE, 2))
        await asyncio.sleep(0.03)


async def post_one(service: Program, users: list[int]) -> str:
    """Post an event, and return its id."""
    headers = {"Authorization": f"Bearer {mint_service(SECRET, 'crm', ['events:write'], HOUR)}"}
    host, port = service.address
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=headers, timeout=20) as http:
        event = {"type": "custom", "notify": {"users": users}, "params": {"body": "x"}}
        id_: str = (await http.post("/events", json=event)).json()["id"]
    return id_


@pytest.mark.parametrize("with_nats", [False, True], ids=["by NOTIFY", "by NATS"])
async def test_stream_readers_converge_after_crashes(with_nats: bool, port: int, tmp_path: Path) -> None:  # noqa: FBT001
    dice = random_source()
    variables = {"TOCSIN_NATS_URL": f"nats://127.0.0.1:{port}"} if with_nats else {}
    async with contextlib.AsyncExitStack() as stack:
        data = await stack.enter_async_context(data_folder())
        server = await stack.enter_async_context(nats(port, tmp_path)) if with_nats else None
        service = await stack.enter_async_context(Program(data, "serve", "--no-worker", variables=variables))
        worker = await stack.enter_async_context(Program(data, "worker", variables=variables))
        host, free = service.address
        crm = {"Authorization": f"Bearer {mint_service(SECRET, 'crm', ['directory:write'], HOUR)}"}
        async with httpx.AsyncClient(base_url=f"http://{host}:{free}", headers=crm) as http:
            for user in PEOPLE:
                await http.put(f"/directory/users/{user}", json={"first_name": "A", "last_name": "B"})
        apps = [App(service, user) for user in PEOPLE]
        following = [asyncio.create_task(app.follow()) for app in apps]
        busy = [asyncio.create_task(use(app, dice)) for app in apps] + [asyncio.create_task(post(service, dice))]
        reconnected = 1
        for number in range(ROUNDS):
            await until(partial(are_connected, apps, reconnected))
            await asyncio.sleep(dice.uniform(0.5, 1.5))
            match number % 3:
                case 0:
                    reconnected += 1
                    await service.kill()
                    await service.start()
                case 1:
                    await worker.kill()
                    await worker.start()
                case _ if server:
                    server.send_signal(signal.SIGSTOP)
                    await asyncio.sleep(1)
                    server.send_signal(signal.SIGCONT)
                case _:
                    reconnected += 1
                    await service.kill()
                    await kill_postgres(data)
                    await service.start()
        await asyncio.sleep(1)
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        last = await post_one(service, list(PEOPLE))  # there are no deletions after it
        await until(lambda: all(last in app.read for app in apps))  # a killed worker's jobs wait until its leases end
        for app, task in zip(apps, following, strict=True):
            await until(partial(is_the_same, app, task))
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        assert are_connected(apps, reconnected)
        assert sum(app.resyncs for app in apps) == 0


def are_connected(apps: list[App], times: int) -> bool:
    """Whether each has connected so often."""
    return all(app.connections >= times for app in apps)


async def is_the_same(app: App, following: asyncio.Task[None]) -> bool:
    if following.done():
        await following  # says why
    async with app.client as http:
        found = await whole(http)
    return (app.order, app.read, app.unread) == (
        [entry["id"] for entry in found],
        {entry["id"]: entry["read"] for entry in found},
        sum(not entry["read"] for entry in found),
    )
