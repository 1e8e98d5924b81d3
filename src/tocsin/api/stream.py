"""The route of the stream: server-sent events of one inbox, in order, resumable from any of them."""

import asyncio
import contextlib
import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tocsin import inbox
from tocsin.api.auth import user_of
from tocsin.api.middleware import ABORT
from tocsin.api.state import app_state_of
from tocsin.errors import Timeout, Unauthenticated
from tocsin.streams import STALL_TIMEOUT, Stream, Streams

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""What keeps proxies from holding events back."""


async def stream(request: Request) -> Response:
    """Answer all that happens in the caller's inbox from now on, or since the event that `Last-Event-ID` names."""
    user, app_state = user_of(request), app_state_of(request)
    if user.expires <= time.time():  # within the skew that other calls allow: it would end at once, again and again
        raise Unauthenticated("The token has expired.", presented=True)
    await inbox.owner(app_state.database, user)
    mark = request.headers.get("last-event-id") or None
    if request.method == "HEAD":
        return Response(headers=HEADERS, media_type=StreamResponse.media_type)
    reader = Stream(user.id, user.expires, mark, issued=user.issued)
    return StreamResponse(app_state.streams, reader)


class StreamResponse(Response):
    """An answer that goes on until the reader hangs up, or the stream is over."""

    media_type = "text/event-stream"

    def __init__(self, streams: Streams, reader: Stream) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._streams, self._reader = streams, reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what the reader is told."""
        scope["state"]["is_stream"] = True
        disconnected = asyncio.create_task(_disconnect(receive, self._reader))
        self._streams.join(self._reader)

        async def part(lines: bytes, *, more: bool = True) -> None:
            async with asyncio.timeout(STALL_TIMEOUT):
                await send({"type": "http.response.body", "body": lines, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._reader.run(part)
            await part(b"", more=False)
        except TimeoutError:
            scope[ABORT]()
            await disconnected
        finally:
            self._streams.leave(self._reader)
            disconnected.cancel()


async def _disconnect(receive: Receive, reader: Stream) -> None:
    with contextlib.suppress(Timeout):
        while (await receive())["type"] != "http.disconnect":
            pass
    reader.disconnect()
