"""Deep checks of the database: its rows, its indexes and its pages."""

import io
from collections.abc import AsyncIterator
from typing import Any

from tocsin import invariants
from tocsin.cli.doctor.finding import Finding
from tocsin.db import migrate
from tocsin.db.connections import Connection
from tocsin.db.errors import DRIVER_ERRORS, is_locked, sentence_on
from tocsin.db.statements import queries
from tocsin.errors import Refusal
from tocsin.invariants import Progress, unreported
from tocsin.postgres.backup import Source, stream
from tocsin.postgres.binaries import installed
from tocsin.postgres.supervisor import is_served, url_of
from tocsin.settings import Settings

RESTORE = "restore a backup from before it (docs/operations/troubleshoot.md)"

_SQL = queries("invariants")


async def check_deeply(settings: Settings, *, repair: bool, progress: Progress = unreported) -> AsyncIterator[Finding]:
    """Check all rows, indexes and pages of a database that runs. With `repair`, correct what is derived."""
    try:
        if settings.database_url is None and not is_served(settings.data_dir):
            yield Finding("FAIL", "deep checks", "the embedded PostgreSQL does not run", "start `tocsin serve`")
            return
        url = settings.own_database_url or url_of(settings.data_dir)
        connection = await invariants.open_session(url, may_write=repair)
        try:
            if not await migrate.is_current(connection):
                yield Finding("FAIL", "deep checks", "migrations are pending", "run `tocsin migrate`")
                return
            progress("pages")
            yield await _check_pages(connection, settings, url)
            yield await _check_indexes(connection, progress)
            async for finding in _check_rows(connection, progress, repair=repair):
                yield finding
        finally:
            connection.terminate()
    except DRIVER_ERRORS as error:
        if is_locked(error):
            said = "stopped, because another session locks a table that they read"
            yield Finding("FAIL", "deep checks", said, "end its transaction, and repeat")
            return
        yield Finding("FAIL", "deep checks", sentence_on(error).rstrip("."), "correct the named problem, and repeat")


async def _check_rows(connection: Connection, progress: Progress, *, repair: bool) -> AsyncIterator[Finding]:
    violated = False
    async for violation in invariants.check_rows(connection, progress, repair=repair):
        if violation is None:
            continue
        violated = True
        if violation.name != invariants.DERIVED:
            harmless = violation.name in invariants.HARMLESS
            yield Finding("warn" if harmless else "FAIL", "rows", str(violation), "" if harmless else RESTORE)
        elif repair:
            yield Finding("warn", "rows", str(violation), f"corrected {violation.repaired}")
        else:
            yield Finding("FAIL", "rows", str(violation), "correct them with --repair")
    if not violated:
        yield Finding("ok", "rows", f"{len(invariants.INVARIANTS)} invariants hold")


async def _check_indexes(connection: Connection, progress: Progress) -> Finding:
    found = [violation async for violation in invariants.check_indexes(connection, progress)]
    damaged = [violation for violation in found if violation]
    if damaged:
        said = "; ".join(f"{violation.what}: {violation.found[0]}" for violation in damaged[:3])
        return Finding("FAIL", "indexes", f"{len(damaged)} of {len(found)}: {said}", "run `reindex index concurrently`")
    return Finding("ok", "indexes", f"{len(found)} have the rows of their tables")


async def _check_pages(connection: Connection, settings: Settings, url: str) -> Finding:
    """Read all pages of the embedded PostgreSQL as a backup does; of another, return what it has seen."""
    checksums = await connection.fetchrow(_SQL["checksums"])
    assert checksums is not None  # noqa: S101 - the statement returns one row
    if not checksums["are_on"]:
        return Finding("warn", "pages", "checksums are off: damage goes unnoticed", "turn them on with pg_checksums")
    if settings.database_url is not None:
        if checksums["failures"]:
            return Finding("FAIL", "pages", f"PostgreSQL has read {checksums['failures']} damaged pages", RESTORE)
        return Finding("ok", "pages", "PostgreSQL has read no damaged page")
    try:
        await stream(Source(url, settings.data_dir, installed() / "bin"), _Nowhere())
    except Refusal as refusal:
        return Finding("FAIL", "pages", str(refusal).rstrip("."), RESTORE)
    return Finding("ok", "pages", "every page has the right checksum")


class _Nowhere(io.BytesIO):
    """A file that keeps nothing."""

    def write(self, content: Any) -> int:
        return len(content)
