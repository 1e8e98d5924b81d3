"""Delivery at once: events with few recipients enter the inboxes in the statement that stores them.

This saves a job, two transactions and the wait for a worker. What cannot be delivered at once gets a job: an event of a
recipient whose head is locked, or of one whose language was not used recently in this process.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import structlog

from tocsin.backoff import Backoff
from tocsin.catalogue import Catalogue, Checked
from tocsin.db.pool import Database
from tocsin.jobs import lanes_of_workers
from tocsin.notifications import body_with

MAX_COST = 2_000
"""Maximum cost of the events that are delivered by one statement, so that no caller waits long for those of others."""

MAX_LANGUAGES = 4
"""Maximum languages in which an event is rendered before its recipients are known."""

LOOK_INTERVAL, FIRST_LOOK_INTERVAL = 2.0, 0.25
"""Seconds between two looks at the lanes of the running workers, and while none is found: a worker starts soon."""

PAUSE = 30.0
"""Seconds after a failure for which all events get a job: a table may be locked, and no caller should wait for it."""

log = structlog.get_logger(__name__)


class AtOnce:
    """Selects and renders the events that are delivered at once.

    `lanes` are those of pushes; None: not known, so that all events get a job until `watch` knows those of the workers.
    `entered` is called with the seconds from the acceptance of an event to the last inbox.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        lanes: Sequence[str] | None = (),
        entered: Callable[[float], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.entered = entered
        self.languages = list(catalogue.languages)
        self.lanes = lanes
        self._catalogue = catalogue
        self._clock = clock
        self._recent = dict.fromkeys(self.languages[:1])
        self._paused_until = clock()

    @property
    def is_paused(self) -> bool:
        """Whether all events get a job."""
        return self.lanes is None or self._clock() < self._paused_until

    async def watch(self, database: Database) -> None:
        """Keep the lanes of the running workers, forever, in a process that has no worker."""
        backoff = Backoff("lanes of the workers")

        async def look() -> None:
            self.lanes = await lanes_of_workers(database)

        while True:
            await backoff.attempt(look)
            await asyncio.sleep(FIRST_LOOK_INTERVAL if self.lanes is None else LOOK_INTERVAL)

    def pause(self, error: Exception) -> None:
        """Give all events a job for a while."""
        self._paused_until = self._clock() + PAUSE
        log.warning("events are queued instead of delivered at once", seconds=PAUSE, reason=type(error).__name__)

    @property
    def recent(self) -> Sequence[str]:
        """The languages in which all events of a statement are rendered."""
        return tuple(self._recent)

    def render(
        self, id_: UUID, checked: Checked, data: Mapping[str, Any], data_json: str, languages: Iterable[str]
    ) -> list[tuple[str, str]]:
        """Return the content of an event in these languages: its language, and the JSON as of `body_of`."""
        type_ = self._catalogue.kinds[checked.kind].type
        contents = []
        for language in languages:
            words = self._catalogue.render(checked.kind, language, data, checked.params)
            contents.append((language, body_with(str(id_), type_, data_json, words.message, words.message_formatted)))
        return contents

    def learn(self, languages: Collection[str]) -> None:
        """Keep the languages of the recipients of the last events as recent."""
        for language in languages:
            self._recent.pop(language, None)
            self._recent[language] = None
        while len(self._recent) > MAX_LANGUAGES:
            del self._recent[next(iter(self._recent))]
