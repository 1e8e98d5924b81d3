"""The published keys of the issuer of tokens (JWKS, RFC 7517): fetched, kept, and refreshed."""

import asyncio
import math
import time
from collections.abc import Callable

import structlog

from tocsin.auth.keys import Key, Speaker, of_jwks
from tocsin.errors import Unavailable
from tocsin.http_client.fetch import FetchError, fetch

FETCH_TIMEOUT = 5.0
"""Seconds for the whole answer of the issuer."""

MAX_BYTES = 256 * 1024
"""Maximum bytes of the answer."""

FETCH_INTERVAL = 60.0
"""Minimum seconds between two fetches. Until the first success: 1, 2, 4 ... up to this."""

STALE = 600.0
"""Seconds after which keys are fetched again, so that withdrawn keys are removed."""

log = structlog.get_logger(__name__)


class Jwks:
    """The keys at a url, as last fetched. `clock` returns seconds."""

    def __init__(self, url: str, speakers: frozenset[Speaker], clock: Callable[[], float] = time.monotonic) -> None:
        self.keys: tuple[Key, ...] = ()
        self.url = url
        self._speakers = speakers
        self._clock = clock
        self._began = -math.inf
        self._fetched = -math.inf
        self._failed = False
        self._failures = 0
        self._fetching: asyncio.Task[None] | None = None

    def freshen(self) -> None:
        """Start to fetch the keys if they are missing or old."""
        if self._clock() - self._fetched >= STALE:
            self._begin()

    async def refresh_for(self, kid: str | None, algorithm: str) -> None:
        """Fetch the keys if none has the algorithm of a token and, if it has one, its key id.

        Raises `Unavailable` if the key is missing and the keys could not be fetched, because the issuer failed or was
        asked within the last minute. It may have published the key since, so the token must not be refused yet.
        """
        if self._has(kid, algorithm):
            return
        self._begin()
        if fetching := self._under_way:
            await asyncio.shield(fetching)  # other callers wait for it too
        has_looked = fetching is not None and not self._failed
        if has_looked or any(key.may_have_signed(algorithm, kid) for key in self.keys):
            return
        raise Unavailable(
            "The issuer's keys cannot be fetched. Please try again."
            if self._failed
            else "The token's key is unknown, and the issuer's keys were fetched a moment ago. Please try again.",
            retry_after=max(math.ceil(self._began + self._pause - self._clock()), 1),
        )

    async def close(self) -> None:
        """Cancel a fetch."""
        if self._fetching:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    def _has(self, kid: str | None, algorithm: str) -> bool:
        return any(algorithm in key.algorithms and kid in {None, key.kid} for key in self.keys)

    @property
    def _pause(self) -> float:
        return FETCH_INTERVAL if self.keys else min(2.0 ** min(self._failures - 1, 6), FETCH_INTERVAL)

    @property
    def _under_way(self) -> asyncio.Task[None] | None:
        return self._fetching if self._fetching and not self._fetching.done() else None

    def _begin(self) -> None:
        if not self._under_way and self._clock() - self._began >= self._pause:
            self._began = self._clock()
            self._fetching = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            keys = of_jwks(await fetch(self.url, seconds=FETCH_TIMEOUT, limit=MAX_BYTES), self._speakers)
        except (FetchError, ValueError) as error:
            self._failed, self._failures = True, self._failures + 1
            log.warning("JWKS fetch failed", reason=str(error), kept=len(self.keys))
            return
        self._failed, self._fetched = False, self._clock()
        if keys != self.keys:
            self.keys = keys
            log.info("JWKS changed", keys=len(keys))
