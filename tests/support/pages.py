"""An inbox of two pages, and the URL of the second."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.service import Api
from tests.support.waiting import until
from tocsin.api.app import service
from tocsin.api.server import Server


async def next_url(api: Api, path: str = "/notifications", **headers: str) -> str:
    """Return the URL of the second page of an inbox, as the response to these request headers has it."""
    answer = await api.as_user(1, "GET", f"{path}?per_page=1", headers=headers)
    assert answer.status_code == 200, answer.text
    url: str = answer.json()["pagination"]["urls"]["next"]
    return url


async def fill(api: Api, path: str = "/notifications") -> None:
    """Give user 1 an inbox of two pages with one entry each."""
    await api.people(1)
    for _ in range(2):
        answer = await api.as_user(1, "POST", path, json={"message": "x", "notify": {"users": [1]}})
        assert answer.status_code == 202, answer.text

    async def has_both() -> bool:
        return bool((await api.as_user(1, "GET", path)).json()["pagination"]["total"] >= 2)

    await until(has_both)


@asynccontextmanager
async def listening(api: Api) -> AsyncIterator[int]:
    """Serve as the process does, and yield the port."""
    bound = socket.create_server(("127.0.0.1", 0))
    server = Server(service(api.app_state))
    running = asyncio.create_task(server._serve([bound]))  # noqa: SLF001 - serve() would install signal handlers
    try:
        yield int(bound.getsockname()[1])
    finally:
        server.should_exit = True
        await running
        bound.close()
