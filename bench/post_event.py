"""Events accepted, durably, against single rows committed, and an application that only reads and answers."""

import asyncio
import itertools
import re
import time
from collections.abc import Iterator, Sequence
from uuid import uuid4

import uvloop

from bench import fill
from bench.bare import bare
from bench.measure import Claim, load, medians, options, pgbench, show
from bench.service import Service, database, service
from tocsin.catalogue import Catalogue

PEOPLE = 1_000
HISTORY = 100
"""Earlier notifications of each user."""

LOOK = 0.01
"""Seconds between two polls of the queue."""

_LENGTH = re.compile(rb"Content-Length: \d+")


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=5, seconds=4)
    async with service() as running, bare() as empty:
        people = await filled(running)
        requests = _requests(running, people)

        async def one_round() -> dict[str, float]:
            committed = await pgbench(running, "insert into bench.committed values (1);", seconds)
            began = time.perf_counter()
            accepted = await load(running, requests, seconds, status=b"202", accept=_is_queued)
            await drained(running)
            delivered = accepted * seconds / (time.perf_counter() - began)
            named = await load(running, _named(requests), seconds, status=b"202", accept=_is_queued)
            await drained(running)
            answered = await load(empty, requests, seconds, status=b"202", accept=_is_queued)
            return {
                "committed": committed,
                "accepted": accepted,
                "delivered": delivered,
                "named": named,
                "answered": answered,
            }

        rates = await medians(rounds, one_round)
    show(
        Claim("accepted, one recipient each", rates["accepted"], "/s", rates["committed"], at_least=0.25),
        Claim("delivered, until all are", rates["delivered"], "/s", rates["committed"]),
        Claim("accepted, against an application that only answers", rates["accepted"], "/s", rates["answered"]),
        Claim("accepted with an `id`, against without", rates["named"], "/s", rates["accepted"], at_least=0.9),
    )


async def filled(running: Service) -> range:
    """Create users with earlier notifications, and the table of the reference."""
    async with database(running) as connection:
        people = await fill.users(connection, PEOPLE)
        await connection.execute("create schema bench")
        await connection.execute("create table bench.committed (number int)")
        await fill.history(connection, people, HISTORY)
    return people


def _requests(running: Service, people: range) -> Sequence[bytes]:
    event = Catalogue.load().samples["note"]["event"]
    return [running.post({**event, "notify": {"users": [user]}}) for user in people]


def _named(requests: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the requests in turn, for ever, each with another `id`."""
    cut = [(head, body[1:]) for head, _, body in (request.partition(b"\r\n\r\n") for request in requests)]
    for head, rest in itertools.cycle(cut):
        id_ = b'{"id": "%b", ' % str(uuid4()).encode()
        yield _LENGTH.sub(b"Content-Length: %d" % (len(id_) + len(rest)), head) + b"\r\n\r\n" + id_ + rest


def _is_queued(body: bytes) -> bool:
    return body.startswith(b'{"queued":true,"id":"')


async def drained(running: Service) -> None:
    """Wait until all events are delivered, so that no delivery runs while the reference is measured."""
    async with database(running) as connection:
        while await connection.fetchval("select exists (select from jobs)"):
            await asyncio.sleep(LOOK)
        if await connection.fetchval("select exists (select from dead_letters)"):
            raise RuntimeError("an event could not be delivered")


if __name__ == "__main__":
    uvloop.run(main())
