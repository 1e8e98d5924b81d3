"""Tocsin beside django-notifications-hq and beside Laravel's table in plain SQL, on one PostgreSQL and in one run.

All do the same work: notify one user, notify a team of 10,000, show the newest 15 of an inbox of 1,000 unread ones with
their number, and mark one as read. Django answers over HTTP as Tocsin does, but from as many processes as there are
processors, where Tocsin has one. The plain SQL has neither HTTP nor PHP: a server in front of it would come on top.
"""

import json
import time
from contextlib import AsyncExitStack

import uvloop

from bench import fill
from bench.measure import Claim, has_rows, load, medians, options, show
from bench.peers.django_over_http import Django, django
from bench.peers.laravel import Laravel
from bench.peers.work import BODY, MEMBERS, OWNERS, PAGE, SIZE, TEAM, entries
from bench.post_event import drained
from bench.service import Service, clients, database, folder, in_inboxes, started

WORK = {
    "posts": "notifications to one user each",
    "pages": f"pages of {PAGE} with the unread count",
    "marks": "marks of one as read",
    "team": f"notifications of one to a team of {len(MEMBERS):,}",
}


class Tocsin:
    """The service."""

    def __init__(self, running: Service) -> None:
        self._running = running
        custom = {"type": "custom", "data": {"user": OWNERS[0]}, "params": {"body": BODY}}
        self._posts = [running.post({**custom, "notify": {"users": [user]}}) for user in OWNERS]
        self._to_team = running.post({**custom, "notify": {"teams": [TEAM]}})
        self._pages = [running.get("/notifications", user=user) for user in OWNERS]

    async def fill(self) -> None:
        """Create the users with their inboxes, and the team."""
        async with database(self._running) as connection:
            await fill.users(connection, MEMBERS.stop - OWNERS.start)
            await fill.team(connection, TEAM, MEMBERS)
            await fill.history(connection, OWNERS, SIZE)
            rows = await connection.fetch("select position, user_id, event_id from inbox")
        ids = {(position, user): event_id for position, user, event_id in rows}
        tokens = {user: self._running.put("/notifications/ID/read", user=user) for user in OWNERS}
        self._marks = (tokens[owner].replace(b"ID", str(ids[number, owner]).encode(), 1) for number, owner in entries())

    async def posts(self, seconds: float) -> float:
        """Return the notifications a second, to one user each."""
        began = time.perf_counter()
        rate = await load(self._running, self._posts, seconds, status=b"202", accept=lambda _: True)
        await drained(self._running)
        return rate * seconds / (time.perf_counter() - began)

    async def pages(self, seconds: float) -> float:
        """Return the pages a second, with the number of unread notifications."""
        return await load(self._running, self._pages, seconds, status=b"200", accept=has_rows)

    async def marks(self, seconds: float) -> float:
        """Return the notifications a second that are marked as read."""
        return await load(self._running, self._marks, seconds, status=b"204", accept=lambda _: True)

    async def team(self) -> float:
        """Return the notifications a second of one to the team, until the last inbox has it."""
        async with clients(self._running, 1) as [client], database(self._running) as connection:
            began = time.perf_counter()
            id_ = json.loads(await client.ask(self._to_team, b"202"))["id"]
            await in_inboxes(connection, id_)
            return len(MEMBERS) / (time.perf_counter() - began)


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=3, seconds=4)
    async with AsyncExitStack() as stack:
        outer = stack.enter_context(folder())
        running = await stack.enter_async_context(started(outer / "data"))
        tocsin, laravel = Tocsin(running), Laravel(running)
        await tocsin.fill()
        await laravel.fill()
        peers: dict[str, Django | Laravel] = {
            "django": await stack.enter_async_context(django(running, outer)),
            "laravel": laravel,
        }

        async def one_round() -> dict[str, float]:
            found = {}
            for name, system in {"tocsin": tocsin, **peers}.items():
                for work in ("pages", "marks", "posts"):
                    found[f"{name} {work}"] = await getattr(system, work)(seconds)
                found[f"{name} team"] = await system.team()
            return found

        rates = await medians(rounds, one_round)
    show(
        *(
            Claim(f"{what}, against {against}", rates[f"tocsin {work}"], "/s", rates[f"{peer} {work}"])
            for work, what in WORK.items()
            for peer, against in (("django", "django-notifications"), ("laravel", "Laravel's table in plain SQL"))
        )
    )


if __name__ == "__main__":
    uvloop.run(main())
