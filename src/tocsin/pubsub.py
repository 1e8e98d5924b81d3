"""Publish and subscribe: wakes workers when there is work and streams when an inbox changed, in all processes.

A lost message costs latency and no data: every subscriber also polls, every few seconds.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from tocsin.batches import Batches
from tocsin.bus import ALL_USERS, MAX_USERS, Bus, ByNotify, Polling
from tocsin.db.pool import Database

POLL = 1.5
"""Seconds after which a worker looks for work of which it got no message."""

SEND_INTERVAL = 0.01
"""Seconds between two messages to other processes, since a NOTIFY locks the whole server."""

Changed = Callable[[Collection[int] | None], None]
"""Takes the ids of users whose inboxes changed; None: any inbox may have changed."""


class PubSub:
    """Topics (one per queue, `push`, `clear`, and `settled` for the final states of events), and changes of inboxes."""

    def __init__(self, url: str, database: Database, bus: Bus | None = None) -> None:
        self._bus = bus or (Polling() if database.is_read_only else ByNotify(url, database))
        self._events: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._local: set[str] = set()
        self._outgoing: Batches[str | int] = Batches(self._send)
        self._changed: Changed = lambda _: None

    @property
    def problem(self) -> str:
        """Why messages of other processes are not received now; empty if they are."""
        return f"messages of other processes are delayed: {self._bus.problem}" if self._bus.problem else ""

    def handle_locally(self, *topics: str) -> None:
        """Declare that only this process waits for these topics: they are not sent to others."""
        self._local.update(topics)

    def handle_remotely(self, *topics: str) -> None:
        """Declare that other processes wait for these topics, too."""
        self._local.difference_update(topics)

    def publish(self, topic: str) -> None:
        """Wake all waiters of a topic. Never blocks and never fails."""
        self._events.pop(topic, asyncio.Event()).set()
        if topic not in self._local:
            self._outgoing.add([topic])

    def listen_for(self, topic: str) -> asyncio.Event:
        """Return the event that the next message of a topic sets.

        Take the event first, then look for work, and only then wait: so no message is missed.
        """
        return self._events[topic]

    def publish_changes(self, user_ids: Collection[int]) -> None:
        """Wake the streams of these users. Never blocks and never fails."""
        self._changed(user_ids)
        self._outgoing.add([ALL_USERS] if len(user_ids) > MAX_USERS else user_ids)

    def on_change(self, changed: Changed) -> None:
        """Set the function to call when inboxes change, by this process or another."""
        self._changed = changed

    def watch(self, user_id: int) -> None:
        """Receive changes of this user by other processes. Changes of other users may be received too."""
        self._bus.watch(user_id)

    def unwatch(self, user_id: int) -> None:
        """Receive changes of this user no longer."""
        self._bus.unwatch(user_id)

    async def receive(self) -> None:
        """Pass on the messages of other processes, forever."""
        await self._bus.listen(self._pass_on)

    async def close(self) -> None:
        """Send the last messages."""
        await self._outgoing.join()

    def _pass_on(self, text: str) -> None:
        users: set[int] = set()
        for word in text.split():
            if word == ALL_USERS:
                self._changed(None)
            elif word.startswith("@"):
                with contextlib.suppress(ValueError):
                    users.add(int(word[1:]))
            else:
                self._events.pop(word, asyncio.Event()).set()
        if users:
            self._changed(users)

    async def _send(self, topics_and_users: Sequence[str | int]) -> None:
        topics = sorted(each for each in topics_and_users if isinstance(each, str))
        users = [each for each in topics_and_users if isinstance(each, int)]
        await self._bus.send(topics, users)
        await asyncio.sleep(SEND_INTERVAL)


class DeferredPubSub(PubSub):
    """The messages of a transaction, which are sent after its commit."""

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub
        self._topics: set[str] = set()
        self._users: set[int] = set()

    def publish(self, topic: str) -> None:
        """Keep a topic until `flush`."""
        self._topics.add(topic)

    def listen_for(self, topic: str) -> asyncio.Event:
        """Return the event that the next message of a topic sets."""
        return self._pubsub.listen_for(topic)

    def publish_changes(self, user_ids: Collection[int]) -> None:
        """Keep the users until `flush`."""
        self._users.update(user_ids)

    def flush(self) -> None:
        """Publish the stored messages."""
        for topic in sorted(self._topics):
            self._pubsub.publish(topic)
        if self._users:
            self._pubsub.publish_changes(self._users)


async def wait(wakeup: asyncio.Event, seconds: float = POLL) -> None:
    """Wait until `wakeup` is set, at most `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wakeup.wait()
