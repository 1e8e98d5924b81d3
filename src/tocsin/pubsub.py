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
from tocsin.presence import MARK, Doing, Presence

POLL = 1.5
"""Seconds after which a worker looks for work of which it got no message."""

SEND_INTERVAL = 0.01
"""Seconds between two messages to other processes, since a NOTIFY locks the whole server."""

HEARD_WITHIN = 0.2
"""Seconds after which the other processes have heard that changes are wanted. What was missed is looked up then."""

Changed = Callable[[Collection[int] | None], None]
"""Takes the ids of users whose inboxes changed; None: any inbox may have changed."""


class PubSub:
    """Topics (one per queue, `push`, `clear`, and `settled` for the final states of events), and changes of inboxes.

    Final states and changes are sent only while another process waits for them.
    """

    def __init__(self, url: str, database: Database, bus: Bus | None = None) -> None:
        self._bus = bus or (Polling() if database.is_read_only else ByNotify(url, database))
        self._events: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._local: set[str] = set()
        self._outgoing: Batches[str | int] = Batches(self._send)
        self._changed: Changed = lambda _: None
        self._presence = Presence(lambda word: self._outgoing.add([word]))

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
        if topic not in self._local and (topic != "settled" or self._is_wanted("settled")):
            self._outgoing.add([topic])

    def listen_for(self, topic: str) -> asyncio.Event:
        """Return the event that the next message of a topic sets.

        Take the event first, then look for work, and only then wait: so no message is missed.
        """
        if topic == "settled":
            self.say("settled")
        return self._events[topic]

    def publish_changes(self, user_ids: Collection[int]) -> None:
        """Wake the streams of these users. Never blocks and never fails."""
        self._changed(user_ids)
        if self._is_wanted("changes"):
            self._outgoing.add([ALL_USERS] if len(user_ids) > MAX_USERS else user_ids)

    def say(self, what: Doing) -> bool:
        """Tell other processes what this one does, as long as it does so; return whether they did not know."""
        return self._presence.say(what)

    def others(self, what: Doing) -> int:
        """Return how many other processes do something at present."""
        return self._presence.others(what)

    def on_change(self, changed: Changed) -> None:
        """Set the function to call when inboxes change, by this process or another."""
        self._changed = changed

    def watch(self, user_id: int) -> None:
        """Receive changes of this user by other processes. Changes of other users may be received too."""
        self._bus.watch(user_id)
        self.want_changes()

    def want_changes(self) -> None:
        """Have other processes send changes for the next seconds."""
        if self.say("changes"):
            asyncio.get_running_loop().call_later(HEARD_WITHIN, lambda: self._changed(None))

    def unwatch(self, user_id: int) -> None:
        """Receive changes of this user no longer."""
        self._bus.unwatch(user_id)

    async def receive(self) -> None:
        """Pass on the messages of other processes, forever."""
        with self._presence.listening():
            await self._bus.listen(self._pass_on)

    async def close(self) -> None:
        """Send the last messages."""
        await self._outgoing.join()

    def _is_wanted(self, what: Doing) -> bool:
        """Return whether another process does something, or may: with a problem, this one does not hear them."""
        return bool(self._bus.problem) or self._presence.is_wanted(what)

    def _pass_on(self, text: str) -> None:
        users: set[int] = set()
        for word in text.split():
            if word == ALL_USERS:
                self._changed(None)
            elif word.startswith(MARK):
                self._presence.receive(word)
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
