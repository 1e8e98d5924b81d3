"""The worker: claims jobs from the queues and calls the modules that own the work."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from uuid import UUID

import structlog

from tocsin import directory, fanout, jobs, resolutions
from tocsin.backoff import Backoff
from tocsin.catalogue import Catalogue
from tocsin.db import planner_statistics
from tocsin.db.admission import HEARTBEAT, KIND
from tocsin.db.pool import Database
from tocsin.errors import Locked
from tocsin.fanout import Pushes, Undeliverable
from tocsin.ids import new_id
from tocsin.isolation import LAST_LOCK_TIMEOUT, LOCKED_DELAY, LockConflicts, do_in_parts, lock_timeout
from tocsin.jobs import Job, Lost, Queue
from tocsin.metrics import Metrics
from tocsin.posts import Posts
from tocsin.pubsub import POLL, PubSub, wait
from tocsin.push.dispatcher import Dispatcher
from tocsin.transfer import imports
from tocsin.turns import Turns

BATCH: dict[Queue, int] = {"direct": 200, "bulk": 1}
"""Maximum jobs per claim. One chunk of a bulk event is as much work as a batch of direct events."""

LATE_CHECK_INTERVAL = 60.0
"""Seconds between two checks for jobs that wait too long."""

HANGING_CHECK_INTERVAL = 30.0
"""Seconds between two checks for sessions of processes that hang, which the server itself does not end."""

PERMIT_INTERVAL = 30.0
"""Seconds between two counts of the events that may be posted."""

SWEEP_INTERVAL = 15.0
"""Seconds between two releases of jobs that this worker leased and does not process."""

GATHER_TIME = 0.003
"""Seconds to wait for more jobs under load, because a batch costs little more than one job."""

log = structlog.get_logger(__name__)

Task = Callable[[Sequence[Job]], Awaitable[None]]


class Worker:
    """Processes both queues until it is stopped. Any number of workers can share a database.

    The bulk queue uses the pool `bulk`, if given. If `dispatcher` is set, it pushes what the worker delivers.
    """

    def __init__(
        self,
        database: Database,
        catalogue: Catalogue,
        pubsub: PubSub,
        bulk: Database | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.id = new_id()
        self._database = database
        self._databases: dict[Queue, Database] = {"direct": database, "bulk": bulk or database}
        self._conflicts: dict[Queue, LockConflicts] = {queue: LockConflicts() for queue in BATCH}
        self._catalogue = catalogue
        self._pubsub = pubsub
        self.dispatcher: Dispatcher | None = None
        self.posts: Posts | None = None
        self._metrics = metrics or Metrics()
        self._stopping = asyncio.Event()
        self._backoffs: list[Backoff] = []
        self._witness = jobs.Witness()
        self._turns = Turns()
        self._checked_at = -LATE_CHECK_INTERVAL
        self._ended_at = time.monotonic()
        self._permitted_at = -PERMIT_INTERVAL
        self._tasks: dict[str, Task] = {
            "deliver": self._deliver,
            "erase": self._erase,
            "resolve": self._resolve,
            "import": self._import,
            "post": self._post,
        }

    async def run(self) -> None:
        """Process jobs until `stop`, and finish those in progress."""
        self._pubsub.handle_locally(*BATCH)
        await self._backoff("enrolment").until_done(self._enrol)
        beside = {
            HEARTBEAT: self._beat,
            "expired leases": self._reap,
            "late jobs": self._note_late,
            "sessions that hang": self._end_hanging,
            "planner statistics": self._correct_statistics,
            "posted events": self._permit_posts,
        }
        pulse = [asyncio.create_task(self._repeat(name, step)) for name, step in beside.items()]
        try:
            sending = [self.dispatcher.run()] if self.dispatcher else []
            await asyncio.gather(*(self._work(queue) for queue in BATCH), *sending)
        finally:
            self._pubsub.handle_remotely(*BATCH)
            for task in pulse:
                task.cancel()
            await asyncio.gather(*pulse, return_exceptions=True)
            with contextlib.suppress(Exception), lock_timeout(LAST_LOCK_TIMEOUT):  # its leases expire
                await jobs.leave(self._database, self.id)

    def stop(self) -> None:
        """Claim no more jobs."""
        self._stopping.set()
        if self.dispatcher:
            self.dispatcher.stop()
        for queue in BATCH:
            self._pubsub.publish(queue)

    async def _work(self, queue: Queue) -> None:
        KIND.set(f"{queue} queue")
        backoff, swept_at = self._backoff(f"{queue} queue"), time.monotonic()

        async def release() -> None:
            await jobs.release(self._databases[queue], self.id, queue)

        while not self._stopping.is_set():
            wakeup = self._pubsub.listen_for(queue)
            try:
                if time.monotonic() - swept_at > SWEEP_INTERVAL:
                    swept_at = time.monotonic()
                    await release()
                leased = await self._claim(queue)
                if leased:
                    await self._do(leased, backoff)
                else:
                    await wait(wakeup, await jobs.until_due(self._databases[queue], queue, POLL))
                backoff.succeeded(self._conflicts[queue].reason)
            except Exception as error:  # noqa: BLE001 - no error may end the loop
                await backoff.recover(error, release)
            else:
                if len(leased) > 1:
                    await asyncio.sleep(GATHER_TIME)

    async def _claim(self, queue: Queue) -> list[Job]:
        database = self._databases[queue]
        if queue == "bulk":
            return await self._turns.claim(database, self.id)
        return await jobs.claim(database, self.id, queue, BATCH[queue])

    async def _do(self, leased: Sequence[Job], backoff: Backoff) -> None:
        for task, batch in _by_task(leased).items():
            await self._do_together(task, batch, backoff)

    async def _do_together(self, task: str, batch: Sequence[Job], backoff: Backoff) -> None:
        """Process a batch at once; if that fails, in halves, so that no job delays the others."""
        waiting: deque[Sequence[Job]] = deque([batch])

        async def do(part: Sequence[Job]) -> None:
            await self._tasks[task](part)
            self._metrics.job(task, "done", len(part))

        async def failed(job: Job, error: Exception) -> None:
            if isinstance(error, Locked):
                backoff.note(error)
                _take_out(waiting, await self._hand_back(job))
            else:
                await self._give_up(job, error)

        queue = batch[0].queue
        locked_among = self._behind_locks if (task, queue) == ("deliver", "direct") else None
        await do_in_parts(waiting, do, failed, self._conflicts[queue], locked_among)

    async def _behind_locks(self, part: Sequence[Job]) -> Sequence[Job]:
        return await fanout.behind_locks(self._databases["direct"], part)

    async def _hand_back(self, job: Job) -> set[UUID]:
        """Return a job that waits for a lock, and those after it in its batch, to the queue; return their ids."""
        self._metrics.job(job.task, "put off")
        return await jobs.hand_back_behind_lock(self._databases[job.queue], self.id, job, LOCKED_DELAY)

    async def _deliver(self, batch: Sequence[Job]) -> None:
        pushes = Pushes(self.dispatcher.lanes, lambda: self._pubsub.publish("push")) if self.dispatcher else None
        done = await fanout.deliver(self._databases[batch[0].queue], self._catalogue, self.id, batch, pushes)
        self._pubsub.publish_changes(done.user_ids)
        if batch[0].queue == "bulk":
            self._turns.served(len(done.user_ids))
        if len(done.events) < len(batch):
            self._pubsub.publish("bulk")
        if done.events:
            self._note(batch, done.events)
            self._pubsub.publish("settled")
        if batch[0].queue == "bulk" and any(job.batch for job in batch):
            self._pubsub.publish("direct")  # for the jobs after it in its batch

    def _note(self, batch: Sequence[Job], done: Collection[UUID]) -> None:
        now, ended = datetime.now(UTC), set(done)
        for job in batch:
            if job.id in ended:
                self._metrics.inbox((now - job.wanted_at).total_seconds())

    async def _erase(self, batch: Sequence[Job]) -> None:
        for job in batch:
            await directory.finish_erasure(self._databases[job.queue], self.id, job)

    async def _resolve(self, batch: Sequence[Job]) -> None:
        for job in batch:
            self._pubsub.publish_changes(
                await resolutions.settle(self._databases[job.queue], self._catalogue, self.id, job)
            )
        self._pubsub.publish("bulk")

    async def _import(self, batch: Sequence[Job]) -> None:
        for job in batch:
            await imports.apply(self._databases[job.queue], self.id, job)
        self._pubsub.publish("settled")

    async def _post(self, batch: Sequence[Job]) -> None:
        if self.posts is None:
            raise Undeliverable("this worker accepts no posted events")
        await self.posts.accept(self.id, batch)

    async def _permit_posts(self) -> None:
        if self.posts and time.monotonic() - self._permitted_at > PERMIT_INTERVAL:
            await self.posts.permit()
            self._permitted_at = time.monotonic()

    async def _give_up(self, job: Job, error: Exception) -> None:
        reason = str(error).partition("\n")[0][:500]  # further lines of PostgreSQL contain values
        line = log.bind(
            job=str(job.id), task=job.task, attempts=job.attempts, error=type(error).__name__, reason=reason
        )
        if isinstance(error, Lost):
            await self._note_loss(job)
        elif isinstance(error, Undeliverable | imports.Inapplicable):
            await jobs.move_to_dead_letters(self._database, self.id, job.id, reason)
            self._metrics.job(job.task, "dead")
            line.error("job moved to dead letters")
        elif await jobs.fail(self._database, self.id, job, f"{type(error).__name__}: {reason}"):
            self._metrics.job(job.task, "dead")
            line.error("job moved to dead letters", exc_info=error)
        else:
            self._metrics.job(job.task, "put off")
            line.warning("job failed; it will be retried", exc_info=error)

    async def _note_loss(self, job: Job) -> None:
        """Log whether a job was cancelled while it ran, or another worker has its lease."""
        if await jobs.is_there(self._database, job.id):
            log.warning("job lease lost to another worker", job=str(job.id), task=job.task, attempts=job.attempts)
            self._metrics.job(job.task, "lost")
        else:
            log.info("job cancelled while running", job=str(job.id), task=job.task)
            self._metrics.job(job.task, "cancelled")

    async def _enrol(self) -> None:
        lanes = self.dispatcher.lanes if self.dispatcher else ()
        self._witness.beat(await jobs.enrol(self._database, self.id, jobs.process_name(), lanes))

    async def _beat(self) -> None:
        """Send a heartbeat. Nothing else is done here, because it could delay the next one."""
        if seen_at := await jobs.beat(self._database, self.id, self._problem()):
            self._witness.beat(seen_at)
        else:
            log.warning("worker missed its heartbeats; its leases were released", worker=str(self.id))
            await self._enrol()

    async def _repeat(self, name: str, step: Callable[[], Awaitable[object]]) -> None:
        """Repeat a step every few seconds, also after errors."""
        KIND.set(name)
        await self._backoff(name).repeat(step, jobs.HEARTBEAT_INTERVAL)

    async def _reap(self) -> None:
        if silent_since := self._witness.silent_since:
            await jobs.reap(self._database, silent_since)

    async def _correct_statistics(self) -> None:
        await planner_statistics.correct(self._database)

    async def _note_late(self) -> None:
        if time.monotonic() - self._checked_at < LATE_CHECK_INTERVAL:
            return
        self._checked_at = time.monotonic()
        for queue, (_, age) in (await jobs.depth(self._database, 1)).items():
            if age > jobs.LATE[queue]:
                log.warning("jobs wait too long", queue=queue, oldest_seconds=round(age), problem=self._problem())

    async def _end_hanging(self) -> None:
        if time.monotonic() - self._ended_at < HANGING_CHECK_INTERVAL:
            return
        self._ended_at = time.monotonic()
        if ended := await jobs.end_hanging(self._database):
            log.warning("ended sessions of processes that hang", count=ended)

    def _problem(self) -> str | None:
        """Return which work of this worker fails, and why, for the readiness check of other processes."""
        failing = [*self._backoffs, *(self.dispatcher.backoffs if self.dispatcher else [])]
        said = (f"{each.name}: {each.reason.replace(';', ',')}" for each in failing if each.reason)
        delayed = [f"messages: {self._pubsub.problem}"] if self._pubsub.problem else []
        return "; ".join([*said, *delayed])[:1000] or None

    def _backoff(self, name: str) -> Backoff:
        backoff = Backoff(name, self._stopping, self._metrics.failure)
        self._backoffs.append(backoff)
        return backoff


def _take_out(waiting: deque[Sequence[Job]], ids: Collection[UUID]) -> None:
    left = [[job for job in part if job.id not in ids] for part in waiting]
    waiting.clear()
    waiting.extend(part for part in left if part)


def _by_task(leased: Sequence[Job]) -> dict[str, list[Job]]:
    batches: dict[str, list[Job]] = {}
    for job in leased:
        batches.setdefault(job.task, []).append(job)
    return batches
