"""`tocsin serve --processes N`: the first process starts the database, and starts the others.

It restarts those that end, and kills those that do not get ready, or no longer answer.

The others share a port: the kernel gives each connection to one of them.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from tocsin.background import in_background
from tocsin.cells import of_cell
from tocsin.errors import Refusal
from tocsin.retry_delay import growing
from tocsin.settings import Settings
from tocsin.siblings import START, Key, Link, Samples, decoded, encoded
from tocsin.sockets import bound, port_of, url_of
from tocsin.store import store

FIRST_DELAY, MAX_DELAY = 0.5, 30.0
"""Seconds before a process that ended is restarted; each further delay is twice as long, up to a maximum."""

STEADY = 60.0
"""Seconds after which a process that ended is restarted after the first delay again."""

CHECK_INTERVAL = 5.0
"""Seconds between two checks that a process still answers."""

SILENT_CHECKS = 12
"""Unanswered checks, a minute, after which a process is killed: the kernel continues to give it connections. A busy
process answers in milliseconds, and one that waits for a processor in seconds. Checks are counted instead of seconds,
since a machine that was suspended stopped this process, too."""

STARTING_CHECKS = 24
"""Checks, two minutes, after which a process that is not ready is killed. One without a database ends itself before."""

COLLECT_TIMEOUT = 2.0
"""Seconds for which a process may take to send its metrics; otherwise those that it sent last are shown."""

log = structlog.get_logger(__name__)


async def serve(settings: Settings, count: int, arguments: Iterable[str], cell: str | None = None) -> None:
    """Run the service with so many processes until a signal, for one cell or all. Raises `Refusal` if it cannot start.

    `arguments` are further ones of `tocsin serve`.
    """
    async with contextlib.AsyncExitStack() as stack:
        variables = {}
        taken = []
        for setting, port in settings.ports.items():
            with bound(settings.host, port, setting):
                pass  # refused if another service listens there, even if that shares its port too
            # Held for as long as the service runs, also while no process listens.
            taken.append(stack.enter_context(bound(settings.host, port, setting, shared=True)))
            variables[setting] = str(port_of(taken[-1]))
        await stack.enter_async_context(store(of_cell(settings, cell), alone=True, processes=count))
        await Processes(count, (sys.executable, "-m", "tocsin", "serve", *arguments), variables).run(url_of(taken[0]))


class Child:
    """A process that serves, which is restarted when it ends. `silent_checks` have been unanswered.

    `is_stuck`: it did not get ready, and was killed.
    """

    def __init__(self, number: int, command: Iterable[str], variables: Mapping[str, str]) -> None:
        self.number = number
        self.ready = asyncio.Event()
        self.counters: Samples = {}
        self.gauges: Samples = {}
        self.running: tuple[asyncio.subprocess.Process, Link] | None = None
        self.silent_checks = 0
        self.is_stuck = False
        self._command, self._variables = command, variables
        self._sent: asyncio.Future[None] | None = None

    async def start(self) -> tuple[asyncio.subprocess.Process, Link]:
        """Start it. Raises `OSError`."""
        end, its_end = socket.socketpair()
        try:
            with its_end:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    "--sibling",
                    str(its_end.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    env={**os.environ, **self._variables},
                    pass_fds=(its_end.fileno(),),
                    start_new_session=True,  # signals of a terminal reach only the first process, which passes them on
                )
            self.running = process, await Link.of(end)
        except BaseException:
            end.close()
            raise
        return self.running

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        with contextlib.suppress(ProcessLookupError):
            if self.running:
                self.running[0].send_signal(number)

    async def collect(self) -> None:
        """Ask for its metrics, and wait until they are there; not for long."""
        if self.running is None or not self.ready.is_set():
            return
        if self._sent is None:
            self._sent = asyncio.get_running_loop().create_future()
            self.running[1].send(collect=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COLLECT_TIMEOUT):
                await asyncio.shield(self._sent)

    def take(self, samples: list[Any]) -> None:
        """Keep the metrics that it sent."""
        self.counters, self.gauges = map(decoded, samples)

    def collected(self) -> None:
        """Wake those who asked for its metrics."""
        if self._sent is not None:
            self._sent.set_result(None)
            self._sent = None

    def ended(self) -> None:
        """Forget what it had."""
        self.ready.clear()
        self.collected()
        self.gauges, self.counters = {}, {}
        if self.running:
            self.running[1].close()
        self.running = None


class Processes:
    """The processes of a service."""

    def __init__(self, count: int, command: Iterable[str], variables: Mapping[str, str]) -> None:
        self._children = [Child(number, command, variables) for number in range(1, count + 1)]
        self._before: Counter[Key] = Counter()  # what processes had counted when they ended
        self._started = time.time()
        self._stopping = asyncio.Event()
        self._answering: set[asyncio.Task[None]] = set()

    async def run(self, url: str) -> None:
        """Run them until a signal, and log the url. Raises `Refusal` if the first one cannot start, which says why."""
        self._handle_signals()
        first, *others = self._children
        running = [asyncio.create_task(self._keep(first))]
        try:
            if await self._is_ready(first, running[0]):
                running += [asyncio.create_task(self._keep(child)) for child in others]
                for child, task in zip(others, running[1:], strict=True):
                    await self._is_ready(child, task)
                if not self._stopping.is_set():
                    log.info("serving", url=url, processes=len(self._children))
            await asyncio.gather(*running)
        finally:
            self._stop()
            await asyncio.gather(*running, return_exceptions=True)

    async def _is_ready(self, child: Child, task: asyncio.Task[None]) -> bool:
        waiting = asyncio.create_task(child.ready.wait())
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return child.ready.is_set()

    async def _keep(self, child: Child) -> None:
        """Run a process and restart it, until this one ends."""
        loop, failures, was_ready = asyncio.get_running_loop(), 0, False
        while not self._stopping.is_set():
            began = loop.time()
            try:
                status: int | str = await self._run_once(child)
            except OSError as error:  # it cannot be started now
                if not was_ready:
                    raise
                status = str(error)
            was_ready = was_ready or child.ready.is_set()
            self._before.update(child.counters)
            child.ended()
            if self._stopping.is_set():
                return
            if not was_ready and not child.is_stuck:
                raise Refusal("The service did not start; its log says why.")
            failures = 1 if loop.time() - began > STEADY else failures + 1
            log.error("process exited; restarting it", process=child.number, status=status)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(growing(failures, FIRST_DELAY, MAX_DELAY)):
                    await self._stopping.wait()

    async def _run_once(self, child: Child) -> int:
        """Start a process and listen to it until it ends; return its status. Raises `OSError` if it cannot start."""
        process, link = await child.start()
        if self._stopping.is_set():
            child.signal(signal.SIGTERM)
        listening = asyncio.create_task(self._listen(child, link))
        async with in_background(self._check(child, link)):
            status = await process.wait()
        await listening
        return status

    async def _check(self, child: Child, link: Link) -> None:
        """Kill the process if it does not get ready, or no longer answers."""
        child.is_stuck = False
        if not await self._gets_ready(child):
            child.is_stuck = True
            log.error("process did not get ready; killing it", process=child.number)
            child.signal(signal.SIGKILL)
            return
        child.silent_checks = 0
        while child.silent_checks < SILENT_CHECKS:
            child.silent_checks += 1
            link.send(check=True)
            await asyncio.sleep(CHECK_INTERVAL)
        log.error("process does not answer; killing it", process=child.number)
        child.signal(signal.SIGKILL)

    async def _gets_ready(self, child: Child) -> bool:
        for _ in range(STARTING_CHECKS):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL):
                    return await child.ready.wait()
        return False

    async def _listen(self, child: Child, link: Link) -> None:
        while message := await link.receive():
            child.silent_checks = 0
            if "ready" in message:
                child.ready.set()
            elif "samples" in message:
                child.take(message["samples"])
                child.collected()
            elif "ask" in message:
                child.take(message["ask"])
                task = asyncio.create_task(self._answer(child, link))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)

    async def _answer(self, asking: Child, link: Link) -> None:
        """Send the sums of the samples of all processes but the one that asks, which has its own."""
        others = [child for child in self._children if child is not asking]
        await asyncio.gather(*(child.collect() for child in others))
        total = Counter({**self._before, START: self._started})
        for child in others:
            for samples in (child.counters, child.gauges):
                total.update(samples)
        link.send(sum=encoded(total))

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        at_a_terminal = os.isatty(0)

        def reload() -> None:
            if at_a_terminal and not os.isatty(0):
                self._stop()
            for child in self._children:
                child.signal(signal.SIGHUP)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, reload)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, lambda: None)

    def _stop(self) -> None:
        """End all processes; the second time, at once."""
        number = signal.SIGKILL if self._stopping.is_set() else signal.SIGTERM
        self._stopping.set()
        for child in self._children:
            child.signal(number)
