"""The slots of requests: each request takes one when it is complete, and releases it when its response begins."""

from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from tocsin.api.connections import RESERVED_PATHS
from tocsin.api.middleware import BEGINNING, CYCLE
from tocsin.capacity import Capacity, kind_of
from tocsin.db.admission import KIND, Slot

_PLACE = "place"
_UNBOUNDED = tuple(str(path, "ascii") for path in RESERVED_PATHS)


class Place:
    """The slot of a request, which is taken when the request is complete and released when its response begins."""

    __slots__ = ("_capacity", "_kind", "_slot")

    def __init__(self, capacity: Capacity, kind: str) -> None:
        self._capacity, self._kind = capacity, kind
        self._slot: Slot | None = None

    def take_at_once(self) -> bool:
        """Occupy a slot if one is free; return whether the request has one."""
        if self._slot is None:
            self._slot = self._capacity.enter_at_once(self._kind)
        return self._slot is not None

    async def wait(self) -> None:
        """Wait for a slot, and occupy it. Raises `Overloaded`."""
        self._slot = await self._capacity.enter(self._kind)

    def leave(self) -> None:
        """Release the slot, if the request has one."""
        if self._slot is not None:
            slot, self._slot = self._slot, None
            self._capacity.leave(slot)


class Bounded:
    """ASGI middleware that gives each request its kind and a slot. Paths for operators need no slot."""

    def __init__(self, app: ASGIApp, capacity: Capacity) -> None:
        self._app, self._capacity = app, capacity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on when it has a slot; one whose body is not complete takes it later, in `complete`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        kind = kind_of(scope["method"], path)
        KIND.set(kind)
        if path.startswith(_UNBOUNDED):
            await self._app(scope, receive, send)
            return
        state = scope["state"]
        place = state[_PLACE] = Place(self._capacity, kind)
        state[BEGINNING] = place.leave
        try:
            cycle = scope[CYCLE][0]
            if not cycle.more_body and not place.take_at_once():
                await place.wait()
                if cycle.disconnected:
                    raise ClientDisconnect
            await self._app(scope, receive, send)
        finally:
            place.leave()


async def complete(state: dict[str, Any]) -> None:
    """Take the slot of the request with this state, because its body is complete. Raises `Overloaded`."""
    if _PLACE in state and not state[_PLACE].take_at_once():
        await state[_PLACE].wait()


def leave_early(state: dict[str, Any]) -> None:
    """Release the slot of the request with this state, because it waits for something that needs none."""
    if _PLACE in state:
        state[_PLACE].leave()
