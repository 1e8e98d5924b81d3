"""Machines, disks and network for a number of users and events a day, and what runs out first.

Nothing is measured here. The costs below were measured, each by the benchmark that its comment names, on two cores of a
server; a machine of yours differs, so give twice as much, and measure. They are those of a busy service, whose requests
share statements: an idle one takes more for each, and has the time. Without arguments, four sizes are shown.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

DAY = 86_400

EVENT_CPU = 180e-6
"""Processor seconds of an event with its first recipient, from the request to the inbox (`cells`)."""

ENTRY_CPU = 1 / 187_000
"""Processor seconds of each further recipient (`team`)."""

PAGE_CPU = 140e-6
"""Processor seconds of a page (`limits`)."""

PUSH_CPU = 1 / 10_200
"""Processor seconds of a push (`push`)."""

EVENT_BYTES, ENTRY_BYTES, PUSH_BYTES, USER_BYTES = 1_920, 180, 400, 310
"""Bytes on disk of an event, each of its recipients, a push and a user, with their indexes (`soak`, `team`)."""

EVENT_WAL, ENTRY_WAL = 2_900, 503
"""Bytes of write-ahead log of an event and of each of its recipients (`team`)."""

EVENT_TRAFFIC, PAGE_TRAFFIC, PUSH_TRAFFIC, LIVE_TRAFFIC = 1_500, 12_000, 1_500, 700
"""Bytes on the network, in and out, of a post, a page of 15, a push and a notification on a stream."""

LOOK_UP_CPU, LOOK_UP_INTERVAL = 0.9e-6, 1.5
"""Processor seconds of PostgreSQL for the look-up of a stream's inbox (`look_ups`), and the seconds between two."""

STREAM_MEMORY = 18 * 1024
"""Bytes of an open stream (`streams`)."""

STREAMS_OF_PROCESS = 10_000
PROCESS_MEMORY = 125 * 2**20
"""Bytes of a `serve` or `worker` process without streams, after an hour of load (`soak`)."""

PEAK = 4
"""How many times the mean of a day the busiest minute is."""

BUSY = 0.5
"""The part of a processor that is planned to be used at the peak, so that a lost machine is made up for."""


@dataclass(frozen=True, slots=True)
class Server:
    """What one PostgreSQL server can do before another one is due."""

    cores: float = 32
    disk: float = 4e12  # bytes: more takes too long to back up and to restore
    wal: float = 100e6  # bytes a second that one standby follows
    forgotten: float = 30_000  # events a second that retention deletes beside the load


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a service. `events` are a day, of `recipients` each."""

    users: int
    events: int
    recipients: float = 2.0
    days: int = 30  # for which notifications are kept
    active: float = 0.1  # the part of the users who open the app on a day
    pages: float = 20  # that each of them loads
    streams: float = 0.01  # the part of the users with an open stream at the peak
    pushes: float = 0.6  # of a notification

    @property
    def entries(self) -> float:
        """Notifications a day."""
        return self.events * self.recipients


@dataclass(frozen=True, slots=True)
class Plan:
    """What a load needs; rates are those of the peak. `limits`: what runs out first on one database, as parts of it."""

    events: float
    cores: float
    processes: int
    memory: float
    database_cores: float
    disk: float
    wal: float
    network: float
    streams: float
    limits: Sequence[tuple[str, float]]

    @property
    def databases(self) -> int:
        """How many database servers share the load, each with companies of its own."""
        return max(1, math.ceil(self.limits[0][1]))


def plan(load: Load, server: Server | None = None) -> Plan:
    """Return what a load needs."""
    server = server or Server()
    events, entries = PEAK * load.events / DAY, PEAK * load.entries / DAY
    pages, pushes = PEAK * load.users * load.active * load.pages / DAY, load.pushes * entries
    further = max(entries - events, 0)
    streams = load.users * load.streams
    writing = events * EVENT_CPU + further * ENTRY_CPU
    looks = streams / LOOK_UP_INTERVAL * LOOK_UP_CPU
    work = writing + pages * PAGE_CPU + pushes * PUSH_CPU + looks
    # PostgreSQL takes 0.4 of an event, nearly all of a further recipient, 0.4 of a page and 0.3 of a push
    in_database = 0.4 * (events * EVENT_CPU + pages * PAGE_CPU) + further * ENTRY_CPU + 0.3 * pushes * PUSH_CPU + looks
    of_python = (work - in_database) / BUSY
    processes = max(1, math.ceil(of_python), math.ceil(streams / STREAMS_OF_PROCESS))
    kept = load.days * (load.events * EVENT_BYTES + load.entries * (ENTRY_BYTES + load.pushes * PUSH_BYTES))
    wal = events * EVENT_WAL + entries * ENTRY_WAL
    live = entries * load.streams
    traffic = events * EVENT_TRAFFIC + pages * PAGE_TRAFFIC + pushes * PUSH_TRAFFIC + live * LIVE_TRAFFIC
    limits = {
        "disk": (kept + load.users * USER_BYTES) / server.disk,
        "forgetting": load.events / DAY / server.forgotten,
        "write-ahead log": wal / server.wal,
        "processors of the database": in_database / BUSY / server.cores,
    }
    return Plan(
        events=events,
        cores=work / BUSY,
        processes=processes,
        memory=processes * PROCESS_MEMORY + streams * STREAM_MEMORY,
        database_cores=in_database / BUSY,
        disk=kept + load.users * USER_BYTES,
        wal=wal,
        network=8 * traffic,
        streams=streams,
        limits=sorted(limits.items(), key=lambda limit: -limit[1]),
    )


USUAL = Load(1, 1)
"""What is usual for all that is not given."""

SIZES = (
    Load(1_000, 10_000),
    Load(50_000, 500_000),
    Load(1_000_000, 10_000_000),
    Load(100_000_000, 1_000_000_000, recipients=1),
)
"""From one dealership to a billion notifications a day."""

HEAD = (
    *("users", "events a day", "events/s at the peak", "processes", "memory", "database cores", "databases"),
    *("disk", "write-ahead log", "network", "what runs out first, as a part of one database"),
)


def cells(load: Load, planned: Plan) -> Iterator[str]:
    """Yield the cells of a load's row, under `HEAD`."""
    yield f"{load.users:,}"
    yield f"{load.events:,}, to {load.recipients:g} each"
    yield f"{planned.events:,.1f}"
    yield f"{planned.processes:,}"
    yield amount(planned.memory, "B", 1024)
    yield f"{planned.database_cores:,.1f}"
    yield f"{planned.databases:,}"
    yield amount(planned.disk, "B")
    yield f"{amount(planned.wal, 'B')}/s"
    yield f"{amount(planned.network, 'bit')}/s"
    yield ", ".join(f"{name} {part:.0%}" if part >= 0.01 else f"{name} <1%" for name, part in planned.limits[:3])


def amount(value: float, unit: str, step: int = 1_000) -> str:
    """Return an amount with two digits and its prefix."""
    prefixes = ["", "k", "M", "G", "T", "P"]
    while value >= step and len(prefixes) > 1:
        value /= step
        prefixes.pop(0)
    return f"{value:,.0f} {prefixes[0]}{unit}" if value >= 10 else f"{value:.1f} {prefixes[0]}{unit}"


def table(loads: Sequence[Load]) -> str:
    """Return the table as Markdown."""
    rows = [HEAD, tuple("---" for _ in HEAD), *(tuple(cells(load, plan(load))) for load in loads)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Print the table of the given load, or of four sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, help="users with an inbox")
    parser.add_argument("--events", type=int, help="events a day")
    parser.add_argument(
        "--recipients", type=float, default=USUAL.recipients, help="recipients of an event (default: 2)"
    )
    parser.add_argument("--days", type=int, default=USUAL.days, help="days that notifications are kept (default: 30)")
    given = parser.parse_args()
    if (given.users is None) != (given.events is None):
        parser.error("--users and --events belong together")
    if given.users is None:
        print(table(SIZES))
    elif not all(0 < number < math.inf for number in (given.users, given.events, given.recipients, given.days)):
        parser.error("all numbers must be above zero, and finite")
    else:
        print(table([Load(given.users, given.events, given.recipients, given.days)]))


if __name__ == "__main__":
    main()
