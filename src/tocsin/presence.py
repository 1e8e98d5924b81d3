"""What other processes do at present: each says so by a word on the bus, again and again while it does it.

A lost word costs latency, as every lost message does. Processes of a release that does not know the words ignore them.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from secrets import token_hex
from typing import Literal, get_args

Doing = Literal["storing", "changes", "settled"]
"""Storing several events by one statement; having streams, which changes of inboxes wake; waiting for final states."""

SAY_INTERVAL = 1.0
"""Minimum seconds between two words of a process for the same thing."""

LIFETIME = 4.0
"""Seconds for which a word counts. Streams and waiters look every 1.5 s at least, and say so each time."""

MAX_PROCESSES = 1_000
"""Maximum processes that are counted."""

MARK = "+"
"""The first character of these words."""


class Presence:
    """Says what this process does, and counts the others that do the same. `send` sends a word to all processes."""

    def __init__(self, send: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send, self._clock = send, clock
        self._id = token_hex(4)
        self._said: dict[Doing, float] = {}
        self._heard: dict[str, dict[str, float]] = {what: {} for what in get_args(Doing)}
        self._listens_since: float | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear other processes for the duration of the block."""
        self._listens_since = self._clock()
        try:
            yield
        finally:
            self._listens_since = None

    def say(self, what: Doing) -> bool:
        """Say that this process does something, unless it has just said so; return whether others did not know it."""
        now, last = self._clock(), self._said.get(what)
        if last is not None and now - last < SAY_INTERVAL:
            return False
        self._said[what] = now
        self._send(f"{MARK}{what}:{self._id}")
        return last is None or now - last > LIFETIME

    def receive(self, word: str) -> None:
        """Take a word of any process, this one included."""
        what, _, id_ = word.removeprefix(MARK).partition(":")
        heard = self._heard.get(what)
        if heard is not None and id_ not in {"", self._id} and len(heard) < MAX_PROCESSES:
            heard[id_] = self._clock()

    def is_wanted(self, what: Doing) -> bool:
        """Return whether another process does something, or may: one that has just begun to listen knows nothing."""
        since = self._listens_since
        return since is None or self._clock() - since < LIFETIME or self.others(what) > 0

    def others(self, what: Doing) -> int:
        """Return how many other processes do something."""
        if heard := self._heard[what]:
            since = self._clock() - LIFETIME
            for id_ in [id_ for id_, at in heard.items() if at < since]:
                del heard[id_]
        return len(heard)
