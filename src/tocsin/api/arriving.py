"""Bodies on their way in: how much of them a process holds at once, and whose goes where that is too much."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

MAX_ARRIVING_BYTES = 256 * 2**20
"""Bytes of bodies that have not arrived whole."""

UNCOUNTED_BYTES = 2**16
"""Bytes of a body that are not counted: small requests are read whatever else is on its way."""

log = structlog.get_logger(__name__)


class Arriving:
    """The bodies that a process holds in part, at most `most` bytes of them.

    Where they are more, the one whose client has sent nothing for the longest goes, with its connection.
    """

    def __init__(self, most: int = MAX_ARRIVING_BYTES) -> None:
        self.most = most
        self.size = 0
        self._bodies: dict[object, tuple[int, Callable[[], None]]] = {}

    @contextmanager
    def body(self, abort: Callable[[], None]) -> Iterator[Callable[[int], None]]:
        """Register a body while it arrives; call the returned function with its size so far."""
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
"""Those of this process."""
