"""The ledger: what clients were answered with 202, compared with every inbox at the end."""

import asyncio
import contextlib
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

import asyncpg
import httpx

from tests.support.database import value
from tests.support.service import HOUR, SECRET
from tests.support.waiting import until
from tocsin.auth.minting import mint_service, mint_user
from tocsin.db.connections import connect
from tocsin.db.errors import DRIVER_ERRORS

SLOWEST = 90.0
"""Seconds after which a client gives an answer up: longer than the service may take."""

DAY = timedelta(days=1)
"""How long tokens are valid: longer than a wrong clock is ahead."""

POSTERS = 6
PAUSE_OF_CROWDS = (0.1, 0.5)
READERS = (1, *range(5, 21))
PHONES = range(21, 121)
"""Users with an iPhone; none of them reads."""

FOLLOWERS = range(2, 5)
"""Users with an open stream, who mark and delete what they see."""


_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_BROKEN = (OSError, asyncio.IncompleteReadError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Post:
    """An event as a client posts it, known again by its words; those of one batch are stored together or not at all."""

    words: str
    users: Sequence[int]
    teams: Sequence[int] = ()
    key: str | None = None
    batch: str | None = None


@dataclass(slots=True)
class Population:
    """All users 1..`size`, and the members of teams of all sizes."""

    size: int
    teams: dict[int, list[int]]
    small: list[int]
    crowds: list[int]

    @classmethod
    def of(cls, dice: random.Random, size: int = 12_000) -> Self:
        """Create users and teams, the largest with all users."""
        everybody = range(1, size + 1)
        sizes = [size, size // 4, 150, *(dice.randint(3, 60) for _ in range(10))]
        teams = {number: sorted(dice.sample(everybody, count)) for number, count in enumerate(sizes, 1)}
        return cls(size, teams, small=list(teams)[3:], crowds=list(teams)[:3])

    async def fill(self, url: str) -> None:
        """Store all users in the directory of an empty database."""
        connection = await connect(url)
        await connection.execute(
            "insert into users select n, 1, 'First', 'Last' || n, null, null, 'UTC' from generate_series(1, $1::int) n",
            self.size,
        )
        await connection.execute(
            "insert into heads (user_id, locale, active)"
            " select n, (array['en', 'da-DK'])[1 + n % 2], true from generate_series(1, $1::int) n",
            self.size,
        )
        for team, members in self.teams.items():
            await connection.execute("insert into teams values ($1, 1, 'Team')", team)
            await connection.execute("insert into members select $1, unnest($2::int[])", team, members)
        await connection.close()

    async def give_phones(self, url: str) -> None:
        """Give those who have a phone one each; its token is the number of the user."""
        connection = await connect(url)
        await connection.execute(
            "insert into devices (token, user_id, type, provider, environment, app)"
            " select lpad(to_hex(n), 64, '0'), n, 'iOS', 'apns', 'production', 'default'"
            " from unnest($1::int[]) n",
            list(PHONES),
        )
        await connection.close()

    def recipients(self, post: Post) -> list[int]:
        """All recipients, once each, ordered by id."""
        return sorted({*post.users, *(user for team in post.teams for user in self.teams[team])})


@dataclass(slots=True)
class Ledger:
    """What clients know: `accepted` are the 202, by id; `unsure` may or may not have been stored.

    `cancelled` and `too_late` are the ids whose cancellation was answered so.
    """

    posts: dict[str, Post] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    too_late: set[str] = field(default_factory=set)
    answers: Counter[str] = field(default_factory=Counter)
    accepted_at: float | None = None
    longest_gap: float = 0.0
    """The longest time in seconds without a 202."""

    def write(self, users: Sequence[int], teams: Sequence[int] = (), **more: str) -> Post:
        """Record what a client is about to post."""
        post = Post(f"words {len(self.posts)}", users, teams, **more)
        self.posts[post.words] = post
        self.unsure.add(post.words)
        return post

    def accept(self, ids: Sequence[str], posts: Sequence[Post]) -> None:
        """Record that these were answered with 202."""
        self.accepted.update(zip(ids, (post.words for post in posts), strict=True))
        self.unsure.difference_update(post.words for post in posts)
        now = time.monotonic()
        self.longest_gap = max(self.longest_gap, now - (self.accepted_at or now))
        self.accepted_at = now

    def __str__(self) -> str:
        """Count."""
        stopped = f"{len(self.cancelled)} cancelled, {len(self.too_late)} too late"
        return f"{len(self.accepted)} accepted, {len(self.unsure)} unsure, {stopped}, answers {dict(self.answers)}"


class Load:
    """Clients that post and read at `address()`, which may change, for as long as the block runs.

    `pause` are the seconds between two posts of one client: 0 for as many as the service takes.
    """

    def __init__(
        self,
        ledger: Ledger,
        population: Population,
        dice: random.Random,
        address: Callable[[], tuple[str, int]],
        pause: float = 0.0,
    ) -> None:
        self.ledger = ledger
        self._population = population
        self._dice = dice
        self._address = address
        self._pause_of_posts = pause
        self._stopping = asyncio.Event()
        self._clients: list[asyncio.Task[None]] = []
        self._unanswered: Post | None = None
        self._keys = f"load {self._dice.getrandbits(64):x}"  # another load uses other keys
        self._service = mint_service(SECRET, "crm", ["events:write"], DAY)
        self._users = [mint_user(SECRET, user, DAY) for user in READERS]

    async def __aenter__(self) -> Self:
        steps = [*[self._post_to_few] * POSTERS, self._post_to_a_crowd, self._read_all]
        steps += [self._post_batch, self._post_under_a_key, self._post_and_cancel, self._post_until_answered]
        self._clients = [asyncio.create_task(self._keep(step)) for step in steps]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        await asyncio.gather(*self._clients)

    async def more(self, events: int) -> None:
        """Wait until this number of further events is accepted."""
        await self._until("202", events)

    async def refused(self, events: int) -> None:
        """Wait until this number of further events is rejected because of the outage."""
        await self._until("503", events)

    async def _until(self, answer: str, more: int) -> None:
        enough = self.ledger.answers[answer] + more
        await until(lambda: self.ledger.answers[answer] >= enough)

    async def _keep(self, step: "Callable[[_Line], Awaitable[None]]") -> None:
        """Run steps in sequence, with a new connection after each disconnect."""
        while not self._stopping.is_set():
            with contextlib.suppress(*_BROKEN):
                line = _Line(*await asyncio.open_connection(*self._address()))
                try:
                    while not self._stopping.is_set():
                        await step(line)
                finally:
                    line.close()
            await self._pause(0.05)

    async def _post_to_few(self, line: "_Line") -> None:
        users = [self._dice.randint(1, 300) for _ in range(self._dice.choice((1, 1, 1, 1, 2, 5)))]
        await self._post(line, users, self._dice.sample(self._population.small, self._dice.choice((0, 0, 0, 1, 2))))
        if self._pause_of_posts:
            await self._pause(self._dice.uniform(0, 2 * self._pause_of_posts))

    async def _post_to_a_crowd(self, line: "_Line") -> None:
        await self._post(line, [self._dice.randint(1, 300)], [self._dice.choice(self._population.crowds)])
        await self._pause(self._dice.uniform(*PAUSE_OF_CROWDS) + 20 * self._pause_of_posts)

    async def _read_all(self, line: "_Line") -> None:
        await line.ask("PUT", "/notifications/read", self._dice.choice(self._users))
        await self._pause(0.02)

    async def _post_batch(self, line: "_Line") -> None:
        batch = str(len(self.ledger.posts))
        posts = [self.ledger.write(self._few(), batch=batch) for _ in range(self._dice.randint(2, 30))]
        answer = await self._ask(line, "POST", "/events/batch", {"events": [_event(post) for post in posts]})
        if answer:
            self.ledger.accept(answer["ids"], posts)
        await self._pause(0.05 + 5 * self._pause_of_posts)

    async def _post_under_a_key(self, line: "_Line") -> None:
        """Post, now or held for a moment, what replaces what was posted before under one of a few keys."""
        key = f"key {self._dice.randint(1, 10)}"
        await self._post(line, self._few(), key=key, ahead=self._dice.choice((0.0, 0.5, 1.0)))
        await self._pause(0.03)

    async def _post_and_cancel(self, line: "_Line") -> None:
        id_ = await self._post(line, self._few(), ahead=self._dice.choice((0.0, 0.3, 2.0)))
        await self._pause(self._dice.choice((0.0, 0.02, 0.3)))
        if id_:
            cancelled = await self._ask(line, "DELETE", f"/events/{id_}")
            if cancelled is not None:
                (self.ledger.too_late if cancelled else self.ledger.cancelled).add(id_)

    async def _post_until_answered(self, line: "_Line") -> None:
        """Post, and repeat the request with its `Idempotency-Key` until there is an answer, also over a new line."""
        if self._unanswered is None:
            self._unanswered = self.ledger.write(self._few())
        post = self._unanswered
        answer = await self._ask(
            line, "POST", "/events", _event(post), f"Idempotency-Key: {self._keys} {post.words}\r\n"
        )
        if answer:
            self.ledger.accept([answer["id"]], [post])
            self._unanswered = None
        await self._pause(0.03)

    def _few(self) -> list[int]:
        return [self._dice.randint(1, 300) for _ in range(self._dice.choice((1, 1, 2)))]

    async def _post(
        self, line: "_Line", users: Sequence[int], teams: Sequence[int] = (), *, ahead: float = 0, **more: str
    ) -> str | None:
        post = self.ledger.write(users, teams, **more)
        answer = await self._ask(line, "POST", "/events", _event(post, ahead))
        if not answer:
            return None
        id_: str = answer["id"]
        self.ledger.accept([id_], [post])
        return id_

    async def _ask(self, line: "_Line", method: str, path: str, body: Any = None, headers: str = "") -> Any:
        """Return the response, None if the service could not answer."""
        sent = b"" if body is None else json.dumps(body).encode()
        try:
            status, told = await line.ask(method, path, self._service, sent, headers)
        except _BROKEN as error:
            self.ledger.answers[type(error).__name__] += 1
            raise
        self.ledger.answers[str(status)] += 1
        if status in {202, 204, 409}:
            return json.loads(told or b"{}")
        assert status in {500, 503}, told
        await self._pause(0.02)
        return None

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


@dataclass(slots=True)
class _Line:
    """One connection that stays open: HTTP/1.1, and no more of it than a load needs."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, method: str, path: str, token: str, body: bytes = b"", headers: str = "") -> tuple[int, bytes]:
        """Return the status and body of the answer; raises one of `_BROKEN`."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: tocsin\r\nAuthorization: Bearer {token}\r\n{headers}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        async with asyncio.timeout(SLOWEST):
            self.writer.write(head.encode() + body)
            answer = await self.reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(answer)
            return int(answer.split(b" ", 2)[1]), await self.reader.readexactly(int(length[1]) if length else 0)

    def close(self) -> None:
        self.writer.transport.abort()


async def drained(url: str, seconds: float = 180) -> None:
    """Wait until no job is left, also during an outage."""
    left: Any = None
    try:
        async with asyncio.timeout(seconds):
            while left != 0:
                with contextlib.suppress(*DRIVER_ERRORS):
                    left = await value(url, "select count(*) from jobs")
                await asyncio.sleep(0.05)
    except TimeoutError:
        jobs = await _rows(url, "select j.*, w.seen_at from jobs j left join workers w on w.id = j.worker_id limit 5")
        raise AssertionError(f"After {seconds} s there are {left} jobs: {jobs}") from None


def _event(post: Post, ahead: float = 0) -> dict[str, Any]:
    """Return the body of a post that is held for this number of seconds."""
    due = {"deliver_at": (datetime.now(UTC) + timedelta(seconds=ahead)).isoformat()} if ahead else {}
    key = {"key": post.key} if post.key else {}
    notify = {"users": post.users, "teams": post.teams}
    return {"type": "custom", "notify": notify, "params": {"body": post.words}, **key, **due}


async def tally(ledger: Ledger, population: Population, url: str) -> tuple[int, int]:
    """Return how many notifications that were promised are missing, and how many are there twice or unasked."""
    words, stopped = await _stored(url), await _stopped(url)
    lost = len(ledger.accepted.keys() - words.keys())
    doubled = len(words) - len(set(words.values()))
    told = {id_: said for id_, said in words.items() if id_ not in stopped and said in ledger.posts}
    due = _due(ledger, population, told)
    found = Counter(
        (row["id"], row["user_id"]) for row in await _rows(url, "select event_id::text as id, user_id from inbox")
    )
    return lost + (due - found).total(), doubled + (found - due).total()


async def promised_pushes(ledger: Ledger, population: Population, url: str) -> Counter[tuple[str, int]]:
    """Return whom pushes are due, by event and user."""
    due = _due(ledger, population, await _not_stopped(url))
    return Counter({(id_, user): count for (id_, user), count in due.items() if user in PHONES})


async def compare(ledger: Ledger, population: Population, url: str) -> None:
    """Compare the ledger with every inbox, exactly."""
    words, stopped = await _stored(url), await _stopped(url)
    sys.stdout.write(f"{ledger}, {len(words)} stored, {len(stopped)} stopped\n")
    lost = ledger.accepted.keys() - words.keys()
    assert not lost, f"{len(lost)} of {len(ledger.accepted)} were accepted and are not there: {sorted(lost)[:3]}"
    assert ledger.accepted.items() <= words.items()
    assert len(set(words.values())) == len(words), "a post was stored twice"
    assert {words[id_] for id_ in words.keys() - ledger.accepted.keys()} <= ledger.unsure
    _compare_batches(ledger, set(words.values()))
    _compare_stopped(ledger, words, stopped)
    told = {id_: said for id_, said in words.items() if id_ not in stopped}
    expected = {id_: population.recipients(ledger.posts[said]) for id_, said in told.items()}
    await _compare_entries(url, expected)
    await _compare_words(url, told)
    await _compare_teams(url, ledger, population, told)
    for broken, statement in _NEVER.items():
        assert await _rows(url, statement) == [], broken


async def compare_pages(ledger: Ledger, population: Population, url: str, address: tuple[str, int]) -> None:
    """Compare what some users are shown, page by page, with what they were sent."""
    posts = {id_: ledger.posts[said] for id_, said in (await _not_stopped(url)).items()}
    async with httpx.AsyncClient(base_url=f"http://{address[0]}:{address[1]}", timeout=30) as http:
        for user in (1, 7, 300, population.size):
            sent = [id_ for id_, post in posts.items() if user in population.recipients(post)]
            assert sorted(await _shown(http, user)) == sorted(sent)


def _due(ledger: Ledger, population: Population, words: Mapping[str, str]) -> Counter[tuple[str, int]]:
    """Return whom these events are due, by event and user."""
    return Counter((id_, user) for id_, said in words.items() for user in population.recipients(ledger.posts[said]))


async def _not_stopped(url: str) -> dict[str, str]:
    """Return the words of the events that were neither cancelled nor replaced."""
    stopped = await _stopped(url)
    return {id_: said for id_, said in (await _stored(url)).items() if id_ not in stopped}


async def _stored(url: str) -> dict[str, str]:
    rows = await _rows(url, "select id::text, params from events")
    return {row["id"]: json.loads(row["params"])["body"] for row in rows}


async def _stopped(url: str) -> dict[str, str | None]:
    """Return what was cancelled or replaced, and by what."""
    rows = await _rows(url, "select event_id::text as id, replaced_by::text as by from cancellations")
    return {row["id"]: row["by"] for row in rows}


def _compare_batches(ledger: Ledger, stored: set[str]) -> None:
    """A batch is there wholly or not at all."""
    batches: dict[str, set[bool]] = {}
    for post in ledger.posts.values():
        if post.batch:
            batches.setdefault(post.batch, set()).add(post.words in stored)
    assert batches
    assert [batch for batch, there in batches.items() if len(there) > 1] == []


def _compare_stopped(ledger: Ledger, words: dict[str, str], stopped: dict[str, str | None]) -> None:
    """What was cancelled stays so, what was too late was delivered, and a key's last post stands in the end."""
    assert ledger.cancelled
    assert ledger.cancelled <= stopped.keys()
    assert ledger.too_late.isdisjoint(stopped)
    posts = {id_: ledger.posts[said] for id_, said in words.items()}
    for id_, by in stopped.items():
        assert by is None or (posts[by].key == posts[id_].key and by > id_)
    last = {post.key: id_ for id_, post in sorted(posts.items()) if post.key}
    assert last
    assert last.keys() == {post.key for post in posts.values() if post.key}
    assert [id_ for id_ in last.values() if id_ in stopped] == []


async def _shown(http: httpx.AsyncClient, user: int) -> list[str]:
    headers = {"Authorization": f"Bearer {mint_user(SECRET, user, HOUR)}"}
    following, shown = "/notifications?per_page=100", []
    while following:
        page = (await http.get(following, headers=headers)).raise_for_status().json()
        shown += [entry["id"] for entry in page["data"]]
        following = page["pagination"]["urls"]["next"]
    assert page["pagination"]["total"] == len(shown)
    return shown


async def _compare_entries(url: str, expected: dict[str, list[int]]) -> None:
    """Whom an event reached, as the inboxes and as the list of its recipients have it: each of those concerned once."""
    entries = "select event_id::text as id, array_agg(user_id order by user_id) as users from inbox group by event_id"
    chunks = (
        "select event_id::text as id, array_agg(user_id order by user_id) as users"
        " from recipients cross join unnest(user_ids) as got (user_id) group by event_id"
    )
    for statement in (entries, chunks):
        found = {row["id"]: row["users"] for row in await _rows(url, statement)}
        wrong = [id_ for id_ in expected.keys() | found.keys() if expected.get(id_) != found.get(id_)]
        assert not wrong, _difference(wrong, expected.get(wrong[0], []), found.get(wrong[0], []))


def _difference(wrong: list[str], expected: list[int], found: list[int]) -> str:
    missing, strange = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    return f"{len(wrong)} events went wrong; {wrong[0]} missed {list(missing)[:5]} and doubled {list(strange)[:5]}"


async def _compare_words(url: str, words: dict[str, str]) -> None:
    said = await _rows(url, "select event_id::text as id, body from contents")
    assert {row["id"] for row in said} == words.keys()
    assert [row["id"] for row in said if f'"{words[row["id"]]}"' not in row["body"]] == []


async def _compare_teams(url: str, ledger: Ledger, population: Population, words: dict[str, str]) -> None:
    """Check the team through which each recipient got an event; 0 if they were named."""
    members = {0: set[int](), **{team: set(members) for team, members in population.teams.items()}}
    for row in await _rows(url, "select event_id::text as id, user_ids, team_ids from recipients"):
        post = ledger.posts[words[row["id"]]]
        for user, team in zip(row["user_ids"], row["team_ids"], strict=True):
            assert user in (members[team] if team else post.users)


_NEVER = {
    "a job is left": "select id from jobs",
    "a letter is dead": "select id, reason from dead_letters",
    "somebody was left out": "select event_id from recipients where dropped > 0",
    "an entry says nothing": """
        select i.event_id, i.user_id
        from inbox i left join contents c using (event_id, language)
        where c.event_id is null
    """,
    "a position is missing or taken twice": """
        select h.user_id
        from heads h
        left join (
            select user_id, position from inbox union all select user_id, position from changes
        ) p on p.user_id = h.user_id and p.position > h.forgotten
        group by h.user_id, h.position, h.forgotten
        having array_agg(p.position order by p.position) filter (where p.position is not null)
            is distinct from (select array_agg(n) from generate_series(h.forgotten + 1, h.position) n)
    """,
    "a count is wrong": """
        select h.user_id
        from heads h
        left join (
            select user_id, count(*) as total, count(*) filter (where read_at is null) as unread
            from inbox where deleted_at is null group by user_id
        ) i using (user_id)
        where (h.total, h.unread) is distinct from (coalesce(i.total, 0), coalesce(i.unread, 0))
    """,
    "time runs backwards": """
        select user_id
        from (
            select user_id, created_at, lag(created_at) over (partition by user_id order by position) as before
            from inbox
        ) i
        where created_at < before
    """,
}
"""What no row of these statements may show."""


async def _rows(url: str, statement: str) -> list[asyncpg.Record]:
    connection = await connect(url)
    try:
        return await connection.fetch(statement)
    finally:
        await connection.close()
