"""The route of the stream: server-sent events of an inbox, in order. A stream can be resumed after any event."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Annotated

from fastapi import Header
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tocsin.api.auth import User
from tocsin.api.body import MAX_BODY_BYTES
from tocsin.api.documented import text
from tocsin.api.middleware import ABORT
from tocsin.api.routes import router
from tocsin.api.state import State
from tocsin.errors import Timeout, Unauthenticated
from tocsin.streams import STALL_TIMEOUT, Stream, Streams

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Headers that prevent proxies from buffering events."""


class StreamResponse(Response):
    """A response that lasts until the client disconnects or the stream ends.

    Its head is sent with the first event, so that no change is missed by a client that loads the list when it has the
    head: the first event has the position from which the changes are sent.
    """

    media_type = "text/event-stream"

    def __init__(self, streams: Streams, reader: Stream) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._streams, self._reader = streams, reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events of the stream."""
        scope["state"]["is_stream"] = True
        disconnected = asyncio.create_task(_disconnect(receive, self._reader, scope[ABORT]))
        self._streams.join(self._reader)

        is_started = False

        async def part(lines: bytes, *, more: bool = True) -> None:
            nonlocal is_started
            async with asyncio.timeout(STALL_TIMEOUT):
                if not is_started:
                    is_started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": lines, "more_body": more})

        try:
            await self._reader.run(part)
            await part(b"", more=False)
        except TimeoutError:
            scope[ABORT]()
            await disconnected
        finally:
            self._streams.leave(self._reader)
            disconnected.cancel()


routes = router("notifications")


@routes.get(
    "/notifications/stream",
    response_class=StreamResponse,
    responses=text(
        StreamResponse.media_type,
        'Events: `count` (`{"unread": 3}`, also the first event), `notification` (as in the list), `read` (`id`, `ids`,'
        " or `all` with `up_to`), `unread` (`id`), `deleted` (`id` or `ids`) and `resync` (load the list). Open.",
        beginning='id: 64201a3f5c000-41\nevent: count\ndata: {"unread":1}\n\n'
        'id: 64201a3f5c000-42\nevent: read\ndata: {"id":"0195d3f0-4c00-7000-8000-000000000001"}\n\n',
    ),
)
async def stream_notifications(
    request: Request,
    user: User,
    app_state: State,
    last_event_id: Annotated[
        str | None,
        Header(alias="Last-Event-ID", description="the `id` of the last event received: the stream continues after it"),
    ] = None,
) -> Response:
    """Stream the inbox.

    Sends the changes of the caller's inbox as server-sent events. If a client reconnects within 7 days with the last
    `id` as `Last-Event-ID`, no event is lost. Of the events of one transaction, only the last has an `id`; of `count`,
    only the first of a new stream. A user has at most 8 streams: one more closes the oldest.
    """
    if (
        user.expires <= time.time()
    ):  # other routes allow a clock skew; here the stream would end at once, and the client would reconnect
        raise Unauthenticated("The token has expired.", presented=True)
    if request.method == "HEAD":
        return Response(headers=HEADERS, media_type=StreamResponse.media_type)
    reader = Stream(user.id, user.expires, last_event_id or None, issued=user.issued)
    return StreamResponse(app_state.streams, reader)


async def _disconnect(receive: Receive, reader: Stream, abort: Callable[[], None]) -> None:
    """Disconnect a stream when its client does, and abort the connection if the request has an endless body."""
    size = 0
    with contextlib.suppress(Timeout):
        while (message := await receive())["type"] != "http.disconnect":
            size += len(message.get("body", b""))
            if size > MAX_BODY_BYTES:
                abort()
    reader.disconnect()
