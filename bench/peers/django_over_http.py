"""django-notifications-hq over HTTP: its environment, its site, and the same work."""

import asyncio
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs

from bench.measure import load
from bench.peers.work import BODY, MEMBERS, OWNERS, PAGE, SIZE, TEAM, TITLE, entries, request
from bench.service import Service, clients, database

HERE = Path(__file__).parent
UV = HERE.parent.parent / ".uv/bin/uv"

THREADS = 8
"""Threads of each process of gunicorn."""

START = 30.0
"""Seconds within which the site has to answer."""

FIRST_SLUG = 110_909
"""What the package adds to an id in its urls."""


class Django:
    """A site that runs."""

    def __init__(self, site: Service) -> None:
        self._site = site
        note = {"title": TITLE, "body": BODY}
        self._posts = [request("POST", "/post/", OWNERS[0], {**note, "user": user}) for user in OWNERS]
        self._to_team = request("POST", "/post/", OWNERS[0], {**note, "group": TEAM})
        self._pages = [request("GET", f"/inbox/api/unread_list/?max={PAGE}", user) for user in OWNERS]
        self._marks = (
            request("GET", f"/inbox/mark-as-read/{FIRST_SLUG + id_}/", owner)
            for id_, (_, owner) in zip(itertools.cycle(range(1, 1 + SIZE * len(OWNERS))), entries(), strict=False)
        )

    async def posts(self, seconds: float) -> float:
        """Return the notifications a second, to one user each."""
        return await load(self._site, self._posts, seconds, status=b"200", accept=lambda _: True)

    async def pages(self, seconds: float) -> float:
        """Return the pages a second, with the number of unread notifications."""
        return await load(self._site, self._pages, seconds, status=b"200", accept=_is_page)

    async def marks(self, seconds: float) -> float:
        """Return the notifications a second that are marked as read."""
        return await load(self._site, self._marks, seconds, status=b"302", accept=lambda _: True)

    async def team(self) -> float:
        """Return the notifications a second of one to the team."""
        async with clients(self._site, 1) as [client]:
            began = time.perf_counter()
            await client.ask(self._to_team)
            return len(MEMBERS) / (time.perf_counter() - began)


@asynccontextmanager
async def django(running: Service, folder: Path) -> AsyncIterator[Django]:
    """Make the environment in a folder, fill a database of the service's server, and run the site on it."""
    await _run(folder, str(UV), "venv", "--quiet", "--no-python-downloads", "--python", "/usr/bin/python3", "peers")
    programs = folder / "peers/bin"
    lock = ("--require-hashes", str(HERE / "requirements.lock"))
    await _run(folder, str(UV), "pip", "sync", "--quiet", "--python", str(programs / "python"), *lock)
    async with database(running) as connection:
        await connection.execute("create database peers")
    given = parse_qs(running.database_url.partition("?")[2])
    where = {f"PEERS_{name.upper()}": given[name][0] for name in ("host", "port", "user")} | {"PEERS_DATABASE": "peers"}
    sizes = f"{OWNERS}, {MEMBERS}, {SIZE}, {TITLE!r}, {BODY!r}"
    await _run(HERE, str(programs / "python"), "-c", f"from django_site import fill; fill({sizes})", **where)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(programs / "gunicorn", "--workers", str(os.cpu_count()), "--threads", str(THREADS), "--keep-alive", "60"),
        *("--bind", f"127.0.0.1:{port}", "--log-level", "warning", "django_site:application"),
        cwd=HERE,
        env={**os.environ, **where},
    )
    try:
        site = Service("127.0.0.1", port, folder, process)
        await _answering(site)
        yield Django(site)
    finally:
        process.terminate()
        await process.wait()


async def _answering(site: Service) -> None:
    end = time.monotonic() + START
    while True:
        try:
            async with clients(site, 1) as [client]:
                await client.ask(request("GET", "/inbox/api/unread_count/", OWNERS[0]))
                return
        except OSError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)


async def _run(folder: Path, *command: str, **variables: str) -> None:
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, env={**os.environ, **variables})
    if await process.wait():
        raise RuntimeError(f"failed: {' '.join(command)}")


def _is_page(body: bytes) -> bool:
    return body.count(b'"slug":') == PAGE and b'"unread_count":' in body
