"""Events accepted in batches of 1,000, durably, against the rate at which the database commits a single row."""

import time
from collections.abc import Sequence

import uvloop

from bench.measure import Claim, cpu_of, load, medians, options, pgbench, show
from bench.post_event import PEOPLE, drained, filled
from bench.service import Service, database, service
from tocsin.api.requests import MAX_BATCH_EVENTS
from tocsin.catalogue import Catalogue


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=3, seconds=4)
    async with service() as running:
        people = await filled(running)
        requests = _requests(running, people)

        async def one_round() -> dict[str, float]:
            committed = await pgbench(running, "insert into bench.committed values (1);", seconds)
            before, began, used = await _count(running), time.perf_counter(), cpu_of(running.process.pid)
            batches = await load(running, requests, seconds, status=b"202", accept=_is_queued)
            await drained(running)
            took, used = time.perf_counter() - began, cpu_of(running.process.pid) - used
            count = await _count(running) - before
            accepted, delivered, each = batches * MAX_BATCH_EVENTS, count / took, used / count * 1_000_000
            return {"committed": committed, "accepted": accepted, "delivered": delivered, "CPU": each}

        rates = await medians(rounds, one_round)
    show(
        Claim("accepted, 1,000 a request", rates["accepted"], "/s", rates["committed"]),
        Claim("delivered, until all are", rates["delivered"], "/s", at_least=8_000),
        Claim("CPU of each, of Python and PostgreSQL together", rates["CPU"], "µs", at_most=150),
    )


def _requests(running: Service, people: range) -> Sequence[bytes]:
    event = Catalogue.load().samples["note"]["event"]
    events = [{**event, "notify": {"users": [people[number % PEOPLE]]}} for number in range(MAX_BATCH_EVENTS)]
    return [running.post_batch(events)]


async def _count(running: Service) -> int:
    """Return how many events there are: requests that were sent in time may be answered much later."""
    async with database(running) as connection:
        count: int = await connection.fetchval("select count(*) from events")
        return count


def _is_queued(body: bytes) -> bool:
    return body.startswith(b'{"queued":true,"ids":["')


if __name__ == "__main__":
    uvloop.run(main())
