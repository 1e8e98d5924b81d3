"""The relay: posts the events of an outbox, a table that an application writes in transactions of its own.

Each row is posted at least once, under its own id, so that the service delivers it once. Rows are posted in their
order, by one relay at a time; further ones wait as spares.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import structlog

from tocsin.backoff import Backoff
from tocsin.db.connections import Connection, Prepared, Record, connect
from tocsin.db.errors import first_line, is_denied, is_hopeless, is_outage, sentence_on
from tocsin.db.poolers import refuse_shared_sessions
from tocsin.db.statements import queries
from tocsin.errors import Refusal, Unavailable
from tocsin.http_client.fetch import FetchError, fetch

BATCH_SIZE = 200
"""Maximum rows per request."""

MAX_BATCH_BYTES = 4 * 2**20
"""Maximum bytes of the events of a request. A larger event is refused: the service accepts none of more than 1 MiB."""

SETTING = "OUTBOX_DATABASE_URL"
"""The variable with the url of the database of the outbox."""

INTERVAL = 0.5
"""Seconds between two looks at an empty outbox."""

KEPT_DAYS = 7
"""Days for which rows are kept after they were sent."""

MAX_PAUSE = 60.0
"""Maximum seconds that the relay waits because the service asks for it."""

IDLE_TIMEOUT = 120.0
"""Seconds without a statement after which the server ends the session, and with it the lock of the table: a relay that
hangs makes room for a spare. It exceeds the longest time between two statements, a request and its pause.

The server does not count the time between the two messages by which the driver prepares and runs a statement. So all
statements are prepared before the lock is taken."""

_REFUSED = frozenset({400, 409, 413, 422})
"""The statuses of answers to a wrong event, which stay the same. Others may change: the url, the token, or the load."""

_TOO_LARGE = 413
"""The one of these that counts from any server: a proxy may accept less than the service."""

_FORGET_EVERY = 1_000
"""Turns between two looks for old rows, of which each deletes at most as many."""

_REQUEST_TIMEOUT = 30.0
_STATEMENT_TIMEOUT = 20.0
_MAX_ANSWER_BYTES = 2**20
_SAMPLES: Mapping[str, Sequence[Any]] = {"waiting": (1, 1), "sent": ([],), "refuse": (0, ""), "forget": (1, 1)}
_SQL = queries("relay")
_TABLE = "notifications_outbox"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Relay:
    """Posts the rows of `table` in the database at `database_url` to the service at `url`, until `stopping` is set.

    `token` returns a token of the service for each request.
    """

    database_url: str
    table: str
    url: str
    token: Callable[[], str]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Post rows until `stopping` is set. Failures are logged and retried; `Refusal` if there is no such table."""
        while not self.stopping.is_set():
            try:
                async with self._session() as (connection, statements):
                    await self._work(connection, statements)
            except Refusal:
                raise
            except Exception as error:
                if is_hopeless(error):
                    raise Refusal(sentence_on(error, SETTING)) from error
                if not self.stopping.is_set():
                    await self._backoff.pause(error)

    @cached_property
    def _backoff(self) -> Backoff:
        return Backoff("relay", self.stopping, setting=SETTING)

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[tuple[Connection, dict[str, Prepared]]]:
        """Connect, and yield the connection and the statements for the table."""
        await refuse_shared_sessions(self.database_url, "the url of the outbox")
        connection = await connect(self.database_url, _STATEMENT_TIMEOUT)
        try:
            await connection.execute(f"set idle_session_timeout = {round(IDLE_TIMEOUT * 1000)}")
            yield connection, await _statements(connection, self.table)
        finally:
            connection.terminate()

    async def _work(self, connection: Connection, sql: dict[str, Prepared]) -> None:
        turns, is_working, has_old = 0, False, False
        while not self.stopping.is_set():
            if not is_working:
                is_working = await sql["turn"].fetchval(self.table)
                if is_working:
                    log.info("relay started", table=self.table, url=self.url)
            rows = await sql["waiting"].fetch(BATCH_SIZE, MAX_BATCH_BYTES) if is_working else []
            if rows:
                await self._post(connection, sql, rows)
            if is_working and (has_old or turns % _FORGET_EVERY == 0):
                has_old = await sql["forget"].fetchval(KEPT_DAYS, _FORGET_EVERY) == _FORGET_EVERY
            self._backoff.succeeded()
            turns += 1
            if not rows and not has_old:
                await self._pause(INTERVAL)

    async def _post(self, connection: Connection, sql: dict[str, Prepared], rows: Sequence[Record]) -> None:
        """Post the rows together. If that is refused, post them one by one."""
        events = {row["number"]: _body_of(row) for row in rows}
        bodies = [body for body in events.values() if body]
        if len(rows) == 1 or len(bodies) < len(rows):
            await self._one_by_one(connection, sql, events)
            return
        try:
            await self._call(connection, "/events/batch", b'{"events": [%b]}' % b", ".join(bodies))
        except FetchError:
            await self._one_by_one(connection, sql, events)
        else:
            await sql["sent"].fetch(list(events))
            log.info("events relayed", count=len(rows))

    async def _one_by_one(
        self, connection: Connection, sql: dict[str, Prepared], events: Mapping[int, bytes | None]
    ) -> None:
        """Post each event by itself. One that is refused keeps the errors, and the others continue."""
        for number, body in events.items():
            refused = await self._refusal_of(connection, body)
            if refused:
                await sql["refuse"].fetch(number, refused)
                log.error("event refused", number=number, errors=refused[:500])
            else:
                await sql["sent"].fetch([number])
                log.info("events relayed", count=1)

    async def _refusal_of(self, connection: Connection, body: bytes | None) -> str | None:
        """Post an event; return the answer of the service if it is refused."""
        if body is None:
            return f"The event is not a JSON object of at most {MAX_BATCH_BYTES} bytes."
        try:
            await self._call(connection, "/events", body)
        except FetchError as error:
            return error.body.decode(errors="replace") or str(error)
        return None

    async def _call(self, connection: Connection, path: str, body: bytes) -> None:
        """Post until the service answers, and return if it accepts. Raises `FetchError` if it refuses the body.

        An answer of another server, such as the page of a proxy, neither accepts nor refuses: it is posted again.
        While this waits, the session keeps the lock of the table. Raises `Unavailable` if the relay has to stop, and an
        error of the driver if the session has ended: then another relay may have the lock.
        """
        while not self.stopping.is_set():
            await connection.execute("select 1")
            try:
                headers = (f"Authorization: Bearer {self.token()}", "Content-Type: application/json")
                answer = await fetch(
                    self.url + path, body=body, headers=headers, seconds=_REQUEST_TIMEOUT, limit=_MAX_ANSWER_BYTES
                )
            except Refusal as error:  # the file of the token is away, as while it is replaced
                await self._backoff.pause(error)
            except FetchError as error:
                if error.status == _TOO_LARGE or (error.status in _REFUSED and _message_of(error.body)):
                    raise
                await self._backoff.pause(FetchError(_in_words(error)))
                await self._pause(min(error.retry_after, MAX_PAUSE))
            else:
                if _is_accepted(answer):
                    self._backoff.succeeded()
                    return
                await self._backoff.pause(FetchError("The answer is not one of Tocsin."))
        raise Unavailable("The relay stops.")

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()


async def _statements(connection: Connection, table: str) -> dict[str, Prepared]:
    """Prepare the statements for a table. Raises `Refusal` if it is no outbox, or the role lacks a right."""
    try:
        name = await connection.fetchval(_SQL["table"], table)
        found = {key: text.replace(_TABLE, name) for key, text in _SQL.items()}
        for key, arguments in _SAMPLES.items():  # to explain a statement needs its rights
            await connection.fetch(f"explain {found[key]}", *arguments)
        return {key: await connection.prepare(text) for key, text in found.items()}
    except Exception as error:
        if is_outage(error):
            raise
        needs = "; its role needs select, update and delete on it" if is_denied(error) else ""
        raise Refusal(f"The outbox {table} cannot be used: {first_line(error)}{needs}.") from error


def _in_words(error: FetchError) -> str:
    """Return why a request failed, with the first message of the service."""
    message = _message_of(error.body)
    return f"{first_line(error)}: {message}" if message else str(error)


def _message_of(answer: bytes) -> str | None:
    """Return the first message of a refusal; None if it is not one of Tocsin."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(json.loads(answer)["errors"][0]["message"])
    return None


def _is_accepted(answer: bytes) -> bool:
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return json.loads(answer)["queued"] is True
    return False


def _body_of(row: Record) -> bytes | None:
    """Return the event of a row as JSON, with its id; None if it is not an object, or too large or deep to be read."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        event = json.loads(row["event"])
        if isinstance(event, dict):
            return json.dumps({**event, "id": row["id"]}, ensure_ascii=False).encode()
    return None
