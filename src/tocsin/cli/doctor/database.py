"""Checks of the database: the server, its durability, the schema and what waits in it."""

import time
from collections.abc import AsyncIterator, Iterable, Iterator

from tocsin import archiving, jobs, readiness
from tocsin.cell_leases import processes_of
from tocsin.cli.doctor.finding import Finding
from tocsin.db import migrate
from tocsin.db.connections import Connection, connect
from tocsin.db.errors import DRIVER_ERRORS, first_line, is_locked, sentence_on, url_named_by
from tocsin.db.poolers import refuse_shared_sessions
from tocsin.db.statements import queries
from tocsin.db.url import check_files, in_schema, place_of
from tocsin.errors import Refusal, Unavailable
from tocsin.partitioning import unfinished
from tocsin.postgres.supervisor import is_served, url_of
from tocsin.push import deliveries
from tocsin.replica import PROMOTED
from tocsin.settings import PREFIX, Settings

MAX_CLOCK_SKEW = 2.0
"""Maximum difference in seconds between the clocks of the database and of this machine."""

LOCK_TIMEOUT = 1.0
"""Seconds that a check waits for a lock, which a healthy service holds for milliseconds."""

_SQL = queries("doctor")


async def check_database(settings: Settings) -> AsyncIterator[Finding]:
    """Check the server, its durability and clock, the schema, the queue, the workers and the lanes."""
    url_named_by.set(settings.url_setting)
    place = place_of(settings.database_url.get_secret_value()) if settings.database_url else "the embedded PostgreSQL"
    try:
        if settings.database_url is None and not is_served(settings.data_dir):
            yield Finding("warn", "database", "the embedded PostgreSQL does not run", "start `tocsin serve`")
            return
        url = settings.own_database_url or url_of(settings.data_dir)
        check_files(url)
        await refuse_shared_sessions(url)
        connection = await connect(url, 10)
    except (*DRIVER_ERRORS, ValueError, Refusal) as error:
        yield _trouble(place, error)
        return
    try:
        await connection.fetch(_SQL["wait_for_locks"], str(round(LOCK_TIMEOUT * 1000)))
        async for finding in _server(connection, settings, place):
            yield finding
        async for finding in _locks(connection):
            yield finding
        async for finding in _archive(connection, settings):
            yield finding
        for what, check in (("schema", _schema), ("queue", _queue), ("workers", _workers), ("lanes", _lanes)):
            async for finding in _unless_locked(what, check(connection)):
                yield finding
    except (*DRIVER_ERRORS, Refusal) as error:
        yield _trouble(place, error)
    finally:
        connection.terminate()


def _trouble(place: str, error: BaseException) -> Finding:
    sentence = str(error) if isinstance(error, Refusal) else sentence_on(error)
    said, _, remedy = sentence.rstrip(".").partition("; ")
    return Finding("FAIL", "database", f"{place}: {said}", remedy)


async def _unless_locked(what: str, findings: AsyncIterator[Finding]) -> AsyncIterator[Finding]:
    """Yield the findings of a check; if it waits for a lock, that it was not done."""
    try:
        async for finding in findings:
            yield finding
    except DRIVER_ERRORS as error:
        if not is_locked(error):
            raise
        yield Finding("warn", what, "not checked, because another session locks a table that it reads")


async def _locks(connection: Connection) -> AsyncIterator[Finding]:
    for held in await readiness.lockers(connection):
        yield Finding("FAIL", "locks", held, "end its transaction, or that process by pg_terminate_backend")


async def _archive(connection: Connection, settings: Settings) -> AsyncIterator[Finding]:
    found = await archiving.state(connection)
    if found and found.problem:
        yield Finding("FAIL", "archive", found.problem, "see the log of PostgreSQL for the reason")
    elif found:
        yield Finding("ok", "archive", f"the log is archived; {found.waiting} segments wait")
    elif settings.database_url is None:
        remedy = f"set {PREFIX}ARCHIVE_DIR for restores to any time (docs/operations/back-up.md)"
        yield Finding("ok", "archive", f"the log is not archived; {remedy}")


async def check_replica(settings: Settings) -> AsyncIterator[Finding]:
    """Check that the replica, if one is set, is a standby with current data. Without it, the primary serves all."""
    if settings.replica_url is None:
        return
    url = in_schema(settings.replica_url.get_secret_value(), settings.database_schema)
    remedy = f"see that it runs and follows the primary, and that {PREFIX}REPLICA_URL leads there"
    try:
        connection = await connect(url, 10)
    except (*DRIVER_ERRORS, ValueError) as error:
        yield Finding("warn", "replica", f"{place_of(url)} cannot be read: {first_line(error)}", remedy)
        return
    try:
        is_standby, is_receiving, behind = await readiness.replay(connection)
        problem = readiness.problem_of_replay(is_standby, is_receiving, behind) if is_standby else PROMOTED
    except DRIVER_ERRORS as error:
        problem = f"it cannot be read: {first_line(error)}"
    finally:
        connection.terminate()
    if problem:
        yield Finding("warn", "replica", f"{place_of(url)}: {problem}", remedy)
    else:
        yield Finding("ok", "replica", f"{place_of(url)} follows the primary")


async def _lanes(connection: Connection) -> AsyncIterator[Finding]:
    if not await migrate.is_current(connection):
        return
    for lane, what in await readiness.stopped_lanes(connection):
        yield Finding("FAIL", f"push {lane}", what, "correct its key, its settings or the clock")
    for service in await deliveries.refusing(connection):
        said = f"{service['origin']} has refused authentication since {service['refused_at']:%Y-%m-%d %H:%M:%S} UTC"
        remedy = f"check {PREFIX}VAPID_SUBJECT, {PREFIX}VAPID_KEY_FILE and the clock"
        yield Finding("FAIL", f"push {service['lane']}", f"{said}: {service['reason']}", remedy)


async def _server(connection: Connection, settings: Settings, place: str) -> AsyncIterator[Finding]:
    before = time.time()
    server = await connection.fetchrow(_SQL["server"])
    ours = (before + time.time()) / 2
    assert server is not None  # noqa: S101 - the statement returns one row
    version, off = server["version"], set(server["off"])
    if version < migrate.OLDEST_SERVER:
        remedy = f"use {migrate.OLDEST_SERVER} or newer"
        yield Finding("FAIL", "database", f"PostgreSQL {version} is too old", remedy)
    else:
        look = _reads if settings.read_only else _writes
        yield await look(connection, f"PostgreSQL {version} answers", place)
    if server["encoding"] == "UTF8":
        yield Finding("ok", "encoding", "UTF8")
    else:
        yield Finding(
            "FAIL",
            "encoding",
            f"{server['encoding']} cannot store all text",
            "create a database with the encoding UTF8",
        )
    for finding in _durability(off, accepted=settings.database_durable == "yes"):
        yield finding
    skew = server["clock"] - ours
    if abs(skew) > MAX_CLOCK_SKEW:
        yield Finding(
            "warn", "clock", f"the database's clock differs by {skew:+.1f} s", "synchronize both clocks with NTP"
        )
    else:
        yield Finding("ok", "clock", "the database's clock agrees with this machine's")


async def _reads(connection: Connection, answers: str, place: str) -> Finding:
    """Look whether a read-only server has current data. Its database may be a primary."""
    is_standby, is_receiving, behind = await readiness.replay(connection)
    if problem := readiness.problem_of_replay(is_standby, is_receiving, behind):
        return Finding("warn", "database", f"{answers}, but {problem}: {place}", "see the log of the standby")
    state = "is a standby" if is_standby else "is no standby"
    return Finding("ok", "database", f"{answers} and {state}, for a read-only server: {place}")


async def _writes(connection: Connection, answers: str, place: str) -> Finding:
    """Write to the disk of the database and to its log, and roll back."""
    try:
        await readiness.refuse_read_only(connection)
    except (*DRIVER_ERRORS, Unavailable) as error:
        reason = error.reason if isinstance(error, Unavailable) else first_line(error)
        remedy = {
            readiness.STANDBY: f"connect to the primary, or set {PREFIX}READ_ONLY=yes for a read-only server",
            readiness.READ_ONLY: "grant write access to its role",
            readiness.UNCONFIRMED: "start one again, or take it out of synchronous_standby_names",
        }.get(reason, "correct the named problem")
        return Finding("FAIL", "database", f"it accepts no writes: {reason}", remedy)
    return Finding("ok", "database", f"{answers} and accepts writes: {place}")


def _durability(off: Iterable[str], *, accepted: bool) -> Iterator[Finding]:
    lossy = [name for name in ("synchronous_commit",) if name in off]
    risky = [name for name in ("fsync", "full_page_writes") if name in off]
    if lossy or (risky and not accepted):
        names = " and ".join([*risky, *lossy])
        yield Finding("FAIL", "durability", f"{names} off: a crash may lose accepted events", "turn them on")
    elif risky:
        yield Finding("ok", "durability", f"{' and '.join(risky)} off, which {PREFIX}DATABASE_DURABLE=yes accepts")
    else:
        yield Finding("ok", "durability", "fsync, full_page_writes and synchronous_commit are on")


async def _schema(connection: Connection) -> AsyncIterator[Finding]:
    missing = await migrate.missing(connection)
    if len(missing) == len(migrate.steps()):
        yield Finding(
            "ok", "schema", "it does not exist yet", "the first `tocsin serve` or `tocsin migrate` creates it"
        )
        return
    if missing:
        yield Finding("FAIL", "schema", f"{len(missing)} migrations are pending", "run `tocsin migrate`")
        return
    yield Finding("ok", "schema", "it has every migration of this release")
    if begun := await unfinished(connection):
        said = f"`tocsin partition` has not ended, and each write to {', '.join(begun)} is done twice"
        yield Finding("warn", "partitions", said, "run it again, or with --abandon")


async def _queue(connection: Connection) -> AsyncIterator[Finding]:
    if not await migrate.is_current(connection):
        return
    if dead := await connection.fetchval(_SQL["dead_letters"]):
        remedy = "their reasons are in the table tocsin.dead_letters"
        yield Finding("warn", "dead letters", f"{dead}{' or more' if dead == 1000 else ''} failed", remedy)  # noqa: PLR2004 - the statement's limit
    else:
        yield Finding("ok", "dead letters", "none")
    waited = {row["queue"]: row["waited"] for row in await connection.fetch(_SQL["queues"])}
    late = {queue: seconds for queue, seconds in waited.items() if seconds > jobs.LATE[queue]}
    shown = late or waited
    said = ", ".join(f"the oldest {queue} job has waited {seconds:.0f} s" for queue, seconds in shown.items())
    if not late:
        yield Finding("ok", "queue", said)
    elif await readiness.running(connection):
        yield Finding("warn", "queue", said, "run more `tocsin worker` processes")
    else:
        yield Finding("FAIL", "queue", said, "start `tocsin worker`")


async def _workers(connection: Connection) -> AsyncIterator[Finding]:
    if not await migrate.is_current(connection):
        return
    if alive := await readiness.running(connection):
        sharing = await processes_of(connection)
        processes = f"; {sharing} worker processes divide the cells among themselves" if sharing else ""
        yield Finding("ok", "workers", f"{alive} running{processes}")
    else:
        yield Finding("warn", "workers", "no worker is running", "start `tocsin serve` or `tocsin worker`")
    for name, problem in await readiness.problems(connection):
        yield Finding("FAIL", f"worker {name}", f"it is blocked: {problem}", "correct the named problem; see its log")
