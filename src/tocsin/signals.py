"""Signals: SIGINT and SIGTERM end the process, SIGHUP reloads keys."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence

import structlog

from tocsin.api.state import AppState
from tocsin.auth import from_settings
from tocsin.errors import Refusal
from tocsin.push.apps import reload_keys
from tocsin.push.dispatcher import Dispatcher
from tocsin.push.lanes import Lane
from tocsin.settings import Settings

log = structlog.get_logger(__name__)

Pushing = tuple[Sequence[Lane], Dispatcher | None]
"""The lanes of a cell, and what sends by them."""


@contextlib.contextmanager
def reloading_keys(settings: Settings, pushing: Sequence[Pushing], app_state: AppState | None = None) -> Iterator[None]:
    """Reload all keys on SIGHUP. Errors are logged, and the previous keys stay in use. `pushing` may change.

    If the SIGHUP was sent because the terminal was closed, the process ends.
    """
    loop, at_a_terminal = asyncio.get_running_loop(), os.isatty(0)
    renewing: set[asyncio.Task[None]] = set()

    def read_lanes(lanes: Sequence[Lane]) -> Callable[[], object]:
        return lambda: reload_keys(lanes, settings)

    async def renew() -> None:
        known = list(pushing)
        reads = [read_lanes(lanes) for lanes, _ in known]
        if app_state:
            reads.append(lambda: app_state.verifier.take(from_settings.keys_of(settings)))
        refused = [refusal for read in reads if (refusal := _refusal_of(read))]
        for refusal in refused:
            log.error("key reload failed; the previous keys stay in use", reason=str(refusal))
        for _, dispatcher in known:
            if dispatcher:
                await dispatcher.keys_reloaded()
        if not refused:
            log.info("keys reloaded")

    def on_signal() -> None:
        if at_a_terminal and not os.isatty(0):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        task = asyncio.create_task(renew())
        renewing.add(task)
        task.add_done_callback(renewing.discard)

    loop.add_signal_handler(signal.SIGHUP, on_signal)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _refusal_of(read: Callable[[], object]) -> Refusal | None:
    try:
        read()
    except Refusal as refusal:
        return refusal
    return None


def survive_signals() -> None:
    """Ignore SIGINT and SIGTERM outside of the HTTP server, which raises them again when it stops."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    _survive_signals_of_others()


def _survive_signals_of_others() -> None:
    """Ignore SIGUSR1 and SIGUSR2, which make other servers reopen their logs: by default they end a process."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)  # unlike SIG_IGN, child processes do not inherit it


def on_signals(stop: Callable[[], object]) -> None:
    """Call `stop` on SIGINT and SIGTERM."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    _survive_signals_of_others()
