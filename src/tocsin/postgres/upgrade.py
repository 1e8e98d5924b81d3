"""Upgrades of a data folder to the major version of PostgreSQL of this release, by pg_upgrade.

The files are copied into a draft, so that the old database stays as it is. It is put aside when the copy is complete,
and put back if the upgraded server does not start, or if the upgrade is interrupted before that.
"""

import asyncio
import contextlib
import os
import pwd
import re
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from tocsin.errors import Refusal
from tocsin.postgres.binaries import make_draft, programs_for
from tocsin.postgres.data_dir import (
    BEFORE_UPGRADE,
    BUNDLED,
    MAJOR,
    NAME,
    claim,
    major_of,
    own,
    refuse_missing,
    write_configuration,
)
from tocsin.postgres.process import end, end_leftovers, last_words, run
from tocsin.postgres.supervisor import launch
from tocsin.secret_files import sync

OLD_PORT, NEW_PORT = 5434, 5435
"""The numbers of the sockets of both servers: others that use the data folder do not find them."""

SPARE_BYTES = 512 * 2**20
"""Free bytes that an upgrade needs beside the size of the database."""

_CHECKSUMS = re.compile(r"^Data page checksum version: +(\d+)$", re.MULTILINE)
_STATE = re.compile(r"^Database cluster state: +(.*)$", re.MULTILINE)

log = structlog.get_logger(__name__)


async def upgrade(folder: Path, confirm: Callable[[str], Awaitable[None]]) -> Path:
    """Upgrade the database of a data folder; return the folder of the old one, which is kept.

    `confirm` is called with the url of the upgraded server before the old database is given up. Raises `Refusal` if any
    step fails; the old database is in its place then.
    """
    user, lock = await claim(folder, to_upgrade=True)
    try:
        database = folder / "postgres"
        major = _refuse_what_cannot_be_upgraded(database)
        kept = folder / f"postgres.{major}"
        old, new = await programs_for(user, folder, major), await programs_for(user, folder)
        await _end_cleanly(old, database, folder, user)
        draft = await _upgraded(old, new, database, folder, user)
        try:
            _put_in_place(draft, database, folder)
            await _start(new, database, folder, user, confirm)
            (folder / BEFORE_UPGRADE).rename(kept)
            sync(folder)
        except BaseException:
            _put_back(database, folder)
            raise
        return kept
    finally:
        os.close(lock)


def _refuse_what_cannot_be_upgraded(database: Path) -> str:
    refuse_missing(database.parent)
    major = major_of(database)
    if major == MAJOR:
        raise Refusal(f"The database in {database.parent} is of PostgreSQL {MAJOR} already.")
    if major not in BUNDLED:
        raise Refusal(f"The database in {database} was made by PostgreSQL {major}: use a Tocsin that has both.")
    if (database.parent / f"postgres.{major}").exists():
        raise Refusal(f"There is a kept database of PostgreSQL {major} already: delete {database}.{major} first.")
    size = sum(path.stat().st_size for path in database.rglob("*") if path.is_file())
    free, needed = shutil.disk_usage(database).free, size + SPARE_BYTES
    if free < needed:
        raise Refusal(
            f"The disk of {database} has {free // 2**20} MiB free, and the upgrade needs {needed // 2**20} MiB: free"
            " space."
        )
    return major


async def _end_cleanly(programs: Path, database: Path, folder: Path, user: pwd.struct_passwd) -> None:
    """Recover the old database if its server was killed: pg_upgrade needs one that has ended."""
    await end_leftovers(database)
    (database / "postmaster.pid").unlink(missing_ok=True)
    own(folder / "run", user)
    own(folder / "log", user)
    _admit(database, user)
    if _STATE.findall(await _control_data(programs, database, user)) != ["shut down"]:
        launched = await launch(programs, folder, database, user, port=OLD_PORT)
        try:
            await launched.answers()
        finally:
            await end(launched.process)


def _admit(database: Path, user: pwd.struct_passwd) -> None:
    """Let the server's user connect too: pg_upgrade runs as that user. Each start writes this file again."""
    names = database / "pg_ident.conf"
    line = f'{NAME} "{user.pw_name}" {NAME}\n'
    text = names.read_text("utf-8")
    if line not in text:
        names.write_text(text + line, "utf-8")


async def _control_data(programs: Path, database: Path, user: pwd.struct_passwd) -> str:
    status, output = await run((programs / "pg_controldata", "-D", database), user)
    if status:
        raise Refusal(f"The database in {database} cannot be read: {last_words(output)}.")
    return output


async def _upgraded(old: Path, new: Path, database: Path, folder: Path, user: pwd.struct_passwd) -> Path:
    """Return a draft with the upgraded copy of the database."""
    checksums = _CHECKSUMS.findall(await _control_data(old, database, user)) != ["0"]
    draft = await make_draft(new, folder, user, *([] if checksums else ["--no-data-checksums"]))
    work = draft.with_name(f"{draft.name}-work")
    own(work, user)
    try:
        write_configuration(folder, user, None, draft)
        _admit(draft, user)
        ports = ("--old-port", str(OLD_PORT), "--new-port", str(NEW_PORT), "--socketdir", folder / "run")
        folders = ("--old-bindir", old, "--new-bindir", new, "--old-datadir", database, "--new-datadir", draft)
        await _pg_upgrade((new / "pg_upgrade", "--username", NAME, *ports, *folders), work, user)
    except BaseException:
        await end_leftovers(draft)
        await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)
        raise
    finally:
        await end_leftovers(database)
        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
    return draft


async def _pg_upgrade(command: Sequence[str | Path], work: Path, user: pwd.struct_passwd) -> None:
    """Run pg_upgrade in a folder that it writes into."""
    status, output = await run(("/bin/sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", work, *command), user)
    if status:
        raise Refusal(f"The upgrade failed, and the old database is as before: {last_words(output)}.")
    log.info("upgraded a copy of the database", to=MAJOR)


def _put_in_place(draft: Path, database: Path, folder: Path) -> None:
    database.rename(folder / BEFORE_UPGRADE)
    draft.rename(database)
    sync(folder)


def _put_back(database: Path, folder: Path) -> None:
    before = folder / BEFORE_UPGRADE
    if before.exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(database)
        before.rename(database)
        sync(folder)


async def _start(
    programs: Path, database: Path, folder: Path, user: pwd.struct_passwd, confirm: Callable[[str], Awaitable[None]]
) -> None:
    """Start the upgraded server once, and end it cleanly."""
    write_configuration(folder, user)
    launched = await launch(programs, folder, database, user, port=NEW_PORT)
    try:
        await launched.answers()
        await confirm(launched.url)
    finally:
        await end(launched.process)
