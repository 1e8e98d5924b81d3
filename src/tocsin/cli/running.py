"""How commands run: their settings, their log, their event loop and their database."""

import contextlib
import gc
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from tocsin.errors import Refusal

if TYPE_CHECKING:
    from tocsin.db.pool import Database
    from tocsin.pubsub import PubSub
    from tocsin.settings import Settings


_END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""The signals of `docker stop`, of systemd, and of a terminal that is closed."""

_BLOCKED_TIMEOUT = 5.0
"""Seconds after which a signal ends a command that waits for a reader of its output."""


def read_settings() -> "Settings":
    """Return the settings; root becomes the owner of the data folder. Raises `Refusal`."""
    from tocsin import settings
    from tocsin.cli.owner import work_as_owner

    found = settings.read_settings()
    work_as_owner(found)
    return found


def load_settings() -> "Settings":
    """Return the settings, and configure the log by them. Raises `Refusal`."""
    from tocsin import logs
    from tocsin.settings import PREFIX

    # Settings that are refused are logged in the format that the environment names.
    logs.configure("json" if os.environ.get(f"{PREFIX}LOG_FORMAT") == "json" else "console")
    settings = read_settings()
    logs.configure(settings.log_format)
    return settings


def load_cell(name: str | None = None) -> "Settings":
    """Return the settings of one cell, without a name of the default one, as `load_settings` does."""
    settings = load_settings()
    if name is None and settings.cells_file is None:
        return settings
    from tocsin.cells import of_cell

    return of_cell(settings, name)


def cell_hint(cell: str | None) -> str:
    """Return the sentence, after a space, for a command that found nothing in the default of several cells."""
    if cell is None and read_settings().cells_file is not None:
        return " That is about the default cell: name another one by --cell."
    return ""


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Exclude all objects made in the block, and those before, from garbage collection.

    Each full collection of what a service imports takes as long as a seventh of its start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def run_command(coroutine: Coroutine[Any, Any, None], *, handles_signals: bool = False) -> None:
    """Run a command that uses the database. Raises `Refusal` for an error of the database.

    A signal that ends it cancels it, as Ctrl+C does, unless it handles signals by itself.
    """
    import asyncio

    import uvloop

    ended_by: list[int] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            running = _refusing(coroutine)
            runner.run(running if handles_signals else _until_signal(running, ended_by))
        except asyncio.CancelledError:
            if ended_by:  # here, since the end of the runner waits for threads, which may write to a full pipe
                os.kill(os.getpid(), ended_by[0])
            raise


async def _refusing(coroutine: Coroutine[Any, Any, None]) -> None:
    from tocsin.db.errors import REFUSALS, sentence_on

    try:
        await coroutine
    except REFUSALS as error:
        raise Refusal(sentence_on(error)) from error


async def _until_signal(coroutine: Coroutine[Any, Any, None], ended_by: list[int]) -> None:
    """Run a command, and cancel it at the first signal that would end it; a second one ends it at once."""
    import asyncio

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task  # noqa: S101 - a coroutine runs in one

    def end() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        task.cancel()

    def cancel(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        ended_by.append(number)
        signal.setitimer(signal.ITIMER_REAL, _BLOCKED_TIMEOUT)  # its signal ends a process that is blocked
        loop.call_soon_threadsafe(end)

    handled = [number for number in _END_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]  # not below nohup
    for number in handled:
        signal.signal(number, cancel)
    try:
        await coroutine
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


@contextlib.asynccontextmanager
async def open_database(settings: "Settings", connections: int = 2) -> "AsyncIterator[tuple[Database, PubSub]]":
    """Open the existing database of a service that may be running. Messages are sent at the end of the block."""
    from tocsin.pubsub import PubSub
    from tocsin.store import existing_store, pool

    async with existing_store(settings) as url, pool(url, connections) as database:
        pubsub = PubSub(url, database)
        yield database, pubsub
        await pubsub.close()
