"""The bus between processes over NATS, where TOCSIN_NATS_URL is set.

Topics go to all processes. A change of an inbox goes to the subject of its user, and a process subscribes to those of
the users with streams in it.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import structlog
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from tocsin.batches import Batches
from tocsin.bus import MAX_BYTES, Receive, texts, word_of
from tocsin.errors import Refusal
from tocsin.nats_access import Access

PREFIX = "tocsin"
"""The first part of all subjects; for a further cell, its name follows."""

SUBJECTS = 65_536
"""Subjects of changes. With 5,000 streams, a process receives one of 13 changes."""

MAX_SUBJECTS = 100
"""Maximum users whose changes are sent by subject. For more, a list for all processes is less work."""

LINGER = 10.0
"""Seconds for which a subject that is watched no longer is kept, because clients reconnect."""

RECONNECT_INTERVAL = 1.5
"""Seconds between two tries to connect."""

CONNECT_TIMEOUT = 5
"""Seconds that a server may take to accept a connection."""

CLOSE_TIMEOUT = 1
"""Seconds that the end of a connection may take: the client waits forever after a failed TLS handshake."""

RESTART_INTERVAL = 15
"""Seconds after which a first connection that did not succeed is begun again, for the same reason."""

PING_INTERVAL = 5
"""Seconds between two pings: a server that has not answered two of them hangs, and is connected to again."""

AWAY = "NATS cannot be reached"

ERRORS = (NatsError, OSError, TimeoutError, Refusal)

log = structlog.get_logger(__name__)


async def failure_of(access: Access) -> str:
    """Return why a server cannot be used, without secrets; empty if it answers."""
    client, failures = Client(), list[Exception]()

    async def note(error: Exception) -> None:
        failures.append(error)

    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await client.connect(
                **access.options(),
                allow_reconnect=False,
                max_reconnect_attempts=1,  # each server is tried twice, without a pause
                reconnect_time_wait=0,
                error_cb=note,
            )
            await client.flush()
    except ERRORS as error:
        return _words(failures[-1] if failures else error)
    finally:
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await client.close()
    return ""


class ByNats:
    """A NATS server or cluster. A further cell has subjects of its own, so that its messages wake no others."""

    def __init__(self, access: Access, cell: str = "") -> None:
        self._access = access
        self._prefix = f"{PREFIX}.cells.{cell}" if cell else PREFIX
        self._subject_of_all = f"{self._prefix}.work"
        self._client = Client()
        self._closed = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        self._complained = False
        self._is_closing = False
        self._reason = ""
        self._receive: Receive = lambda _: None
        self._watched: defaultdict[str, set[int]] = defaultdict(set)
        self._subscriptions: dict[str, Subscription] = {}
        self._changed_subjects: Batches[str] = Batches(self._subscribe)

    @property
    def problem(self) -> str:
        """Why no texts are received now; empty if they are."""
        if self._client.is_connected:
            return ""
        return f"{AWAY}: {self._reason}" if self._reason else AWAY

    async def send(self, topics: Sequence[str], user_ids: Collection[int]) -> None:
        """Publish, if there is a connection."""
        self._connect()
        if not self._client.is_connected:
            return
        by_subject: defaultdict[str, list[int]] = defaultdict(list)
        if len(user_ids) <= MAX_SUBJECTS:
            for user_id in user_ids:
                by_subject[self._subject_of(user_id)].append(user_id)
        with contextlib.suppress(NatsError, OSError):
            for text in texts(topics, () if by_subject else user_ids):
                await self._client.publish(self._subject_of_all, text.encode())
            for subject, ids in by_subject.items():
                await self._client.publish(subject, " ".join(map(word_of, ids)).encode())

    async def listen(self, receive: Receive) -> None:
        """Subscribe. The client subscribes again after each reconnection, until it is closed."""
        self._receive = receive
        while True:
            await asyncio.shield(self._connect())
            self._subscriptions.clear()
            with contextlib.suppress(NatsError):
                await self._client.subscribe(self._subject_of_all, cb=self._pass_on)
                self._changed_subjects.add(self._watched)
                log.info("listening on NATS")
                await self._closed.wait()
            await asyncio.sleep(RECONNECT_INTERVAL)

    def watch(self, user_id: int) -> None:
        """Subscribe to the subject of a user. When the server has confirmed it, the user counts as changed."""
        subject = self._subject_of(user_id)
        self._watched[subject].add(user_id)
        self._changed_subjects.add([subject])

    def unwatch(self, user_id: int) -> None:
        """Unsubscribe from the subject of a user, unless it is watched again soon."""
        subject = self._subject_of(user_id)
        self._watched[subject].discard(user_id)
        if not self._watched[subject]:
            del self._watched[subject]
            asyncio.get_running_loop().call_later(LINGER, self._changed_subjects.add, [subject])

    async def close(self) -> None:
        """Close the connection."""
        self._is_closing = True
        self._watched.clear()
        if self._connecting:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._client.options and not self._client.is_closed:
            with contextlib.suppress(NatsError, OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._client.close()
        await self._changed_subjects.join()

    def _subject_of(self, user_id: int) -> str:
        """Return the subject of the changes of a user."""
        return f"{self._prefix}.changes.{user_id % SUBJECTS}"

    async def _pass_on(self, message: Any) -> None:
        self._receive(message.data.decode("utf-8", "replace"))

    async def _subscribe(self, subjects: Sequence[str]) -> None:
        """Subscribe to those of these subjects that are watched, and unsubscribe from the others.

        Without a connection, `listen` does so when there is one.
        """
        client = self._client
        if not client.is_connected:
            return
        try:
            for subject in subjects:
                if subject not in self._watched:
                    if left := self._subscriptions.pop(subject, None):
                        await left.unsubscribe()
                elif subject not in self._subscriptions:
                    self._subscriptions[subject] = await client.subscribe(subject, cb=self._pass_on)
            await client.flush(CONNECT_TIMEOUT)
        except ERRORS as error:
            log.debug("NATS error", reason=_words(error))  # the next poll of the streams finds what was missed
            return
        for text in texts([word_of(id_) for each in subjects for id_ in self._watched.get(each, ())], ()):
            self._receive(text)

    def _connect(self) -> "asyncio.Task[None]":
        """Connect if there is no connection; also if the client was closed by an error of a server."""
        if self._connecting is None or (self._connecting.done() and self._client.is_closed):
            self._client, self._closed = Client(), asyncio.Event()
            self._connecting = asyncio.create_task(self._until_connected(self._client, self._closed))
        return self._connecting

    async def _until_connected(self, client: Client, closed: asyncio.Event) -> None:
        async def note_end() -> None:
            closed.set()

        async def note_disconnect() -> None:
            if not self._is_closing:
                log.warning("NATS disconnected; other processes are notified with a delay")

        async def note_reconnect() -> None:
            self._complained = False
            log.warning("NATS reconnected")
            self._changed_subjects.add(self._watched)

        while True:
            try:
                async with asyncio.timeout(RESTART_INTERVAL):
                    await client.connect(
                        **self._access.options(),
                        name="tocsin",
                        max_reconnect_attempts=-1,
                        reconnect_time_wait=1,
                        connect_timeout=CONNECT_TIMEOUT,
                        ping_interval=PING_INTERVAL,
                        pending_size=MAX_BYTES * 128,
                        error_cb=self._complain,
                        closed_cb=note_end,
                        disconnected_cb=note_disconnect,
                        reconnected_cb=note_reconnect,
                    )
            except ERRORS as error:
                if not (isinstance(error, TimeoutError) and self._reason):
                    await self._complain(error)
                await asyncio.sleep(RECONNECT_INTERVAL)
            else:
                self._complained = False
                return

    async def _complain(self, error: Exception) -> None:
        """Log the first error of a series: the client reconnects by itself."""
        self._reason = _words(error)
        if self._complained or self._client.is_connected:
            log.debug("NATS error", reason=self._reason)
            return
        self._complained = True
        log.warning("NATS connection failed; it will be retried", reason=self._reason)


def _words(error: Exception) -> str:
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
