"""Clients of streams, which keep the list of an inbox up to date by what they are sent."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from random import Random
from typing import Any

import httpx
from httpx_sse import aconnect_sse

from tests.support.service import HOUR, SECRET
from tocsin.auth.minting import mint_user


class Follower:
    """A client that keeps its list up to date by the stream alone, and fetches it at first and after a resync."""

    def __init__(self, address: Callable[[], tuple[str, int]], user: int) -> None:
        self.address, self.user = address, user
        self.read: dict[str, bool] = {}
        self.order: list[str] = []
        self.unread = -1
        self.mark = ""
        self.connections = self.resyncs = 0

    @property
    def client(self) -> httpx.AsyncClient:
        host, port = self.address()
        headers = {"Authorization": f"Bearer {mint_user(SECRET, self.user, HOUR)}"}
        return httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=headers, timeout=20)

    async def follow(self) -> None:
        """Read until cancelled, and resume after disconnects."""
        while True:
            with contextlib.suppress(httpx.HTTPError):
                await self._read()
            await asyncio.sleep(0.1)

    async def use(self, dice: Random) -> None:
        """Mark and delete at random until cancelled, and ignore failures."""
        while True:
            with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
                async with self.client as http:
                    await self._touch(http, dice)
            await asyncio.sleep(dice.uniform(0.1, 0.4))

    async def agrees(self) -> bool:
        """Return whether its list equals the inbox."""
        return await self.differences() == {}

    async def differences(self) -> dict[str, Any]:
        """Return how its list differs from the inbox."""
        async with self.client as http:
            found = await whole(http)
        read = {entry["id"]: entry["read"] for entry in found}
        unread = sum(not entry["read"] for entry in found)
        missing = {
            "missing": list(read.keys() - self.read.keys()),
            "too many": list(self.read.keys() - read.keys()),
            "read": {id_: has for id_, has in read.items() if self.read.get(id_, has) != has},
            "unread": [] if unread == self.unread else [unread, self.unread],
            "order": [] if self.order == list(read) else [list(read)[:5], self.order[:5]],
        }
        return {what: values for what, values in missing.items() if values}

    async def _touch(self, http: httpx.AsyncClient, dice: Random) -> None:
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
                if not self.mark:  # older notifications are not in a new stream
                    await self._load(http)
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
                await self._load(http)

    async def _load(self, http: httpx.AsyncClient) -> None:
        found = await whole(http)
        self.order, self.read = [entry["id"] for entry in found], {e["id"]: e["read"] for e in found}


async def whole(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    """Return an inbox, page by page."""
    found, url = [], "/notifications?per_page=100"
    while url:
        answer = await http.get(url)
        answer.raise_for_status()
        page = answer.json()
        found += page["data"]
        url = page["pagination"]["urls"]["next"]
    return found
