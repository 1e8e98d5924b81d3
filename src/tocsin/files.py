"""Files that operators name: read whole, within a bound, and without waiting for what is no file."""

import errno
import os
import stat
from pathlib import Path

MAX_BYTES = 2**22
"""Bytes of the largest file."""


def content_of(path: Path) -> bytes:
    """Return what a file holds. Raises `OSError`, for pipes, devices and what is larger than `MAX_BYTES` as well."""
    # A pipe would keep us waiting for whoever writes.
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
