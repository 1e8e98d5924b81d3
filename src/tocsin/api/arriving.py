"""Request bodies: limits the memory for bodies that are being received, and for those that are being processed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from tocsin.errors import Unavailable

MAX_ARRIVING_BYTES = 256 * 2**20
"""Maximum bytes of incomplete bodies in a process."""

MAX_COMPLETE_BYTES = 64 * 2**20
"""Maximum bytes of complete bodies in a process. Parsed, a body takes up to nine times its size."""

UNCOUNTED_BYTES = 2**16
"""Maximum bytes of a body that is not counted, so that small requests are always read."""

log = structlog.get_logger(__name__)


class Arriving:
    """The incomplete bodies in a process, at most `most` bytes.

    Beyond that, the connection whose client has sent nothing for longest is closed.
    """

    def __init__(self, most: int = MAX_ARRIVING_BYTES) -> None:
        self.most = most
        self.size = 0
        self._bodies: dict[object, tuple[int, Callable[[], None]]] = {}

    @contextmanager
    def body(self, abort: Callable[[], None]) -> Iterator[Callable[[int], None]]:
        """Register a body while it is received. Call the yielded function with its current size."""
        key = object()

        def grown(size: int) -> None:
            if size > UNCOUNTED_BYTES:
                self._forget(key)
                self._bodies[key] = size, abort
                self.size += size
                self._keep_to_the_limit()

        try:
            yield grown
        finally:
            self._forget(key)

    def _keep_to_the_limit(self) -> None:
        while self.size > self.most and len(self._bodies) > 1:
            longest = next(iter(self._bodies))
            size, abort = self._bodies[longest]
            self._forget(longest)
            log.warning("body dropped", reason="too many bodies are being received", bytes=size, limit=self.most)
            abort()

    def _forget(self, key: object) -> None:
        self.size -= self._bodies.pop(key, (0, None))[0]


ARRIVING = Arriving()
"""The incomplete bodies of this process."""


class CompleteBodies:
    """The complete bodies in a process until their requests end, at most `most` bytes or one body."""

    def __init__(self, most: int = MAX_COMPLETE_BYTES) -> None:
        self.most = most
        self.size = 0

    def take(self, state: dict[str, Any], size: int) -> None:
        """Count the body of the request with this state. Raises `Unavailable` if there is no room."""
        if size <= UNCOUNTED_BYTES:
            return
        if self.size and self.size + size > self.most:
            log.warning("body refused", reason="too many large bodies are being processed", bytes=size, limit=self.most)
            raise Unavailable("Too many large requests are being processed. Please try again.")
        self.size += size
        state["held_bytes"] = size

    def release(self, state: dict[str, Any]) -> None:
        """Count a body no longer, because its request ends."""
        self.size -= state.pop("held_bytes", 0)


COMPLETE = CompleteBodies()
"""The complete bodies of this process."""
