"""An hour at half of the service's capacity: memory, connections, files, tables and indexes level off.

Events go to one and to many users with iPhones, Android phones and browsers. The users read pages, mark, delete, follow
streams, and change their devices and preferences; the back end imports, replaces and cancels, changes teams, creates
users and erases them. A day of retention is as long as `--day`, so that rows go as they come (`short_days.py`).

For each series of samples, the median of the slopes between all pairs of samples of the second half (Theil and Sen),
which single outliers do not move, is what it grows by while that half lasts. The bound is a tenth of its mean, and a
floor for small ones: of what grows with the time since the start, two thirds of its mean are added in the second half,
so that a leak is found when it is a sixth of what is measured.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import statistics
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import uvloop

from bench import fill
from bench.measure import CONNECTIONS, Claim, percentile, show
from bench.memory import memory, name_of, tree
from bench.service import Client, Service, clients, database, folder, started
from tocsin.db.connections import Connection
from tocsin_phones import Phones

PEOPLE = 500
TEAM, MEMBERS = 1, 200
OTHER_TEAM, OTHER_MEMBERS = 2, 20
"""A team that is replaced as a whole."""

PASSING = 20
"""Users that are created and erased, beside the others."""

BROWSERS = 2
"""Browsers of a user. Each is registered and removed at random."""

TOKENS = 2
"""Tokens of phones of a user: iPhones and as many Android phones. Of the iPhones, half are registered at the start."""

SEEN = 20
"""Ids of notifications of a user that the marks choose from."""

LATER = 20.0
"""Seconds for which an event with a key is held."""

STREAMS, STREAM_SECONDS = 40, (2.0, 30.0)
IMPORTED = 10
"""Users, and notifications, of an import."""

GROWTH, FLOORS = 0.1, {"MiB": 4.0, "files": 8.0, "connections": 8.0}
"""What a series may grow by in the second half: this part of its mean, or this much."""

SMALLEST = 1.0
"""MiB below which a series is not shown."""

MIN_SAMPLES = 2

PERMANENT = ("audit_entries", "erased_ids")
"""Tables that keep their rows longer than a soak lasts: PostgreSQL itself refuses to delete an entry within a day."""

DRAIN = 120.0
"""Seconds within which all that waits has to be done once the load stops."""

_LAUNCHER = Path(__file__).with_name("short_days.py")


class Sample(NamedTuple):
    """What was measured at a time: values by unit and name; and what is printed, but may vary."""

    levels: Mapping[tuple[str, str], float]
    others: Mapping[str, float]


async def main() -> None:
    """Measure, print, and fail if something grows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two samples (default: 60)")
    parser.add_argument("--day", type=float, default=10.0, help="seconds of a day of retention (default: 10)")
    parser.add_argument("--capacity", type=float, default=30.0, help="seconds of full load (default: 30)")
    parser.add_argument("--rate", type=float, help="operations a second (default: half of the capacity)")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", file=sys.stderr)
    async with soaking(given.day, seed) as soak:
        capacity = await soak.capacity(given.capacity)
        rate = given.rate or capacity / 2
        print(f"{rate:.0f} operations a second from now on, of {capacity:.0f}", file=sys.stderr)
        samples = await soak.run(rate, given.minutes * 60, given.every)
        await soak.drained()
    if not report(capacity, rate, samples, soak):
        sys.exit("Something grows: see the lines with NO.")


class Soak:
    """The load on a running service, and its samples."""

    def __init__(self, running: Service, phones: Phones, connection: Connection, people: range, seed: int) -> None:
        self.running, self.phones, self.connection = running, phones, connection
        self.people, self.random = people, random.Random(seed)  # noqa: S311 - nothing secret
        self.seen: defaultdict[int, deque[str]] = defaultdict(lambda: deque(maxlen=SEEN))
        self.took: defaultdict[str, list[float]] = defaultdict(list)
        self.done = Counter[str]()
        self.keys = itertools.count()
        self.subscriptions = dict[tuple[int, int], dict[str, Any]]()
        self.vapid_key = ""

    async def capacity(self, seconds: float) -> float:
        """Return the operations per second of full load, all that they cause included."""
        began = time.perf_counter()
        await self._drive(None, seconds)
        await self.drained()
        return self.done.total() / (time.perf_counter() - began)

    async def run(self, rate: float, seconds: float, every: float) -> list[Sample]:
        """Run so many operations a second, and streams; return the samples."""
        self.done.clear()
        self.took.clear()
        streams = [asyncio.create_task(self._stream()) for _ in range(STREAMS)]
        driving = asyncio.create_task(self._drive(rate, seconds))
        samples = []
        try:
            due = time.perf_counter()
            while not driving.done():
                due += every
                await asyncio.wait(
                    {driving, *streams}, timeout=due - time.perf_counter(), return_when="FIRST_COMPLETED"
                )
                for stream in streams:
                    if stream.done():
                        stream.result()
                if not driving.done():
                    samples.append(await self._sample())
            await driving
        finally:
            for task in (driving, *streams):
                task.cancel()
            await asyncio.gather(driving, *streams, return_exceptions=True)
        return samples

    async def drained(self) -> None:
        """Wait until nothing waits. Raises `TimeoutError`."""
        waits = (
            "select exists (select from jobs where due_at <= now())"
            " or exists (select from deliveries where settled_at is null and due_at <= now())"
        )
        async with asyncio.timeout(DRAIN):
            while await self.connection.fetchval(waits):
                await asyncio.sleep(0.1)

    # --- Operations ---

    async def _drive(self, rate: float | None, seconds: float) -> None:
        """Run operations at their times, whatever became of those before; without a rate, without a pause."""
        turns, began = itertools.count(), time.perf_counter()
        names, weights = zip(*self.operations.items(), strict=True)

        async def one(client: Client) -> None:
            while True:
                due = began + next(turns) / rate if rate else time.perf_counter()
                if due > began + seconds:
                    return
                await asyncio.sleep(due - time.perf_counter())
                [operation] = self.random.choices(names, weights)
                await operation(self, client)
                self.took[operation.__name__].append((time.perf_counter() - due) * 1000)
                self.done[operation.__name__] += 1

        async with clients(self.running, CONNECTIONS) as opened:
            await asyncio.gather(*(one(client) for client in opened))

    def _user(self) -> int:
        return self.random.choice(self.people)

    def _seen(self) -> tuple[int, str]:
        """Return a user and a notification that was theirs."""
        user = self._user()
        return user, self.random.choice(self.seen[user]) if self.seen[user] else str(uuid4())

    def _event(self, **more: Any) -> dict[str, Any]:
        body = self.random.choice("æ😀x") * self.random.randrange(1, 400)
        return {"type": "custom", "data": {}, "params": {"body": body}, **more}

    async def post(self, client: Client) -> None:
        """Post an event to one user, half of them with an `Idempotency-Key`."""
        headers = {"Idempotency-Key": f"soak-{next(self.keys)}"} if self.random.random() < 0.5 else {}
        await client.ask(self.running.post(self._event(notify={"users": [self._user()]}), **headers), b"202")

    async def post_to_some(self, client: Client) -> None:
        """Post an event to 2 to 49 users."""
        users = self.random.sample(self.people, self.random.randrange(2, 50))
        await client.ask(self.running.post(self._event(notify={"users": users})), b"202")

    async def post_to_team(self, client: Client) -> None:
        """Post an event to the team."""
        await client.ask(self.running.post(self._event(notify={"teams": [TEAM]})), b"202")

    async def post_later(self, client: Client) -> None:
        """Post an event that is held, or replace it."""
        key = f"later-{self.random.randrange(50)}"
        due = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + LATER))
        event = self._event(notify={"users": [self._user()]}, key=key, deliver_at=due)
        await client.ask(self.running.post(event), b"202")

    async def cancel(self, client: Client) -> None:
        """Cancel a held event, if it is still held."""
        path = f"/events/by-key/later-{self.random.randrange(50)}"
        await client.ask(self.running.of_back_end("DELETE", path), b"204", b"404", b"409")

    async def resolve(self, client: Client) -> None:
        """Resolve the subject of an event that was held."""
        subject = f"key:later-{self.random.randrange(50)}"
        given = {"about": subject, "as": self.random.choice(("read", "gone"))}
        await client.ask(self.running.of_back_end("POST", "/events/resolve", given), b"202")

    async def read_page(self, client: Client) -> None:
        """Read a page of a user, and remember its ids for the marks."""
        user = self._user()
        path = f"/notifications?{self.random.choice(('', '', 'show=unread', 'page=2', 'per_page=100'))}"
        page = json.loads(await client.ask(self.running.get(path, user=user)))
        self.seen[user].extend(notification["id"] for notification in page["data"])

    async def changes(self, client: Client) -> None:
        """Ask for the changes of an inbox, as an app that was offline."""
        user = self._user()
        answer = json.loads(await client.ask(self.running.get("/notifications/changes", user=user)))
        await client.ask(self.running.get(f"/notifications/changes?since={answer['cursor']}", user=user))

    async def mark(self, client: Client) -> None:
        """Mark a notification as read or unread."""
        user, id_ = self._seen()
        path = f"/notifications/{id_}/{self.random.choice(('read', 'read', 'unread'))}"
        await client.ask(self.running.put(path, user=user), b"204", b"404", b"410")

    async def delete(self, client: Client) -> None:
        """Delete a notification."""
        user, id_ = self._seen()
        await client.ask(self.running.of_user("DELETE", f"/notifications/{id_}", user), b"204", b"404")

    async def read_all(self, client: Client) -> None:
        """Mark an inbox as read."""
        await client.ask(self.running.put("/notifications/read", user=self._user()), b"204")

    async def register(self, client: Client) -> None:
        """Register a phone, again or as new."""
        await self._register(client, *self._phone())

    async def _register(self, client: Client, user: int, kind: str, token: str) -> None:
        request = self.running.of_user("POST", f"/notifications/devices/{token}", user, {"type": kind})
        await client.ask(request, b"204")

    async def detach(self, client: Client) -> None:
        """Remove a phone, if it is there."""
        user, _, token = self._phone()
        await client.ask(self.running.of_user("DELETE", f"/notifications/devices/{token}", user), b"204")

    async def lose(self, client: Client) -> None:
        """Let a phone remove the app: the next push to it is answered that it is gone."""
        user, kind, token = self._phone()
        await self._register(client, user, kind, token)
        gone: dict[str, Any] = {"status": 404, "reason": "UNREGISTERED"} if kind == "Android" else {"status": 410}
        self.phones.answer("fcm" if kind == "Android" else "apns", token=token, times=1, **gone)

    async def subscribe(self, client: Client) -> None:
        """Register a browser, again or as new."""
        user = self._user()
        if not self.vapid_key:
            self.vapid_key = json.loads(await client.ask(self.running.get("/notifications/web-push/key", user=user)))[
                "key"
            ]
        browser = user, self.random.randrange(BROWSERS)
        if browser not in self.subscriptions:
            self.subscriptions[browser] = self.phones.subscribe(self.vapid_key)
        request = self.running.of_user("POST", "/notifications/web-push", user, self.subscriptions[browser])
        await client.ask(request, b"204")

    async def unsubscribe(self, client: Client) -> None:
        """Remove a browser: its user signs out, or the browser removes the subscription by itself."""
        if not self.subscriptions:
            return
        browser = user, _ = self.random.choice([*self.subscriptions])
        endpoint = self.subscriptions[browser]["endpoint"]
        if self.random.random() < 0.5:
            self.phones.unsubscribe(endpoint)
            del self.subscriptions[browser]
        else:
            request = self.running.of_user("DELETE", "/notifications/web-push", user, {"endpoint": endpoint})
            await client.ask(request, b"204")

    async def join_or_leave(self, client: Client) -> None:
        """Add a user to the team, or remove one."""
        path = f"/directory/teams/{TEAM}/users/{self._user()}"
        await client.ask(self.running.of_back_end(self.random.choice(("PUT", "DELETE")), path), b"204", b"404")

    async def replace_team(self, client: Client) -> None:
        """Replace the members of another team."""
        team = {"name": "Others", "company_id": 1, "users": self.random.sample(self.people, OTHER_MEMBERS)}
        await client.ask(self.running.of_back_end("PUT", f"/directory/teams/{OTHER_TEAM}", team), b"204")

    async def create(self, client: Client) -> None:
        """Create a user, or replace it, and post an event to it."""
        user = self._passing()
        person = {"first_name": "Kim", "last_name": f"Lee {user}", "company_id": 1}
        await client.ask(self.running.of_back_end("PUT", f"/directory/users/{user}", person), b"204")
        await client.ask(self.running.post(self._event(notify={"users": [user]})), b"202", b"422")  # or erased since

    async def erase(self, client: Client) -> None:
        """Erase a user, if it is there."""
        path = f"/directory/users/{self._passing()}"
        await client.ask(self.running.of_back_end("DELETE", path), b"204", b"404")

    def _passing(self) -> int:
        return self.people.stop + self.random.randrange(PASSING)

    async def prefer(self, client: Client) -> None:
        """Switch the pushes of a kind off or on."""
        kinds = {"custom": {"push": self.random.random() < 0.9}}
        request = self.running.of_user("PATCH", "/notifications/preferences", self._user(), {"kinds": kinds})
        await client.ask(request)

    async def import_some(self, client: Client) -> None:
        """Import users and past notifications."""
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() - 1))
        lines = [line for _ in range(IMPORTED) for line in self._lines(self._user(), now)]
        await client.ask(self.running.post_import("\n".join(map(json.dumps, lines)).encode()))

    def _lines(self, user: int, now: str) -> list[dict[str, Any]]:
        person = {"id": user, "first_name": "Ann", "last_name": f"Lee {self.random.random()}", "company_id": 1}
        old = {"user_id": user, "id": str(uuid4()), "type": "old", "data": {}, "message": "Hello", "created_at": now}
        return [{"user": person}, {"notification": old}]

    def _phone(self) -> tuple[int, str, str]:
        """Return a user, a type of phone, and a token."""
        user, kind = self._user(), self.random.choice(("iOS", "Android"))
        token = f"{user:062x}{self.random.randrange(TOKENS):02x}"
        return user, kind, f"{token}:android" if kind == "Android" else token

    operations: Mapping[Callable[["Soak", Client], Awaitable[None]], int] = {
        post: 30,
        post_to_some: 4,
        post_to_team: 1,
        post_later: 2,
        cancel: 2,
        resolve: 1,
        read_page: 30,
        changes: 4,
        mark: 12,
        delete: 6,
        read_all: 2,
        register: 3,
        detach: 2,
        lose: 1,
        subscribe: 3,
        unsubscribe: 2,
        join_or_leave: 2,
        replace_team: 1,
        create: 1,
        erase: 1,
        prefer: 1,
        import_some: 1,
    }

    async def _stream(self) -> None:
        """Follow a user's stream for some seconds, then another's."""
        while True:
            reader, writer = await asyncio.open_connection(self.running.host, self.running.port)
            try:
                writer.write(self.running.get("/notifications/stream", user=self._user()))
                if (await reader.readline()).split()[1] != b"200":
                    raise RuntimeError("a stream was refused")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.random.uniform(*STREAM_SECONDS)):
                        async for line in reader:
                            self.done["lines of streams"] += line.startswith(b"event: ")
            finally:
                writer.close()

    # --- Samples ---

    async def _sample(self) -> Sample:
        """Return a sample; print it, too."""
        self.phones.forget()
        pid = self.running.process.pid
        levels = {("MiB", f"memory of {name}"): size for name, size in _memory(pid).items()}
        levels |= {("files", f"open files of {name}"): count for name, count in _files(pid).items()}
        levels["connections", "database connections"] = await self.connection.fetchval(
            "select count(*) from pg_stat_activity where backend_type = 'client backend'"
        )
        others = dict[str, float]()
        for row in await self.connection.fetch(_TABLES):
            levels["MiB", f"table {row['name']}"] = row["heap"] / 2**20
            levels["MiB", f"indexes of {row['name']}"] = row["indexes"] / 2**20
            others |= {f"rows of {row['name']}": row["live"], f"dead rows of {row['name']}": row["dead"]}
        others |= await self._waiting()
        for name, took in self.took.items():
            if len(took) > 1:
                others |= {f"{name}, p50 ms": percentile(took, 50), f"{name}, p99 ms": percentile(took, 99)}
        self.took.clear()
        sample = Sample(levels, others)
        print(
            json.dumps({**{name: value for (_, name), value in levels.items()}, **others}), file=sys.stderr, flush=True
        )
        return sample

    async def _waiting(self) -> dict[str, float]:
        """Return the age of the oldest job and push that are due."""
        rows = await self.connection.fetch(_OLDEST)
        return {f"oldest {row['what']}, s": row["age"] for row in rows}


_TABLES = """
select relname as name, pg_table_size(relid) as heap, pg_indexes_size(relid) as indexes,
       n_live_tup as live, n_dead_tup as dead
from pg_stat_user_tables where schemaname = 'tocsin'
"""

_PHONES = """
insert into devices (token, user_id, type, provider, environment, app)
select lpad(to_hex(id), 62, '0') || '00', id, 'iOS', 'apns', 'production', 'default'
from generate_series($1::int, $2::int) as named (id)
"""

_OLDEST = """
select 'job' as what, coalesce(extract(epoch from now() - min(due_at)), 0)::float as age
from jobs where due_at <= now()
union all
select 'push', coalesce(extract(epoch from now() - min(due_at)), 0)::float
from deliveries where settled_at is null and due_at <= now()
"""


def _memory(pid: int) -> dict[str, float]:
    """Return the MiB of the service and of PostgreSQL."""
    found = memory(pid)
    own = found["tocsin"]
    return {"tocsin": own, "PostgreSQL": found["all"] - own}


def _files(pid: int) -> dict[str, int]:
    found = Counter[str]()
    for process in tree(pid):
        with contextlib.suppress(OSError):  # it has ended
            owner = "tocsin" if name_of(process) == "tocsin" else "PostgreSQL"
            found[owner] += len(list((process / "fd").iterdir()))
    return dict(found)


def growth(values: Sequence[float]) -> float:
    """Return by how much a series grows while it lasts: the median of the slopes between all pairs."""
    slopes = [(b - a) / (y - x) for (x, a), (y, b) in itertools.combinations(enumerate(values), 2)]
    return statistics.median(slopes) * (len(values) - 1)


def grown(samples: Sequence[Sample]) -> list[Claim]:
    """Return what each series was in the second half, and by how much it grew."""
    half, claims = samples[len(samples) // 2 :], list[Claim]()
    if len(half) < MIN_SAMPLES:
        raise SystemExit("The soak is too short for its samples; use more --minutes, or less --every.")
    for unit, name in sorted(half[-1].levels):
        values = [sample.levels.get((unit, name), 0.0) for sample in half]
        mean = statistics.fmean(values)
        if mean >= SMALLEST or unit != "MiB":
            bound = None if name.endswith(PERMANENT) else max(GROWTH * mean, FLOORS[unit])
            claims += [Claim(name, mean, unit), Claim("  grew in the second half", growth(values), unit, at_most=bound)]
    return claims


def report(capacity: float, rate: float, samples: Sequence[Sample], soak: Soak) -> bool:
    """Print the tables; return whether everything levels off."""
    print(json.dumps(soak.done))
    for name in sorted(samples[-1].others):
        first, last = samples[0].others.get(name, 0), samples[-1].others[name]
        print(f"{name}: {first:,.1f} at first, {last:,.1f} at last")
    claims = grown(samples)
    show(Claim("operations, of the capacity", rate, "/s", capacity), *claims)
    return all(claim.kept for claim in claims)


@asynccontextmanager
async def soaking(day: float, seed: int) -> AsyncIterator[Soak]:
    """Start the phones and the service, and fill its directory."""
    async with AsyncExitStack() as stack:
        outer = stack.enter_context(folder())
        phones = await stack.enter_async_context(Phones())
        variables = {
            **phones.credentials(outer),
            "BENCH_DAY": str(day),
            "TOCSIN_RETENTION_DAYS": "30",
            "TOCSIN_AUDIT_RETENTION_DAYS": "36500",
            "TOCSIN_LIMIT_DEVICES": "none",
        }
        launcher = (sys.executable, "-P", str(_LAUNCHER))
        running = await stack.enter_async_context(started(outer / "data", variables, launcher))
        connection = await stack.enter_async_context(database(running))
        people = await fill.users(connection, PEOPLE)
        await fill.team(connection, TEAM, people[:MEMBERS])
        await connection.execute(_PHONES, people.start, people.stop - 1)
        yield Soak(running, phones, connection, people, seed)


if __name__ == "__main__":
    uvloop.run(main())
