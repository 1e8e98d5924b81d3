"""Property tests of pagination with changes between pages."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.database import url_for, wipe
from tests.support.events import custom
from tests.support.service import Api
from tocsin.postgres.supervisor import Embedded

Action = tuple[str, int]

EXAMPLES = settings(max_examples=min(80, settings().max_examples), deadline=None)


@dataclass(frozen=True)
class Start:
    """An inbox with read and deleted entries, and the query of its pages."""

    size: int
    read: set[int]
    gone: set[int]
    per_page: int
    query: str

    @property
    def url(self) -> str:
        return f"/notifications?per_page={self.per_page}{self.query}"


starts = st.builds(
    Start,
    size=st.integers(0, 12),
    read=st.sets(st.integers(0, 11)),
    gone=st.sets(st.integers(0, 11), max_size=3),
    per_page=st.integers(1, 5),
    query=st.sampled_from(["", "&show=unread"]),
)
between_pages = st.lists(
    st.lists(st.tuples(st.sampled_from(["arrive", "read", "unread", "delete"]), st.integers(0, 15)), max_size=4),
    max_size=8,
)


class Shelf:
    """The expected inbox of user 1: its ids, oldest first, the read ones, and all removed ones."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.ids: list[str] = []
        self.read: set[str] = set()
        self.left: set[str] = set()

    async def arrive(self, count: int) -> None:
        if count:
            answer = await self.api.as_service("POST", "/events/batch", json={"events": [custom(1)] * count})
            self.ids += answer.json()["ids"]
            await self.api.as_service("GET", f"/events/{self.ids[-1]}?wait=30")

    async def do(self, action: Action) -> None:
        name, which = action
        if name == "arrive":
            await self.arrive(1 + which % 3)
            return
        if not self.ids:
            return
        id_ = self.ids[which % len(self.ids)]
        method, path = {"read": ("PUT", "/read"), "unread": ("PUT", "/unread"), "delete": ("DELETE", "")}[name]
        answer = await self.api.as_user(1, method, f"/notifications/{id_}{path}")
        assert answer.status_code == (410 if id_ in self.left and name != "delete" else 204)
        if name == "unread":
            self.read.discard(id_)
        elif name == "read":
            self.read.add(id_)
        else:
            self.left.add(id_)

    def shown(self, query: str) -> list[str]:
        hidden = self.left | self.read if query else self.left
        return [id_ for id_ in reversed(self.ids) if id_ not in hidden]

    async def page(self, url: str) -> dict[str, Any]:
        """Fetch a page, and check its counts and that it shows only what its query selects."""
        answer = await self.api.as_user(1, "GET", url)
        assert answer.status_code == 200, answer.text
        page: dict[str, Any] = answer.json()
        counted = page["pagination"]
        query = "unread" if "show=unread" in url else ""
        assert (counted["total"], counted["unread"]) == (len(self.shown(query)), len(self.shown("unread")))
        assert set(ids_of(page)) <= set(self.shown(query))
        assert [entry["read"] for entry in page["data"]] == [id_ in self.read for id_ in ids_of(page)]
        return page


def ids_of(page: dict[str, Any]) -> list[str]:
    return [entry["id"] for entry in page["data"]]


async def shelf_of(api: Api, server: Embedded, start: Start) -> Shelf:
    """Create user 1 with this inbox as the only user."""
    await wipe(url_for(server, "busy"))
    await api.people(1)
    shelf = Shelf(api)
    await shelf.arrive(start.size)
    for name, some in (("read", start.read), ("delete", start.gone)):
        for which in sorted(some & set(range(start.size))):
            await shelf.do((name, which))
    return shelf


async def walk(shelf: Shelf, url: str | None) -> list[dict[str, Any]]:
    """Follow `next` to the end."""
    pages: list[dict[str, Any]] = []
    while url:
        pages.append(await shelf.page(url))
        url = pages[-1]["pagination"]["urls"]["next"]
    return pages


@EXAMPLES
@given(start=starts, between=between_pages)
async def test_pagination_neither_repeats_nor_skips(
    busy_service: Api, server: Embedded, start: Start, between: list[list[Action]]
) -> None:
    shelf = await shelf_of(busy_service, server, start)
    stayed = set(shelf.shown(start.query))
    seen: list[str] = []
    actions = iter(between)
    url: str | None = start.url
    while url:
        page = await shelf.page(url)
        seen += ids_of(page)
        for action in next(actions, ()):
            await shelf.do(action)
            stayed &= set(shelf.shown(start.query))
        url = page["pagination"]["urls"]["next"]
    assert seen == [id_ for id_ in reversed(shelf.ids) if id_ in seen]
    assert stayed <= set(seen)


@EXAMPLES
@given(start=starts)
async def test_pages_by_number_and_by_next_are_equal(busy_service: Api, server: Embedded, start: Start) -> None:
    shelf = await shelf_of(busy_service, server, start)
    pages = await walk(shelf, start.url)
    assert [id_ for page in pages for id_ in ids_of(page)] == shelf.shown(start.query)
    for number, page in enumerate(pages, 1):
        assert await shelf.page(f"{start.url}&page={number}") == page
        assert page["pagination"]["page"] == number
        assert len(page["data"]) == start.per_page or page is pages[-1]
    assert (await shelf.page(f"{start.url}&page={len(pages) + 1}"))["data"] == []


@EXAMPLES
@given(start=starts)
async def test_previous_link_of_the_next_page_leads_back(busy_service: Api, server: Embedded, start: Start) -> None:
    shelf = await shelf_of(busy_service, server, start)
    pages = await walk(shelf, start.url)
    assert pages[0]["pagination"]["urls"]["previous"] is None
    for before, page in pairwise(pages):
        assert await shelf.page(page["pagination"]["urls"]["previous"]) == before
