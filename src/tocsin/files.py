"""Files that operators name: read with a limit, and never blocking on a pipe."""

import errno
import os
import stat
from pathlib import Path

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
