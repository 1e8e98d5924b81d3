"""Files that hold secrets: put there whole, on disk, and closed to others."""

import contextlib
import os
import secrets
import stat
from pathlib import Path

import structlog

from tocsin.errors import Refusal

log = structlog.get_logger(__name__)


def keep(path: Path, content: bytes) -> None:
    """Put a secret into a file that only we can read, unless somebody else just did. Raises `OSError`."""
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
    """See that nobody else reads or makes a secret of ours; rights of the group, which volumes give, are taken away.

    Raises `Refusal` where it belongs to another user or everybody can read it, and `OSError`.
    """
    # Never through a link: as root we may look into a folder that belongs to somebody else.
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        found = os.fstat(opened)
        if found.st_uid != os.geteuid():
            raise Refusal(
                f"The secret {path} belongs to user {found.st_uid}, who can replace it; if you know it,"
                f" `chown {os.geteuid()} {path}`, else delete it to get a new one."
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


def sync(folder: Path) -> None:
    """See that the names in a folder are on disk."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def is_open_to_others(mode: int) -> bool:
    """Tell by a file's mode whether anybody but its owner may do anything with it."""
    return bool(mode & (stat.S_IRWXG | stat.S_IRWXO))
