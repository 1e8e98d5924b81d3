"""The service in this process on a real socket, and its tokens."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt

from tests.support import second_cell
from tests.support.second_cell import path_in_cell
from tests.support.waiting import reaches, until
from tocsin import directory, event_status
from tocsin.api.app import service
from tocsin.api.connections import Connections, Patience
from tocsin.api.server import Server
from tocsin.api.state import AppState
from tocsin.auth.from_settings import verifier_of
from tocsin.auth.minting import mint_service, mint_user
from tocsin.catalogue import Catalogue
from tocsin.db.pool import Database
from tocsin.formats import User
from tocsin.pubsub import PubSub
from tocsin.push.apps import lanes_of
from tocsin.settings import Settings, read_settings
from tocsin.startup import build_app_state, dispatcher_of, posts_of, replica_for
from tocsin.worker import Worker

SECRET = "a-secret-for-tests-only-0123456789abcdef"


HOUR, DAY = timedelta(hours=1), timedelta(days=1)
"""For how long the tokens of tests are valid, and those of modules: all tests may take an hour on a slow machine."""


STREAM = "/notifications/stream"


def standing_token(user: int) -> str:
    """Return a token that is valid for users created after it, too: tokens older than their user are rejected."""
    now, day = int(time.time()), int(DAY.total_seconds())
    return jwt.encode({"sub": str(user), "iat": now + day, "exp": now + 2 * day}, SECRET, algorithm="HS256")


@dataclass
class Api:
    """The service as clients see it, with tokens for any caller."""

    http: httpx.AsyncClient
    app_state: AppState
    worker: Worker | None
    first: AppState | None = None
    """The first cell, with `--second-cell`."""

    async def call(self, method: str, path: str, token: str | None = None, **more: Any) -> httpx.Response:
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **more.pop("headers", {})}
        if path == STREAM and method == "GET":
            return await self._beginning(headers)
        return await self.http.request(method, path_in_cell(method, path), headers=headers, **more)

    async def _beginning(self, headers: Mapping[str, str]) -> httpx.Response:
        """Return the endless response as if it ended after its first event."""
        async with self.http.stream("GET", STREAM, headers=headers) as answer:
            if answer.is_success:
                return httpx.Response(
                    answer.status_code, headers=answer.headers, content=await anext(answer.aiter_raw())
                )
            await answer.aread()
            return answer

    async def as_user(self, user: int, method: str, path: str, **more: Any) -> httpx.Response:
        return await self.call(method, path, mint_user(SECRET, user, HOUR), **more)

    async def as_service(
        self,
        method: str,
        path: str,
        *scopes: str,
        name: str = "crm",
        company_id: int | None = None,
        **more: Any,
    ) -> httpx.Response:
        scopes = scopes or ("events:write", "directory:write")
        return await self.call(method, path, mint_service(SECRET, name, scopes, HOUR, company_id), **more)

    async def people(self, *ids: int, company_id: int = 1, **more: Any) -> None:
        for id_ in ids:
            values: dict[str, Any] = {
                "first_name": f"First{id_}",
                "last_name": f"Last{id_}",
                "profile_picture": None,
                "email": None,
                "locale": "en",
                "time_zone": "UTC",
                "active": True,
                **more,
            }
            await directory.put_user(self.app_state.database, User(id=id_, company_id=company_id, **values), None)

    async def team(self, id_: int, *users: int, company_id: int = 1) -> None:
        team = directory.Team(id_, company_id, f"Team {id_}", list(users))
        await directory.put_team(self.app_state.database, team, None)

    async def post(self, event: Mapping[str, Any], **more: Any) -> str:
        """Post an event, wait until it is settled, and return its id."""
        answer = await self.as_service("POST", "/events", json=event, **more)
        assert answer.status_code == 202, answer.text
        id_: str = answer.json()["id"]

        async def is_settled() -> bool:
            state = await self.as_service("GET", f"/events/{id_}?wait=10", **more)
            return state.json()["state"] in event_status.SETTLED

        await until(is_settled)
        return id_

    async def inbox(self, user: int, query: str = "") -> dict[str, Any]:
        answer = await self.as_user(user, "GET", f"/notifications{query}")
        assert answer.status_code == 200, answer.text
        page: dict[str, Any] = json.loads(answer.text)
        return page

    async def unread(self, user: int) -> int:
        count: int = (await self.inbox(user))["pagination"]["unread"]
        return count

    async def ids(self, user: int, query: str = "?per_page=100") -> list[str]:
        return [entry["id"] for entry in (await self.inbox(user, query))["data"]]


def settings_for(*, environment: Any = None, **more: Any) -> Settings:
    return read_settings(environment or {}, Path("/nonexistent"), **{"jwt_secret": SECRET, **more})


class _PromptServer(Server):
    """A server that stops at once: uvicorn checks ten times a second whether it should."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._stopping = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._stopping.wait()

    def end(self) -> None:
        self.should_exit = True
        self._stopping.set()


@asynccontextmanager
async def serving(
    url: str,
    catalogue: Catalogue,
    *,
    with_worker: bool = True,
    connections: Connections | None = None,
    patience: Patience | None = None,
    **more: Any,
) -> AsyncIterator[Api]:
    """Run the service in this process, on a free port of the loopback."""
    async with AsyncExitStack() as stack:
        database, counting, own = Database(url, 6, 5), Database(url, 1, 5), Database(url, 4)
        for pool in (database, counting, own):
            await pool.open()
            stack.push_async_callback(pool.close)
        pubsub = PubSub(url, own)
        settings = settings_for(**more)
        verifier = verifier_of(settings)
        stack.push_async_callback(verifier.close)
        verifier.begin()
        pushing = bool(settings.apns_key_file or settings.fcm_credentials_file or settings.vapid_key_file)
        lanes = lanes_of(settings) if pushing else []
        for lane in lanes:
            stack.push_async_callback(lane.transport.close)
        replica = await stack.enter_async_context(replica_for(settings, database))
        first = None
        if second_cell.is_wanted:
            opened = second_cell.first_cell(url, settings, catalogue, verifier)
            first = await stack.enter_async_context(opened)
            settings = settings.of_cell(second_cell.SECOND, {})
        parts = database, counting, pubsub, verifier, lanes
        app_state = build_app_state(settings, catalogue, *parts, with_worker=with_worker, replica=replica, beside=first)
        app = second_cell.service_of(first, app_state) if first else service(app_state)
        stack.push_async_callback(app_state.limits.close)
        stack.push_async_callback(app_state.streams.finish)
        if app_state.provider:
            stack.push_async_callback(app_state.provider.close)
        watching = asyncio.create_task(app_state.streams.watch())
        stack.callback(watching.cancel)
        worker = Worker(own, catalogue, pubsub, metrics=app_state.metrics) if with_worker else None
        if worker and pushing:
            worker.dispatcher = dispatcher_of(
                settings, lanes, worker, own, catalogue, app_state.operator, pubsub, app_state.metrics
            )
        if worker:
            worker.posts = posts_of(own, catalogue, pubsub, app_state.disk, app_state.intake.at_once)
            working = asyncio.create_task(worker.run())
            stack.push_async_callback(lambda: working)
        listening = socket.socket(proto=socket.IPPROTO_TCP)
        listening.bind(("127.0.0.1", 0))
        server = _PromptServer(
            app,
            connections=connections or Connections.of_files(app_state.metrics),
            patience=patience,
            origins=settings.cors_origins,
            prefix=settings.root_path,
            capacity=app_state.capacity,
        )
        running = asyncio.create_task(server._serve([listening]))  # noqa: SLF001 - serve() would install signal handlers
        await server.ready.wait()
        stack.push_async_callback(lambda: running)
        stack.callback(app_state.streams.close)
        stack.callback(server.end)
        if worker:
            stack.callback(worker.stop)  # while the server ends
        port = listening.getsockname()[1]
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60))
        yield Api(http, app_state, worker, first)


async def at_rest(api: Api) -> None:
    """Wait until all accepted events are delivered, so that no work of this test continues in the next."""
    soon = "select count(*) from jobs where due_at < now() + interval '1 minute'"
    await reaches(lambda: api.app_state.database.value(soon), 0)
