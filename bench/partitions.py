"""Processor time of PostgreSQL with partitions against none: deliveries, pages and changes, statement by statement."""

import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from unittest.mock import patch

import uvloop

from bench import fill
from bench.measure import Claim, medians, options, show
from bench.service import folder
from tocsin import inbox, pages
from tocsin.acceptance import Draft
from tocsin.at_once import AtOnce
from tocsin.auth.claims import UserCaller
from tocsin.catalogue import Catalogue
from tocsin.db import migrate
from tocsin.db.connections import connect
from tocsin.db.pool import Database
from tocsin.disk_guard import DiskGuard
from tocsin.events import Intake
from tocsin.postgres.supervisor import Embedded
from tocsin.pubsub import PubSub
from tocsin.store import pool

USERS = 2_000
INBOX = 100
CALLS = 400
"""Calls of each kind in turn, for each second that a round takes."""

KINDS = ("deliver", "page", "changes")


class Silent:
    """A bus that reaches nobody: what is sent costs the same with and without partitions."""

    problem = ""

    async def send(self, topics: Sequence[str], user_ids: Collection[int]) -> None:
        """Send nothing."""

    def watch(self, user_id: int) -> None:
        """Watch nobody."""

    def unwatch(self, user_id: int) -> None:
        """Watch nobody."""

    async def listen(self, receive: object) -> None:
        """Receive nothing."""


async def main() -> None:
    """Measure and print."""
    rounds, seconds = options(__doc__, rounds=9, seconds=1)
    async with _databases() as databases:

        async def one_round() -> dict[str, float]:
            return {
                f"{kind} {name}": await cost_of(database, kind, round(CALLS * seconds))
                for kind in KINDS
                for name, database in databases.items()
            }

        await one_round()  # connects, and plans the statements
        found = await medians(rounds, one_round)
    show(
        Claim(
            "an event that is accepted and delivered",
            found["deliver parts"],
            "µs",
            found["deliver whole"],
            at_most=1.02,
        ),
        Claim("a page of 15", found["page parts"], "µs", found["page whole"], at_most=1.1),
        Claim("changes of an inbox, none since", found["changes parts"], "µs", found["changes whole"]),
    )


async def cost_of(database: Database, kind: str, calls: int, users: int = USERS) -> float:
    """Return the microseconds of PostgreSQL's processor time for one call, of so many."""
    pid = await database.value("select pg_backend_pid()")
    draft = Catalogue.load().check("custom", None, {"body": "Hello"})
    disk = DiskGuard(None)
    intake = Intake(database, PubSub("", database, Silent()), disk, AtOnce(Catalogue.load()))
    before = used(pid)
    for number in range(calls):
        user_id = fill.FIRST + number * 7919 % users
        if kind == "deliver":
            await intake.accept(Draft(draft, [user_id], [], "crm", None))
        elif kind == "page":
            await pages.Pages(database).of(UserCaller(user_id, 0), unread=False, limit=15)
        else:
            await inbox.changes_since(database, {user_id: INBOX * 1000})
    return (used(pid) - before) / calls / 1000


def used(pid: int) -> int:
    """Return the nanoseconds that a process has run."""
    return int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[0])


@contextlib.asynccontextmanager
async def _databases() -> AsyncIterator[dict[str, Database]]:
    """Provide two databases with the same rows, `whole` without partitions and `parts` with them."""
    steps = migrate.steps()
    with folder() as outer:
        async with Embedded(outer / "data") as server, contextlib.AsyncExitStack() as stack:
            databases = {}
            for name, taken in (("whole", [step for step in steps if step.name != "partitions"]), ("parts", steps)):
                owner = await connect(server.url)
                await owner.execute(f"create database {name}")
                await owner.close()
                url = server.url.replace("/tocsin?", f"/{name}?")
                with patch.object(migrate, "steps", lambda taken=taken: taken):
                    await migrate.migrate(url)
                owner = await connect(url)
                await fill.history(owner, await fill.users(owner, USERS), INBOX)
                await owner.close()
                databases[name] = await stack.enter_async_context(pool(url, 1))
            yield databases


if __name__ == "__main__":
    uvloop.run(main())
