"""Imports and exports from the command line, directly in the database, whether or not a service runs."""

import asyncio
import os
import secrets
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tocsin.audit import actor_of_command
from tocsin.backoff import Backoff
from tocsin.catalogue import Catalogue
from tocsin.cells import connected
from tocsin.cli.terminal import writing
from tocsin.db.errors import sentence_on
from tocsin.db.pool import Database
from tocsin.directory import known_in
from tocsin.errors import Invalid, Problem, Refusal, Unavailable
from tocsin.pubsub import PubSub
from tocsin.settings import Settings
from tocsin.store import START_TIMEOUT, WORKER_CONNECTIONS, existing_store, pool, store
from tocsin.transfer.exports import export
from tocsin.transfer.imports import Import, applied
from tocsin.whereabouts import has_company
from tocsin.worker import Worker

PIECE = 2**16
"""Bytes per read."""

_STORED = "The import is stored, and continues when a worker runs"

Report = Callable[[str], None]


async def import_file(settings: Settings, file: str, report: Report, others: Mapping[str, Settings]) -> dict[str, int]:
    """Import a file (`-`: stdin), report the progress, and return the number of lines of each part.

    Users and teams that `others` have, the other cells by their names, are errors. Raises `Refusal` with all errors, by
    line number, or if one of these cells cannot be asked.
    """
    in_others = partial(_known_in, others) if others else None
    with _opened(file) as source:
        if in_others is not None:
            await in_others([])
        async with (
            store(settings, alone=False, briefly=True, quiet=True) as url,
            pool(url, WORKER_CONNECTIONS) as database,
        ):
            pubsub, catalogue = PubSub(url, database), Catalogue.load(*settings.catalogue_folders)
            incoming = Import(database, pubsub, catalogue, actor_of_command("tocsin import"), in_others)
            await incoming.open()
            try:
                counts = await _checked(incoming, source, "standard input" if file == "-" else file, report)
            except BaseException:
                await incoming.discard()
                raise
            async with _working(Worker(database, catalogue, pubsub)):
                try:
                    await _applied(database, pubsub, incoming, report)
                except asyncio.CancelledError:
                    report(f"{_STORED}, such as that of the next import.")
                    raise
            await pubsub.close()
            return counts


async def export_file(settings: Settings, file: str, company_id: int | None, hint: str = "") -> int:
    """Export to a file that only this user can read (`-`: stdout), and return the number of lines.

    An existing file is replaced when all lines are written, so that a failed export leaves it as it was. Raises
    `Refusal`, with a hint, for a company that has no users and no teams.
    """
    lines = 0
    async with existing_store(settings) as url, pool(url, 1) as database:
        if company_id is not None and not await has_company(database, company_id):
            raise Refusal(f"Company {company_id} has no users and no teams.{hint}")
        with writing(f"The file {file}" if file != "-" else "Standard output"), _replaced(file) as target:
            async for line in export(database, actor_of_command("tocsin export", company_id)):
                target.write(line.encode() + b"\n")
                lines += 1
    return lines


async def _known_in(cells: Mapping[str, Settings], keys: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
    """Return which of these users and teams are in cells. Raises `Refusal` if one of them cannot be asked."""
    found = set[tuple[str, int]]()
    for name, settings in cells.items():
        try:
            async with connected(settings) as connection:
                found |= await known_in(connection, keys)
        except Refusal as error:
            raise Refusal(f"The cell {name} does not say which users and teams it has. {error}") from error
    return found


async def _checked(incoming: Import, source: BinaryIO, name: str, report: Report) -> dict[str, int]:
    reported = 0
    while not incoming.is_cut and (piece := await _piece(source)):
        await incoming.feed(piece)
        if incoming.lines - reported >= 100_000:  # noqa: PLR2004 - lines per report
            reported = incoming.lines
            report(f"checked {reported:,} lines")
    try:
        return await incoming.close()
    except Invalid as invalid:
        raise Refusal(
            "\n".join(
                [
                    f"Nothing was imported from {name}:",
                    *(field_error.message for field_error in invalid.field_errors),
                    *([f"{invalid.more:,} more errors"] if invalid.more else []),
                ]
            )
        ) from None


async def _piece(source: BinaryIO) -> bytes:
    """Return the next bytes of a file. Of a pipe or a terminal, wait for them so that signals end the command."""
    descriptor = source.fileno()
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or os.isatty(descriptor):
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(descriptor)
    return os.read(descriptor, PIECE)


async def _applied(database: Database, pubsub: PubSub, incoming: Import, report: Report) -> None:
    """Report the progress until the import is applied. An outage of the database delays it."""
    reported, away_since, backoff = -1, None, Backoff("import")
    while True:
        try:
            count = await applied(database, pubsub, incoming.id)
        except Unavailable as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > START_TIMEOUT:
                raise Refusal(f"{sentence_on(error)} {_STORED} and the database answers.") from error
            await backoff.pause(error)
            continue
        except Problem:
            raise Refusal(
                f"The import {incoming.id} has failed: its reason is in the table dead_letters. What was applied stays."
            ) from None
        away_since = None
        if count is None:
            return
        if count != reported:
            report(f"applied {count:,} of {incoming.lines:,} lines")
        reported = count


@asynccontextmanager
async def _working(worker: Worker) -> AsyncIterator[None]:
    """Run a worker for the duration of the block, in addition to those of a service."""
    working = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await working


def _opened(file: str) -> BinaryIO:
    """Open a file to read. Of a pipe that has no writer yet, it returns at once."""
    if file == "-":
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    return os.fdopen(_descriptor(file, file, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)


@contextmanager
def _replaced(file: str) -> Iterator[BinaryIO]:
    """Open a draft that replaces the file when the block ends; a pipe or a device is opened itself."""
    if file == "-" or _is_special(file):
        descriptor = os.dup(sys.stdout.fileno()) if file == "-" else _descriptor(file, file, os.O_WRONLY)
        with os.fdopen(descriptor, "wb") as target:
            yield target
        return
    path = Path(os.path.realpath(file))
    draft = path.with_name(f".tocsin-export-{secrets.token_hex(4)}")
    descriptor = _descriptor(str(draft), file, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(descriptor, "wb") as target:
            yield target
            target.flush()
            os.fsync(target.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _is_special(file: str) -> bool:
    with suppress(OSError):
        return not stat.S_ISREG(Path(file).stat().st_mode)
    return False


def _descriptor(path: str, file: str, flags: int) -> int:
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        done = "created" if flags & os.O_CREAT else "opened"
        raise Refusal(f"The file {file} cannot be {done}: {error.strerror}.") from None
