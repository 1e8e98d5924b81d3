"""Files with secrets: written atomically, flushed to disk, and closed to others."""

import contextlib
import os
import secrets
import stat
from pathlib import Path

import structlog

from tocsin.errors import Refusal

log = structlog.get_logger(__name__)


def keep(path: Path, content: bytes) -> None:
    """Write a secret to a file that only this user can read, unless the file exists. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(opened, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(opened)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)


def claim(path: Path) -> None:
    """Check that no other user can read or replace a secret. Permissions of the group, which volumes set, are removed.

    Raises `Refusal` if the file belongs to another user or others can read it, and `OSError`.
    """
    # Links are not followed: root may read a folder of another user.
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        found = os.fstat(opened)
        if found.st_uid != os.geteuid():
            raise Refusal(
                f"The secret {path} belongs to user {found.st_uid}, who can replace it: delete it to get a new one,"
                f" or, if you know that its content is yours, run `chown {os.geteuid()} {path}`."
            )
        if found.st_mode & stat.S_IRWXO:
            raise Refusal(
                f"The secret {path} is open to others; close it with `chmod 600`, or delete it to get a new one."
            )
        if found.st_mode & stat.S_IRWXG:
            os.fchmod(opened, 0o600)
            log.warning("secret file was open to its group; access removed", file=str(path))
    finally:
        os.close(opened)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def is_open_to_others(mode: int) -> bool:
    """Return whether a file's mode has permissions for others than the owner."""
    return bool(mode & (stat.S_IRWXG | stat.S_IRWXO))
