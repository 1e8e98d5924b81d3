"""Rate limits, shared by all processes.

Of each limit and key, such as a user, the database stores how many units are used in the current window. A window
begins with its first unit and ends after the time of the limit. A process takes units in advance, so that most requests
ask nothing of the database: first `free` units that need not be asked for, then up to `advance` at a time. So a process
can exceed a limit by its free units, and units that it took in advance are missing in others until the window ends.

A read-only process counts its own requests only: all units of a limit are free.
"""

import asyncio
import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import structlog

from tocsin.batches import Batches
from tocsin.db.admission import KIND
from tocsin.db.connections import Record
from tocsin.db.pool import Database
from tocsin.db.statements import queries
from tocsin.errors import RateLimited, Unavailable
from tocsin.setting_types import Rate
from tocsin.settings import Settings

FREE_PART, ADVANCE_PART = 100, 20
"""Fractions of a limit that a process uses without asking, and takes in advance: a hundredth and a twentieth."""

MAX_WINDOWS = 20_000
"""Maximum keys of a limit that a process keeps. Beyond that, it forgets the oldest window."""

MAX_ASKED = 200
"""Maximum keys in a statement."""

MAX_ATTEMPTS = 5
"""Maximum statements for a key. Another is needed if several processes begin the same window at the same time."""

LOG_INTERVAL = 60.0
"""Minimum seconds between two log lines about the same limit."""

TEST_PUSHES = Rate(5, "minute")
"""Maximum test pushes of a user."""

_SQL = queries("rate_limits")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit: its name in headers and metrics, its rate, and its unit, in the plural."""

    name: str
    rate: Rate
    units: str
    free: int = 0
    advance: int = 0

    @classmethod
    def in_advance(cls, name: str, rate: Rate, units: str) -> "Limit":
        """Return a limit of which processes take units in advance, for what is too frequent to be asked each time."""
        return cls(name, rate, units, rate.quota // FREE_PART, rate.quota // ADVANCE_PART)

    @property
    def policy(self) -> str:
        """The limit as an item of the header `RateLimit-Policy`."""
        return f'"{self.name}";q={self.rate.quota};w={self.rate.seconds}'


class Standing(NamedTuple):
    """The rest of a limit after a request: the units that are left, and the seconds until the window ends."""

    limit: Limit
    window: "Window"
    left: int
    seconds: int

    @property
    def item(self) -> str:
        """The standing as an item of the header `RateLimit`."""
        return f'"{self.limit.name}";r={self.left};t={self.seconds}'


class Window:
    """The current window of a key in this process.

    `budget` units can be used without asking; `spent` were used without having been asked for. `left` is what the
    database had left when it was last asked.
    """

    __slots__ = ("asking", "budget", "ends_at", "is_asked", "left", "spent")

    def __init__(self, limit: Limit, now: float) -> None:
        self.budget = limit.free
        self.spent = 0
        self.left = limit.rate.quota - limit.free
        self.ends_at = now + limit.rate.seconds
        self.is_asked = self.left == 0
        self.asking: asyncio.Future[bool] | None = None

    def use(self, units: int) -> None:
        """Use units of the budget."""
        self.budget -= units
        if not self.is_asked:
            self.spent += units


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """Units that are asked for: at least `wanted`, or none."""

    limit: Limit
    key: str
    window: Window
    wanted: int
    answered: asyncio.Future[bool]

    @property
    def row(self) -> tuple[str, str, int, int, int, int, int]:
        """The arguments of the statement."""
        rate, most = self.limit.rate, self.wanted and self.wanted + self.limit.advance
        return self.limit.name, self.key, rate.quota, rate.seconds, self.window.spent, self.wanted, most


class RateLimits:
    """The limits of this process. `refused` is called with the name of a limit for each refusal."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        refused: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._refused = refused
        self._clock = clock
        self._windows: defaultdict[str, dict[str, Window]] = defaultdict(dict)
        self._asked: Batches[Ask] = Batches(self._ask, _count_of_next)
        self._logged_at: dict[str, float] = {}
        self._limits = {limit.name: limit for limit in limits_of(settings)}
        if database.is_read_only:
            self._limits = {name: replace(limit, free=limit.rate.quota) for name, limit in self._limits.items()}

    def of(self, name: str) -> Limit | None:
        """Return a limit; None if it is switched off."""
        return self._limits.get(name)

    async def take(self, limit: Limit, key: str, units: int = 1) -> tuple[Standing, RateLimited | None]:
        """Use units of a limit. Return the standing, and the error if fewer are left; then none is used."""
        while True:
            if standing := self.take_at_once(limit, key, units):
                return standing, None
            window = self._window(limit, key)
            is_used_up = window.is_asked and window.left == 0
            if is_used_up or not await self._get(limit, key, window, units):
                return self._standing(limit, window), self._refusal(limit, key, window, units)

    def take_at_once(self, limit: Limit, key: str, units: int = 1) -> Standing | None:
        """Use units of a limit that need not be asked for; return None if there are too few of them."""
        window = self._window(limit, key)
        if window.budget < units:
            return None
        window.use(units)
        return self._standing(limit, window)

    def give_back(self, standing: Standing, units: int) -> None:
        """Give back units that had no effect, unless their window has ended."""
        if standing.window.ends_at > self._clock():
            standing.window.use(-units)

    async def close(self) -> None:
        """Report the units that were used without asking, and return those that were taken and not used."""
        if self._database.is_read_only:
            return
        now = self._clock()
        for limit in self._limits.values():
            for key, window in self._windows[limit.name].items():
                if window.is_asked:
                    window.spent = -window.budget
                if window.spent and window.ends_at > now and window.asking is None:
                    window.asking = asyncio.get_running_loop().create_future()
                    self._asked.add([Ask(limit, key, window, 0, window.asking)])
        with contextlib.suppress(Exception):  # they are missing until the windows end
            await self._asked.join()

    def _window(self, limit: Limit, key: str) -> Window:
        """Return the current window of a key, which may begin now."""
        windows, now = self._windows[limit.name], self._clock()
        window = windows.get(key)
        if window is None or window.ends_at <= now:
            windows.pop(key, None)
            if len(windows) >= MAX_WINDOWS:
                del windows[next(iter(windows))]
            window = windows[key] = Window(limit, now)
        return window

    async def _get(self, limit: Limit, key: str, window: Window, units: int) -> bool:
        """Ask for units, or wait until another request has asked. Return False if there are not enough."""
        if window.asking:
            await asyncio.shield(window.asking)
            return True
        if not window.is_asked:
            window.budget = 0
        window.asking = asyncio.get_running_loop().create_future()
        self._asked.add([Ask(limit, key, window, units - window.budget, window.asking)])
        return await asyncio.shield(window.asking)  # if others use the units first, they are asked for again

    async def _ask(self, asks: Sequence[Ask]) -> None:
        KIND.set("rate limits")
        waiting = {(ask.limit.name, ask.key): ask for ask in asks}
        try:
            for _ in range(MAX_ATTEMPTS):
                for row in await self._take(list(waiting.values())):
                    self._answer(waiting.pop((row["name"], row["key"])), row)
                if not waiting:
                    return
            raise Unavailable  # noqa: TRY301 - as if the database had raised it
        except Exception as error:  # noqa: BLE001 - every caller gets the error
            for ask in asks:
                if not ask.answered.done():
                    ask.window.asking = None
                    ask.answered.set_exception(error)
                    ask.answered.exception()  # there may be no caller left

    async def _take(self, asks: Sequence[Ask]) -> Sequence[Record]:
        columns = map(list, zip(*(ask.row for ask in asks), strict=True))
        return await self._database.rows(_SQL["take"], *columns, len(asks))

    def _answer(self, ask: Ask, row: Record) -> None:
        window = ask.window
        window.budget += row["units"]
        window.left, window.spent = row["left"], 0
        window.ends_at = self._clock() + row["seconds"]
        window.is_asked, window.asking = True, None
        ask.answered.set_result(row["units"] > 0)

    def _standing(self, limit: Limit, window: Window) -> Standing:
        left = max(window.left + window.budget, 0)
        return Standing(limit, window, left, max(1, math.ceil(window.ends_at - self._clock())))

    def _refusal(self, limit: Limit, key: str, window: Window, units: int) -> RateLimited:
        self._refused(limit.name)
        now, rate, standing = self._clock(), limit.rate, self._standing(limit, window)
        if now - self._logged_at.get(limit.name, -LOG_INTERVAL) >= LOG_INTERVAL:
            self._logged_at[limit.name] = now
            log.warning("rate limit exceeded", limit=limit.name, key=key, rate=str(rate))
        least = "at least " if units > rate.quota else ""  # recipients are counted up to one more than the limit
        needs = f" This request needs {least}{units}, and {standing.left} are left." if units > 1 else ""
        message = f"Rate limit exceeded: at most {rate.quota} {limit.units} per {rate.unit}.{needs}"
        return RateLimited(message, wait=standing.seconds)


def _count_of_next(waiting: Sequence[Ask]) -> int:
    """Return the size of the next batch. A batch contains each key once."""
    keys: set[tuple[str, str]] = set()
    for ask in waiting[:MAX_ASKED]:
        if (ask.limit.name, ask.key) in keys:
            break
        keys.add((ask.limit.name, ask.key))
    return len(keys)


def limits_of(settings: Settings) -> Sequence[Limit]:
    """Return the limits that are switched on."""
    requests = (
        ("user-requests", settings.limit_user_requests, "requests of a user"),
        ("service-requests", settings.limit_service_requests, "requests of a service"),
        ("service-events", settings.limit_service_events, "events of a service"),
        ("failed-auth", settings.limit_failed_auth, "requests without a valid token from an address"),
    )
    effects = (
        ("custom-calls", settings.limit_custom_calls, "custom notifications of a user"),
        ("custom-recipients", settings.limit_custom_recipients, "recipients of a user's custom notifications"),
        ("devices", settings.limit_devices, "registrations of devices by a user"),
        ("test-pushes", TEST_PUSHES, "test pushes of a user"),
    )
    return [
        *(Limit.in_advance(name, rate, units) for name, rate, units in requests if rate),
        *(Limit(name, rate, units) for name, rate, units in effects if rate),
    ]
