"""The keys that the tokens' issuer publishes (JWKS, RFC 7517): fetched, kept, and fetched again when they change."""

import asyncio
import math
import time
from collections.abc import Callable

import structlog

from tocsin.errors import Unavailable
from tocsin.fetching import Unfetched, fetch
from tocsin.keys import Key, Speaker, of_jwks

SLOWEST = 5.0
"""Seconds that the issuer may take for its whole answer."""

LARGEST = 256 * 1024
"""Bytes that the answer may have."""

PAUSE = 60.0
"""Seconds from one fetch to the next, whatever tokens say."""

STALE = 600.0
"""Seconds after which keys are fetched anew, so that withdrawn ones go."""

log = structlog.get_logger(__name__)


class Jwks:
    """The keys at a url, as they were when they were last fetched; `clock` counts seconds."""

    def __init__(self, url: str, speakers: frozenset[Speaker], clock: Callable[[], float] = time.monotonic) -> None:
        self.keys: tuple[Key, ...] = ()
        self._url = url
        self._speakers = speakers
        self._clock = clock
        self._began = -math.inf
        self._fetched = -math.inf
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None

    def freshen(self) -> None:
        """See that keys which are missing or old are fetched, without waiting for them."""
        if self._clock() - self._fetched >= STALE:
            self._begin()

    async def refresh_for(self, kid: str | None, algorithm: str) -> None:
        """Fetch the keys if the one that a token names, or without a name any of its algorithm, is not among them.

        Raises `Unavailable` where none of the keys may have signed it, and the issuer could not be asked.
        """
        if not self._has(kid, algorithm):
            self._begin()
            if self._fetching and not self._fetching.done():
                await asyncio.shield(self._fetching)  # others wait for it too
        if self._failed and not any(key.may_have_signed(algorithm, kid) for key in self.keys):
            again = math.ceil(self._began + PAUSE - self._clock())
            raise Unavailable(
                "The keys of the tokens' issuer cannot be fetched. Please try again.", retry_after=max(again, 1)
            )

    async def close(self) -> None:
        """Wait no longer for what is being fetched."""
        if self._fetching:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    def _has(self, kid: str | None, algorithm: str) -> bool:
        return any(algorithm in key.algorithms if kid is None else key.kid == kid for key in self.keys)

    def _begin(self) -> None:
        under_way = self._fetching is not None and not self._fetching.done()
        if not under_way and self._clock() - self._began >= PAUSE:
            self._began = self._clock()
            self._fetching = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            keys = of_jwks(await fetch(self._url, seconds=SLOWEST, limit=LARGEST), self._speakers)
        except (Unfetched, ValueError) as error:
            self._failed = True
            log.warning("the keys of the tokens' issuer could not be fetched", reason=str(error), kept=len(self.keys))
            return
        self._failed, self._fetched = False, self._clock()
        if keys != self.keys:
            self.keys = keys
            log.info("the tokens' issuer has other keys than before", keys=len(keys))
