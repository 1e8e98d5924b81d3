"""The log lines of a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from structlog import DropEvent
from structlog.testing import capture_logs
from structlog.typing import EventDict, WrappedLogger

_IS_OWN: ContextVar[bool] = ContextVar("is_own", default=False)


@contextmanager
def own_logs() -> Iterator[list[EventDict]]:
    """Capture what this task and those that it starts log, but not the lines of a service that tests share."""
    token = _IS_OWN.set(True)
    try:
        with capture_logs([_own]) as lines:
            yield lines
    finally:
        _IS_OWN.reset(token)


def _own(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    if not _IS_OWN.get():
        raise DropEvent
    return line
