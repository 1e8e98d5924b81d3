"""The doorbell: wakes workers when there is work, and readers when their inbox changed; here, and by wire elsewhere.

A lost ring costs latency, never data: whoever waits looks by himself every few seconds.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator

from tocsin.bus import MAX_BYTES, Bus, ByNotify
from tocsin.db.pool import Database

POLL = 1.5
"""Seconds after which a worker looks for work that nobody rang for."""

GAP = 0.01
"""Seconds between two messages: rings in between become one, for a NOTIFY takes a lock of the whole server."""

MAX_USERS = 2000
"""Users whose inboxes changed that are named to other processes at once; of more, it is only said that there are."""

EVERYBODY = "@*"

Changed = Callable[[Collection[int] | None], None]
"""Takes the ids of users whose inboxes changed; none: anybody's may have."""


class PubSub:
    """One bell per lane, one named `settled` for those who wait for an event's end, and one for each user's inbox."""

    def __init__(self, url: str, database: Database, bus: Bus | None = None) -> None:
        self._bus = bus or ByNotify(url, database)
        self._events: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._local: set[str] = set()
        self._outgoing: set[str] = set()
        self._changed_users: set[int] = set()
        self._sender: asyncio.Task[None] | None = None
        self._changed: Changed = lambda _: None

    def handle_locally(self, *names: str) -> None:
        """Declare that this process answers these bells itself: they need not be heard outside."""
        self._local.update(names)

    def publish(self, name: str) -> None:
        """Wake whoever waits for `name`. Never blocks and never fails."""
        self._events.pop(name, asyncio.Event()).set()
        if name not in self._local:
            self._outgoing.add(name)
            self._begin_to_send()

    def listen_for(self, name: str) -> asyncio.Event:
        """Return what the next ring of `name` sets. To miss none: take it, look for work, and only then wait."""
        return self._events[name]

    def publish_changes(self, user_ids: Collection[int]) -> None:
        """Wake whoever reads the inboxes of these users. Never blocks and never fails."""
        self._changed(user_ids)
        self._changed_users.update(user_ids)
        if self._changed_users:
            self._begin_to_send()

    def on_change(self, changed: Changed) -> None:
        """Say what is to be told of inboxes that changed, here or elsewhere."""
        self._changed = changed

    async def receive(self) -> None:
        """Pass on the rings of other processes, for ever."""
        await self._bus.listen(self._pass_on)

    async def close(self) -> None:
        """Let a last ring out."""
        if self._sender is not None:
            await self._sender

    def _begin_to_send(self) -> None:
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())

    def _pass_on(self, text: str) -> None:
        users: set[int] = set()
        for word in text.split():
            if word == EVERYBODY:
                self._changed(None)
            elif word.startswith("@"):
                with contextlib.suppress(ValueError):
                    users.add(int(word[1:]))
            else:
                self._events.pop(word, asyncio.Event()).set()
        if users:
            self._changed(users)

    async def _send(self) -> None:
        while self._outgoing or self._changed_users:
            names, self._outgoing = self._outgoing, set()
            users, self._changed_users = self._changed_users, set()
            words = [*sorted(names), *([EVERYBODY] if len(users) > MAX_USERS else (f"@{id_}" for id_ in users))]
            for text in _messages(words):
                await self._bus.send(text)
            await asyncio.sleep(GAP)


class DeferredPubSub(PubSub):
    """Another doorbell in a transaction: what is rung goes out after the commit, when there is something to be seen."""

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub
        self._names: set[str] = set()
        self._users: set[int] = set()

    def publish(self, name: str) -> None:
        """Remember whom to wake."""
        self._names.add(name)

    def listen_for(self, name: str) -> asyncio.Event:
        """Return what the next ring of `name` sets."""
        return self._pubsub.listen_for(name)

    def publish_changes(self, user_ids: Collection[int]) -> None:
        """Remember whose readers to wake."""
        self._users.update(user_ids)

    def flush(self) -> None:
        """Ring for all that was rung."""
        for name in sorted(self._names):
            self._pubsub.publish(name)
        if self._users:
            self._pubsub.publish_changes(self._users)


async def wait(wakeup: asyncio.Event, seconds: float = POLL) -> None:
    """Wait until `bell` rings, at most `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wakeup.wait()


def _messages(words: list[str]) -> Iterator[str]:
    """Put words together to texts that a wire takes."""
    text = ""
    for word in words:
        if text and len(text) + 1 + len(word) > MAX_BYTES:
            yield text
            text = ""
        text = f"{text} {word}" if text else word
    if text:
        yield text
