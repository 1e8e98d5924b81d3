"""The bus between processes: NOTIFY of the database, or `nats_bus.py`. A lost message costs only latency."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from tocsin.backoff import Backoff
from tocsin.db.connections import connect
from tocsin.db.errors import DRIVER_ERRORS, problem_of
from tocsin.db.pool import Database
from tocsin.db.url import schema_of

MAX_BYTES = 7900
"""Maximum bytes of a message: NOTIFY accepts less than 8,000."""

CHECK_INTERVAL, CHECK_TIMEOUT = 15.0, 5.0
"""Seconds without an end of the connection after which the server is asked, and maximum seconds for its answer."""

MAX_USERS = 2000
"""Maximum users whose changes are sent together. More are sent as a change of all users."""

ALL_USERS = "@*"

Receive = Callable[[str], None]


class Bus(Protocol):
    """Sends short texts to all processes, including the sender. A text may be lost.

    A text is a list of words: topics, and users (`@7`) whose inboxes changed, or `ALL_USERS`.
    """

    async def send(self, topics: Sequence[str], user_ids: Collection[int]) -> None:
        """Send topics to all processes, and changes of users to those that watch them. Never raises."""

    async def listen(self, receive: Receive) -> None:
        """Pass on received texts, forever. Reconnects by itself."""

    def watch(self, user_id: int) -> None:
        """Receive the changes of a user from now on. Never blocks.

        When that has begun, a change is received, because one may have been missed before.
        """

    def unwatch(self, user_id: int) -> None:
        """Receive the changes of a user no longer."""

    @property
    def problem(self) -> str:
        """Why no texts are received now; empty if they are."""


class _OfAllUsers:
    """A bus on which the changes of a user need not be asked for."""

    def watch(self, user_id: int) -> None:
        """Do nothing."""

    def unwatch(self, user_id: int) -> None:
        """Do nothing."""


class Polling(_OfAllUsers):
    """No messages: subscribers poll. For a process that is read-only, since a standby accepts no LISTEN."""

    problem = ""

    async def send(self, topics: Sequence[str], user_ids: Collection[int]) -> None:
        """Send nothing."""

    async def listen(self, receive: Receive) -> None:  # noqa: ARG002 - as every bus
        """Wait forever."""
        await asyncio.Event().wait()


class ByNotify(_OfAllUsers):
    """NOTIFY of the database: no other server is needed.

    All changes are sent to all processes: PostgreSQL wakes each session that listens to anything for each message.
    """

    def __init__(self, url: str, database: Database) -> None:
        self._url = url
        self._database = database
        self._channel = f"{schema_of(url)}_work"
        self._backoff = Backoff("listening for other processes")

    @property
    def problem(self) -> str:
        """Why no texts are received now; empty if they are."""
        return self._backoff.reason

    async def send(self, topics: Sequence[str], user_ids: Collection[int]) -> None:
        """Send by NOTIFY."""
        for text in texts(topics, user_ids):
            with contextlib.suppress(Exception):  # the pool logs it
                await self._database.value("select pg_notify($1, $2)", self._channel, text)

    async def listen(self, receive: Receive) -> None:
        """Listen on a separate connection."""
        while True:
            try:
                await self._listen(receive)
            except Exception as error:  # noqa: BLE001 - it listens again after any error
                await self._backoff.pause(problem_of(error) or error)

    async def _listen(self, receive: Receive) -> None:
        """Listen until the connection ends. The next try reports the cause.

        A server whose machine is lost ends no connection, so it is checked whether the server still answers.
        """
        gone = asyncio.Event()
        connection = await connect(self._url)
        try:
            connection.add_termination_listener(lambda _: gone.set())
            await connection.add_listener(self._channel, lambda *said: receive(str(said[-1])))
            self._backoff.succeeded()
            while not gone.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(gone.wait(), CHECK_INTERVAL)
                if not gone.is_set():
                    await connection.fetchval("select 1", timeout=CHECK_TIMEOUT)
        finally:
            with contextlib.suppress(*DRIVER_ERRORS):
                await connection.close(timeout=1)


def word_of(user_id: int) -> str:
    """Return the word for a change of a user."""
    return f"@{user_id}"


def texts(topics: Sequence[str], user_ids: Collection[int]) -> Iterator[str]:
    """Yield texts of at most `MAX_BYTES` for all processes."""
    text = ""
    for word in (*topics, *([ALL_USERS] if len(user_ids) > MAX_USERS else map(word_of, user_ids))):
        if text and len(text) + 1 + len(word) > MAX_BYTES:
            yield text
            text = ""
        text = f"{text} {word}" if text else word
    if text:
        yield text
