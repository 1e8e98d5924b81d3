"""Folders for test servers."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_path() -> Iterator[Path]:
    """Make a folder whose path is short enough for a socket, and that a server's user can pass through."""
    path = Path(tempfile.mkdtemp(prefix="tocsin-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)
