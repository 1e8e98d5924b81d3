"""The kinds of route that the service has: who is let in, and that a repeated POST does its work once.

A route that takes POST is one of these two, or the service is not built: so none can forget the `Idempotency-Key`.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

from fastapi.routing import APIRoute, iter_route_contexts
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tocsin.api.body import MAX_BODY_BYTES, body_of
from tocsin.api.idempotency import Enter, Handler, once


class Post(Route):
    """A POST route that the framework's models do not see: it lets in whom `enter` does."""

    def __init__(self, path: str, enter: Enter, handle: Handler, limit: int = MAX_BODY_BYTES) -> None:
        super().__init__(path, once(enter, limit)(handle), methods=["POST"])


class GuardedRoute(APIRoute):
    """A route that lets in whom `enter` does, before it looks at what they brought."""

    enter: ClassVar[Enter]
    keeps_keys: ClassVar[bool]

    def get_route_handler(self) -> Handler:
        """Return what the framework calls for a request."""
        handle = super().get_route_handler()
        enter, takes_a_body = type(self).enter, self.body_field is not None

        async def enter_and_handle(request: Request) -> Response:
            enter(request)
            return await handle(await _Read.of(request) if takes_a_body else request)

        return once(enter)(enter_and_handle) if "POST" in (self.methods or ()) and self.keeps_keys else enter_and_handle


def guarded_by(enter: Enter, *, keeps_keys: bool = True) -> type[GuardedRoute]:
    """Return the kind of route that lets in whom `enter` does.

    The endpoints of one that does not keep keys do so themselves: their body is too large to be read before them.
    """
    return type("GuardedRoute", (GuardedRoute,), {"enter": staticmethod(enter), "keeps_keys": keeps_keys})


def require_keys(routes: Iterable[BaseRoute]) -> None:
    """Raise `TypeError` where one of these routes takes POST, and is of no kind that knows the `Idempotency-Key`."""
    for context in iter_route_contexts(list(routes)):
        if "POST" in (context.methods or ()) and not isinstance(context.original_route, Post | GuardedRoute):
            raise TypeError(f"POST {context.path} would ignore the Idempotency-Key: use Post or guarded_by")


class _Read(Request):
    """A request whose body was read strictly; the framework finds it parsed."""

    parsed: Any

    @classmethod
    async def of(cls, request: Request) -> "_Read":
        kept = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
        read = cls({**request.scope, "headers": [*kept, (b"content-type", b"application/json")]}, request.receive)
        read.parsed = await body_of(request)
        return read

    async def body(self) -> bytes:
        return b"{}"

    async def json(self) -> Any:
        return self.parsed
