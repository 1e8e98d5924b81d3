"""Streams: sends the changes of inboxes to open connections, in order, from the position of each.

Streams that join and inboxes that change are looked up together, in one statement. The backlog of a slow stream is
bounded: beyond that, the client gets a `resync` and loads the list again.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from itertools import chain

from tocsin import inbox
from tocsin.backoff import Backoff
from tocsin.batches import Batches, pieces
from tocsin.db.admission import KIND
from tocsin.db.pool import Database
from tocsin.errors import Unavailable
from tocsin.ids import new_id
from tocsin.inbox import InboxChanges, UserCursor, cursor_of, position_in
from tocsin.isolation import LockConflicts, do_in_parts
from tocsin.open_streams import MAX_STREAMS_PER_USER, OpenStreams
from tocsin.pages import NEWEST
from tocsin.pubsub import POLL, PubSub
from tocsin.waking import Waiting, wake, woken

MAX_BACKLOG_BYTES = 256 * 1024
"""Maximum bytes that wait for a slow client."""

BATCH_SIZE = 500
"""Inboxes per statement."""

STALL_TIMEOUT = 30.0
"""Seconds after which a connection that accepts no data is closed. The client reconnects and continues."""

KEEPALIVE_INTERVAL = 15.0
"""Seconds of silence after which a comment is sent, so that proxies keep the connection open."""

COMMENT = b":\n\n"


class Stream:
    """An open stream of a user: its position and its backlog.

    `mark` is the cursor to continue from; None: only new changes. `ends_at` and `issued` are of the token, in seconds
    since 1970.
    """

    __slots__ = (
        "_lines",
        "_sent_unread",
        "_size",
        "_waking",
        "ends_at",
        "id",
        "is_over",
        "issued",
        "made",
        "position",
        "user_id",
    )

    def __init__(self, user_id: int, ends_at: float, mark: str | None = None, *, issued: float | None = None) -> None:
        self.id = new_id()
        self.user_id, self.ends_at, self.issued = user_id, ends_at, issued
        self.made: int | None = None
        self.position: int | None = None
        if mark is not None:
            self.made, self.position = position_in(mark)
        self.is_over = False
        self._lines: list[bytes] = []
        self._size = 0
        self._sent_unread: int | None = None
        self._waking: Waiting | None = None

    @property
    def cursor(self) -> UserCursor:
        """The cursor of what was sent last."""
        return UserCursor(self.user_id, self.made or 0, self.position or 0)

    def close(self) -> None:
        """End the stream after the backlog was sent."""
        self.is_over = True
        wake(self._waking)

    def disconnect(self) -> None:
        """End the stream at once, because the client disconnected."""
        self._lines.clear()
        self.close()

    def take(self, found: InboxChanges) -> None:
        """Add the changes that are new to this stream to the backlog."""
        if self.position is None:
            self.made, self.position = found.made, found.at
            self._add_count(found.unread, found.cursor)
            return
        if self._sent_unread is None:
            self._add_count(found.unread)
        if self.made != found.made or not found.forgotten <= self.position <= found.at:
            self._resync(found)
            return
        is_changed = found.unread != self._sent_unread
        for entry, following in zip(found.entries, [*found.entries[1:], None], strict=False):
            if entry.position > self.position:
                is_changed = True
                is_last = following is None or following.position > entry.position  # of changes with one position
                self._add(entry.event, entry.data, cursor_of(found.made, entry.position) if is_last else None)
        if found.more or self._size > MAX_BACKLOG_BYTES:
            self._resync(found)
            return
        self.position = max(self.position, found.at)
        if is_changed:
            self._add_count(found.unread)

    def knows(self, made: int, at: int, unread: int) -> bool:
        """Return whether the stream has sent everything up to a position."""
        return (self.made, self.position, self._sent_unread) == (made, at, unread)

    async def run(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send the backlog and new changes, until the stream ends."""
        while not self.is_over or self._lines:
            left = self.ends_at - time.time()
            if left <= 0:
                return
            if not self._lines:
                await self._wait(min(KEEPALIVE_INTERVAL, left))
            lines, self._lines, self._size = self._lines, [], 0
            if lines or not self.is_over:
                await send(b"".join(lines) or COMMENT)

    async def _wait(self, seconds: float) -> None:
        """Wait until there is something to send, or the stream ends, at most so long."""
        self._waking = asyncio.get_running_loop().create_future()
        try:
            await woken(self._waking, seconds)
        finally:
            self._waking = None

    def _resync(self, found: InboxChanges) -> None:
        self._lines.clear()
        self._size = 0
        self.made, self.position = found.made, found.at
        self._add_count(found.unread)
        self._add("resync", "{}", found.cursor)

    def _add_count(self, unread: int, mark: str | None = None) -> None:
        self._sent_unread = unread
        self._add("count", f'{{"unread":{unread}}}', mark)

    def _add(self, event: str, data: str, mark: str | None = None) -> None:
        named = f"id: {mark}\n" if mark else ""
        line = f"{named}event: {event}\ndata: {data}\n\n".encode()
        self._lines.append(line)
        self._size += len(line)
        wake(self._waking)


class Streams:
    """All open streams of this process."""

    def __init__(self, database: Database, pubsub: PubSub | None = None) -> None:
        self._database = database
        self._pubsub = pubsub
        if pubsub:
            pubsub.on_change(self.changed)
        self._streams: dict[int, list[Stream]] = {}
        self._asked: Batches[int] = Batches(self._look)
        self._conflicts = LockConflicts()
        self._open = OpenStreams(database)
        self._is_closed = False
        self._polling, self._sending = Backoff("poll streams"), Backoff("streams")

    @property
    def count(self) -> int:
        """The number of open streams."""
        return sum(map(len, self._streams.values()))

    def join(self, stream: Stream) -> None:
        """Add a stream; close the oldest of the user if there are too many. Those of other processes close it later."""
        if self._is_closed:
            stream.close()
            return
        streams = self._streams.setdefault(stream.user_id, [])
        if len(streams) >= MAX_STREAMS_PER_USER:
            streams.pop(0).close()
        streams.append(stream)
        if self._pubsub and len(streams) == 1:
            self._pubsub.watch(stream.user_id)
        self._open.opened(stream.id, stream.user_id, stream.ends_at)
        self.changed([stream.user_id])

    def leave(self, stream: Stream) -> None:
        """Remove a stream."""
        self._open.closed(stream.id)
        streams = self._streams.get(stream.user_id, [])
        with contextlib.suppress(ValueError):
            streams.remove(stream)
        if not streams and self._streams.pop(stream.user_id, None) is not None and self._pubsub:
            self._pubsub.unwatch(stream.user_id)

    def changed(self, user_ids: Collection[int] | None) -> None:
        """Look up the inboxes of these users, or of all, if they have open streams."""
        watched = self._streams.keys()
        self._asked.add(set(watched) if user_ids is None else watched & set(user_ids))

    async def watch(self) -> None:
        """Poll all inboxes with open streams, forever: messages may be lost."""
        KIND.set("streams")
        while True:
            await asyncio.sleep(POLL)
            try:
                await self._poll()
                self._polling.succeeded()
            except Exception as error:  # noqa: BLE001 - it polls again after any error
                self._polling.note(error)

    def close(self) -> None:
        """End all streams, and accept no more."""
        self._is_closed = True
        self.end_all()

    async def finish(self) -> None:
        """Wait until it is recorded which streams are closed."""
        await self._open.join()

    def end_all(self) -> None:
        """End all streams. Clients whose token is still valid reconnect and continue."""
        for stream in list(chain.from_iterable(self._streams.values())):
            stream.close()

    async def _poll(self) -> None:
        if self._streams and self._pubsub:
            self._pubsub.want_changes()
        if self._streams and (over := await self._open.over()):
            for stream in list(chain.from_iterable(self._streams.values())):
                if stream.id in over:
                    stream.close()
        for some in pieces(list(self._streams), BATCH_SIZE):
            heads = await inbox.heads(self._database, some)
            self.changed([id_ for id_ in some if not self._is_current(id_, heads.get(id_))])

    def _is_current(self, user_id: int, head: tuple[int, int, int] | None) -> bool:
        return head is not None and all(stream.knows(*head) for stream in self._streams.get(user_id, ()))

    async def _look(self, user_ids: Sequence[int]) -> None:
        KIND.set("streams")
        waiting = deque(pieces(user_ids, BATCH_SIZE))
        try:
            await do_in_parts(waiting, self._send_changes, self._skip, self._conflicts)
            self._sending.succeeded()
        except Unavailable as error:
            self._asked.add(chain.from_iterable(waiting))
            await self._sending.pause(error)

    async def _skip(self, _user_id: int, error: Exception) -> None:
        """Leave out an inbox that cannot be read: the next poll tries it again."""
        self._sending.note(error)

    async def _send_changes(self, user_ids: Sequence[int]) -> None:
        since = {id_: _earliest(self._streams[id_]) for id_ in user_ids if id_ in self._streams}
        if not since:
            return
        found: Mapping[int, InboxChanges] = await inbox.changes_since(self._database, since)
        await self._continue({id_: changes.made for id_, changes in found.items()})
        for id_, position in since.items():
            changes = found.get(id_)
            for stream in list(self._streams.get(id_, ())):
                if changes is None or not changes.admits(stream.issued):
                    stream.close()  # the user was erased or deactivated, or the id belongs to another user
                elif _is_behind(stream, position) or (changes.more and _is_ahead(stream, position)):
                    self._asked.add([id_])  # it joined during the look-up, or its changes are not among these
                else:
                    stream.take(changes)

    async def _continue(self, made: Mapping[int, int]) -> None:
        """Continue the streams of inboxes of which a promoted standby has all changes that the streams have sent."""
        others = [
            stream
            for id_, now in made.items()
            for stream in self._streams.get(id_, ())
            if stream.position is not None and stream.made != now
        ]
        valid = await inbox.continued(self._database, [stream.cursor for stream in others]) if others else ()
        for stream in others:
            if stream.cursor in valid:
                stream.made = made[stream.user_id]


def _earliest(streams: Sequence[Stream]) -> int:
    """Return the lowest position of these streams. Those without one need no earlier changes."""
    return min((stream.position for stream in streams if stream.position is not None), default=NEWEST)


def _is_behind(stream: Stream, since: int) -> bool:
    return stream.position is not None and stream.position < since


def _is_ahead(stream: Stream, since: int) -> bool:
    return stream.position is not None and stream.position > since
