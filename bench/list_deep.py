"""Pages of a huge inbox (the newest, a deep one, the unread ones), against a page of a small inbox."""

import json
from collections.abc import Sequence
from urllib.parse import urlsplit

import uvloop

from bench import fill
from bench.measure import Claim, has_rows, load, medians, options, show
from bench.service import Client, Service, clients, database, service

SMALL_OWNERS = 100
SMALL = 1_000
HUGE = 100_000
UNREAD = 20
DEEP = 45_000
"""How many notifications are above the deep page: it is the 3,001st of 15."""

REFERENCE = f"an inbox of {SMALL:,}"


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=5, seconds=3)
    async with service() as running:
        subjects = await _subjects(running)

        async def one_round() -> dict[str, float]:
            return {
                name: await load(running, requests, seconds, status=b"200", accept=has_rows)
                for name, requests in subjects.items()
            }

        rates = await medians(rounds, one_round)
    costs = {name: 1_000_000 / rate for name, rate in rates.items()}
    reference = costs.pop(REFERENCE)
    show(*(Claim(name, cost, "µs", reference, at_most=1.3) for name, cost in costs.items()))


async def _subjects(running: Service) -> dict[str, Sequence[bytes]]:
    *small, deep, read = await _filled(running)
    async with clients(running, 1) as (client,):
        following = await _following(running, client, deep)
    return {
        REFERENCE: [running.get("/notifications", user=owner) for owner in small],
        f"the newest of {HUGE:,}": [running.get("/notifications", user=deep)],
        f"below {DEEP:,} of {HUGE:,}": [running.get(following, user=deep)],
        f"the unread of {HUGE + UNREAD:,}, {UNREAD}": [running.get("/notifications?show=unread", user=read)],
    }


async def _filled(running: Service) -> range:
    async with database(running) as connection:
        owners = await fill.users(connection, SMALL_OWNERS + 2)
        await fill.notifications(connection, HUGE + UNREAD)
        await fill.inboxes(connection, owners[:-2], SMALL, unread=SMALL)
        await fill.inboxes(connection, owners[-2:-1], HUGE, unread=HUGE)
        await fill.inboxes(connection, owners[-1:], HUGE + UNREAD, unread=UNREAD)
        await fill.settle(connection)
    return owners


async def _following(running: Service, client: Client, owner: int) -> str:
    """Follow `next` in pages of 100 to the deep page, and return the path of a page of default size there."""
    path = "/notifications?per_page=100"
    for _ in range(DEEP // 100):
        page = json.loads(await client.ask(running.get(path, user=owner)))
        url = urlsplit(page["pagination"]["urls"]["next"])
        path = f"{url.path}?{url.query}"
    return path.replace("per_page=100", "per_page=15")


if __name__ == "__main__":
    uvloop.run(main())
