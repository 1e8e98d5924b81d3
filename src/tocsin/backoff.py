"""Back-off: retries failed work after a delay, and logs the reason once and then rarely."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from tocsin.db.errors import first_line, is_hopeless, is_outage, sentence_on
from tocsin.errors import Overrun, Refusal, Unavailable
from tocsin.http_client.fetch import FetchError
from tocsin.retry_delay import growing

FIRST = 0.25
"""Seconds before the first retry; each further delay is twice as long."""

MAX_DELAY = 3.0
"""Maximum seconds before a retry, so that work continues soon after an outage."""

SILENCE = 60.0
"""Seconds for which the same failure is not logged again."""

log = structlog.get_logger(__name__)

Failed = Callable[[str, str], None]


class Backoff:
    """The consecutive failures of one kind of work that runs forever, such as `direct queue`.

    A pause ends early if `stopping` is set. `failed` is called with the name and the reason of each failure. The pool
    logs outages of the database; other failures are logged here, those of a connection of its own as well, whose url
    is in `setting`.
    """

    def __init__(
        self,
        name: str,
        stopping: asyncio.Event | None = None,
        failed: Failed | None = None,
        setting: str | None = None,
    ) -> None:
        self.name = name
        self.reason = ""
        self._stopping = stopping or asyncio.Event()
        self._failed = failed
        self._setting = setting
        self._failures = 0
        self._is_logged = False
        self._logged_at: dict[str, float] = {}

    def succeeded(self, waits_for: str = "") -> None:
        """Record a success. `waits_for` is the reason why a part of the work still waits, such as a lock."""
        self._failures, self.reason = 0, waits_for
        if self._is_logged:
            self._is_logged = False
            log.info("work recovered", work=self.name)

    async def pause(self, error: Exception) -> None:
        """Wait before the next try."""
        self.note(error)
        self._failures += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(growing(self._failures, FIRST, MAX_DELAY)):
                await self._stopping.wait()

    async def recover(self, error: Exception, release: Callable[[], Awaitable[object]]) -> None:
        """Wait before the next try, and release what was claimed for this one as soon as that works.

        A worker that stops releases everything at its end.
        """
        if self._stopping.is_set():
            self.note(error)
            return
        refused = await _tried(release)
        await self.pause(error)
        while refused and not self._stopping.is_set():
            refused = await _tried(release)
            if refused:
                await self.pause(refused)

    async def until_done(self, work: Callable[[], Awaitable[object]]) -> None:
        """Try until it works, or until `stopping` is set."""
        while not self._stopping.is_set():
            failure = await _tried(work)
            if failure is None:
                self.succeeded()
                return
            await self.pause(failure)

    async def repeat(self, step: Callable[[], Awaitable[object]], interval: float) -> None:
        """Do a step after every `interval` seconds, forever, also after errors."""
        while True:
            await asyncio.sleep(interval)
            await self.attempt(step)

    async def attempt(self, step: Callable[[], Awaitable[object]]) -> None:
        """Do a step once, and record its success or failure."""
        if failure := await _tried(step):
            self.note(failure)
        else:
            self.succeeded()

    def note(self, error: Exception) -> None:
        """Record a failure, without a pause. Each kind of error is logged once in `SILENCE` seconds."""
        self.reason = reason_of(error)
        if self._failed:
            self._failed(self.name, self.reason)
        now, kind = time.monotonic(), type(error).__name__
        if isinstance(error, Unavailable) or now - self._logged_at.get(kind, -SILENCE) < SILENCE:
            return
        self._logged_at[kind], self._is_logged = now, True
        is_away = is_outage(error) and not is_hopeless(error)
        reason = sentence_on(error, self._setting) if is_away else first_line(error)
        more: dict[str, Any] = (
            {} if is_away or isinstance(error, Overrun | FetchError | Refusal) else {"exc_info": error}
        )
        log.warning("work failed; it will be retried", work=self.name, error=kind, reason=reason, **more)


def reason_of(error: Exception) -> str:
    """Return why work failed, without secrets."""
    return error.reason if isinstance(error, Unavailable | Overrun) else f"an error: {type(error).__name__}"


async def _tried(work: Callable[[], Awaitable[object]]) -> Exception | None:
    try:
        await work()
    except Exception as error:  # noqa: BLE001 - it is retried after any error
        return error
    return None
