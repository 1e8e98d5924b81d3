"""Files that operators name: read with a limit, and never blocking on a pipe."""

import errno
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from tocsin.errors import Refusal

MAX_BYTES = 2**22
"""Maximum bytes of a file."""


def content_of(path: Path) -> bytes:
    """Return the content of a file. Raises `OSError`, also for pipes, devices and files over `MAX_BYTES`."""
    # Without O_NONBLOCK, a pipe would block until it has a writer.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def setting_file(path: Path, what: str) -> bytes:
    """Return the content of a file that a setting names. Raises `Refusal`, which calls the file `what`."""
    try:
        return content_of(path)
    except OSError as error:
        raise Refusal(f"{what} {path} cannot be read: {error.strerror}.") from None


def setting_tables(path: Path, what: str) -> dict[str, Any]:
    """Return the tables of a TOML file that a setting names. Raises `Refusal`, which calls the file `what`."""
    try:
        return tomllib.loads(setting_file(path, what).decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"{what} {path} is not TOML in UTF-8: {error}.") from None
