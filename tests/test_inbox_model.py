"""Property tests: the inbox and the directory agree with a small model after any operations."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.database import url_for, wipe
from tests.support.events import in_future
from tests.support.inboxes import MARKS, Follower, Step, listed, own_id, read_times, step, whiches
from tests.support.properties import at_most
from tests.support.service import Api
from tests.support.waiting import until
from tocsin.postgres.supervisor import Embedded

USERS, TEAMS, COMPANIES = (1, 2, 3, 4), (1, 2, 3), (1, 2)
KEYS = ("a", "b/ä")
PHONES = ("aa" * 32, "bb" * 32, "cc" * 32)
UNKNOWN = "00000000-0000-4000-8000-000000000000"


# --- The model -------------------------------------------------------------------------------------------------------


@dataclass
class Person:
    """A user; `inbox` says of each id, oldest first, whether it is unread, read or deleted."""

    company: int
    active: bool
    inbox: dict[str, str] = field(default_factory=dict)


@dataclass
class Team:
    company: int
    members: set[int]


@dataclass
class Event:
    """An event of a service that is bound to `company`, or of a user, who is then its `sender`."""

    body: dict[str, Any]
    company: int | None
    sender: int | None
    actor: int | None
    state: str = "queued"
    bound: int | None = None
    erased: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    reached: set[int] = field(default_factory=set)


@dataclass
class Model:
    """The expected state; each method applies one operation and returns its status."""

    people: dict[int, Person] = field(default_factory=dict)
    teams: dict[int, Team] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    keys: dict[tuple[int | None, str], str] = field(default_factory=dict)
    phones: dict[str, int] = field(default_factory=dict)

    def put_user(self, user: int, company: int, *, active: bool) -> int:
        person = self.people.setdefault(user, Person(company, active))
        person.company, person.active = company, active
        for team in self.teams.values():
            if team.company != company:
                team.members.discard(user)
        return 204

    def erase(self, user: int) -> int:
        if self.people.pop(user, None) is None:
            return 404
        self.host_detach(user, None)
        for team in self.teams.values():
            team.members.discard(user)
        for id_, event in self.events.items():
            event.erased.add(user)
            if event.reached == {user}:  # the key goes with the last recipient
                self.keys = {key: named for key, named in self.keys.items() if named != id_}
            event.reached.discard(user)
        return 204

    def put_team(self, team: int, company: int, users: Collection[int]) -> int:
        if self.unknown_ids(self.people, users, company):
            return 422
        self.teams[team] = Team(company, set(users))
        return 204

    def drop_team(self, team: int) -> int:
        if self.teams.pop(team, None) is None:
            return 404
        for event in self.events.values():
            event.dropped.add(team)
        return 204

    def enter(self, team: int, user: int) -> int:
        if team not in self.teams:
            return 404
        if self.unknown_ids(self.people, [user], self.teams[team].company):
            return 422
        self.teams[team].members.add(user)
        return 204

    def leave(self, team: int, user: int) -> int:
        if team not in self.teams:
            return 404
        self.teams[team].members.discard(user)
        return 204

    @staticmethod
    def unknown_ids(known: dict[int, Any], ids: Collection[int], company: int | None) -> bool:
        return any(id_ not in known or company not in {None, known[id_].company} for id_ in ids)

    def accept(self, event: Event) -> int:
        """Return the status of an event; `post` stores one that is accepted and new."""
        notify, id_ = event.body["notify"], event.body.get("id")
        before = self.events.get(id_) if id_ else None
        if not self.opens(event.sender):
            return 401
        if not notify["users"] and not notify["teams"]:
            return 422
        if before:
            return 202 if (before.body, before.company) == (event.body, event.company) else 409
        bound = self.people[event.sender].company if event.sender else event.company
        named = [*notify["users"], *([event.actor] if event.actor else [])]
        unknown = self.unknown_ids(self.people, named, bound) or self.unknown_ids(self.teams, notify["teams"], bound)
        return 422 if unknown else 202

    def post(self, id_: str, event: Event) -> None:
        self.events[id_] = event
        event.bound = self.people[event.sender].company if event.sender else event.company
        if key := event.body.get("key"):
            before = self.events.get(self.keys.get((event.company, key), ""))
            self.keys[event.company, key] = id_
            if before and before.state == "held":
                before.state = "cancelled"
        if "deliver_at" in event.body:
            event.state = "held"
        else:
            self.deliver(id_)

    def deliver(self, id_: str) -> None:
        event = self.events[id_]
        notify = event.body["notify"]
        teams = [self.teams[team] for team in notify["teams"] if team in self.teams.keys() - event.dropped]
        members = {user for team in teams if event.bound in {None, team.company} for user in team.members}
        named = {user for user in notify["users"] if user in self.people}
        named = {user for user in named - event.erased if event.bound in {None, self.people[user].company}}
        for user in (named | members - {event.actor}) - set(notify["except"]):
            if self.people[user].active:
                self.people[user].inbox[id_] = "unread"
                event.reached.add(user)
        event.state = "delivered"

    def cancel(self, id_: str | None, company: int | None) -> int:
        event = self.events.get(id_ or "")
        if event is None or event.sender or company not in {None, event.company}:
            return 404
        if event.state == "delivered":
            return 409
        event.state = "cancelled"
        return 204

    def opens(self, user: int | None) -> bool:
        return user is None or (user in self.people and self.people[user].active)

    def mark(self, user: int, id_: str, what: str) -> int:
        if not self.opens(user):
            return 401
        inbox = self.people[user].inbox
        if id_ not in inbox:
            return 404
        if inbox[id_] == "deleted":
            return 204 if what == "deleted" else 410
        inbox[id_] = what
        return 204

    def read_all(self, user: int, up_to: str | None) -> int:
        if not self.opens(user):
            return 401
        inbox = list(self.people[user].inbox)
        if up_to and up_to not in inbox:
            return 422
        return self.read_some(user, inbox[: inbox.index(up_to) + 1] if up_to else inbox)

    def read_some(self, user: int, ids: Collection[str]) -> int:
        if not self.opens(user):
            return 401
        for id_ in ids:
            self.mark(user, id_, "read")
        return 204

    def register(self, user: int, phone: str, replaces: str | None) -> int:
        if not self.opens(user):
            return 401
        if replaces != phone:
            self.detach(user, replaces or "")
        self.phones.pop(phone, None)
        self.phones[phone] = user
        return 204

    def detach(self, user: int, phone: str) -> int:
        if not self.opens(user):
            return 401
        return self.host_detach(user, phone)

    def host_detach(self, user: int, phone: str | None) -> int:
        self.phones = {each: whose for each, whose in self.phones.items() if whose != user or phone not in {None, each}}
        return 204 if user in self.people else 404

    def listed(self, user: int) -> list[tuple[str, bool]]:
        inbox = self.people[user].inbox
        return [(id_, what == "read") for id_, what in reversed(inbox.items()) if what != "deleted"]


# --- One step after the other ---------------------------------------------------------------------------------------


class World:
    """Applies each step to the service and to the model, and compares the responses."""

    def __init__(self, api: Api) -> None:
        self.api, self.model, self.later = api, Model(), in_future()
        self.starts: dict[int, str] = {}
        self.followers: dict[int, Follower] = {}
        self.former: list[tuple[int, str]] = []
        self.read_at: dict[int, dict[str, Any]] = {}

    async def do(self, step: Step) -> None:
        name, given_ = step
        await getattr(self, name)(**given_)

    async def host(self, expected: int, method: str, path: str, company: int | None = None, **more: Any) -> Any:
        answer = await self.api.as_service(method, path, company_id=company, **more)
        return self.agreed(answer, expected)

    async def user(self, expected: int, user: int, method: str, path: str, **more: Any) -> Any:
        return self.agreed(await self.api.as_user(user, method, f"/notifications{path}", **more), expected)

    @staticmethod
    def agreed(answer: httpx.Response, expected: int) -> Any:
        assert answer.status_code == expected, f"{answer.request.method} {answer.request.url}: {answer.text}"
        return answer.json() if answer.content else None

    def named(self, which: int, likely: Collection[str]) -> str:
        """Return the id of a likely event, sometimes of any event, or an unknown one."""
        ids = list(likely) if likely and which < 7 else [*self.model.events, UNKNOWN]
        return ids[which % len(ids)]

    def of_inbox(self, user: int, which: int) -> str:
        person = self.model.people.get(user)
        return self.named(which, person.inbox if person else ())

    def held(self) -> list[str]:
        return [id_ for id_, event in self.model.events.items() if event.state == "held"]

    async def put_user(self, user: int, company: int, *, active: bool) -> None:
        body = {"first_name": "A", "last_name": "B", "company_id": company, "active": active}
        await self.host(self.model.put_user(user, company, active=active), "PUT", f"/directory/users/{user}", json=body)
        if active and user not in self.starts:
            self.followers[user] = await Follower.of(self.api, user)
            self.starts[user] = self.followers[user].cursor

    async def come_back(self) -> None:
        """Restore all erased and inactive users."""
        for user in USERS:
            if not self.model.opens(user):
                await self.put_user(user, 1 + user // 3, active=True)

    async def erase(self, user: int) -> None:
        await self.host(self.model.erase(user), "DELETE", f"/directory/users/{user}")
        await until(
            lambda: self.api.app_state.database.value("select not exists (select from jobs where task = 'erase')")
        )
        if user in self.starts:
            self.former.append((user, self.starts.pop(user)))
        self.read_at.pop(user, None)

    async def put_team(self, team: int, company: int, users: list[int]) -> None:
        body = {"name": "T", "company_id": company, "users": users}
        await self.host(self.model.put_team(team, company, users), "PUT", f"/directory/teams/{team}", json=body)

    async def drop_team(self, team: int) -> None:
        await self.host(self.model.drop_team(team), "DELETE", f"/directory/teams/{team}")

    async def enter(self, team: int, user: int) -> None:
        await self.host(self.model.enter(team, user), "PUT", f"/directory/teams/{team}/users/{user}")

    async def leave(self, team: int, user: int) -> None:
        await self.host(self.model.leave(team, user), "DELETE", f"/directory/teams/{team}/users/{user}")

    async def post(self, company: int | None, actor: int | None, *, held: bool, body: str, **more: Any) -> None:
        given_ = {name: value for name, value in more.items() if value is not None}
        data = {"user": actor} if actor else {}
        event = {"type": "custom", "data": data, "params": {"body": body}, **given_}
        if held:
            event["deliver_at"] = self.later
        expected = self.model.accept(new := Event(event, company, None, actor))
        answer = await self.host(expected, "POST", "/events", company, json=event)
        if expected == 202 and answer["id"] not in self.model.events:
            self.model.post(answer["id"], new)
            await self.settled(answer["id"])

    async def say(self, user: int, notify: dict[str, list[int]]) -> None:
        # `except` is for services: from a user it is an unknown field and is ignored
        meant = {"message": "Hello", "notify": {**notify, "except": []}}
        expected = self.model.accept(new := Event(meant, None, user, user))
        await self.user(expected, user, "POST", "", json={"message": "Hello", "notify": notify})
        if expected == 202:
            newest = "select id from events where service is null order by accepted_at desc limit 1"
            id_ = str(await self.api.app_state.database.value(newest))
            self.model.post(id_, new)
            await self.settled(id_)

    async def settled(self, id_: str) -> None:
        """Wait until an event is in its expected state."""
        wait = 0 if self.model.events[id_].state == "held" else 30
        answer = await self.api.as_service("GET", f"/events/{id_}?wait={wait}", "operations")
        assert answer.json()["state"] == self.model.events[id_].state

    async def come_due(self, which: int) -> None:
        """Make a held event due."""
        if held := self.held():
            id_ = held[which % len(held)]
            await self.api.app_state.database.value("update jobs set due_at = now() where id = $1", id_)
            self.api.app_state.pubsub.publish("direct")
            self.model.deliver(id_)
            await self.settled(id_)

    async def cancel(self, company: int | None, which: int) -> None:
        id_ = self.named(which, self.held())
        await self.host(self.model.cancel(id_, company), "DELETE", f"/events/{id_}", company)

    async def cancel_by_key(self, company: int | None, key: str) -> None:
        expected = self.model.cancel(self.model.keys.get((company, key)), company)
        await self.host(expected, "DELETE", f"/events/by-key/{key}", company)

    async def mark(self, user: int, which: int, what: str) -> None:
        id_ = self.of_inbox(user, which)
        method, path = MARKS[what]
        await self.user(self.model.mark(user, id_, what), user, method, f"/{id_}{path}")
        if what == "unread":
            self.read_at.get(user, {}).pop(id_, None)

    async def read_all(self, user: int, which: int | None) -> None:
        up_to = None if which is None else self.of_inbox(user, which)
        body = {"json": {"up_to": up_to}} if up_to else {}
        await self.user(self.model.read_all(user, up_to), user, "PUT", "/read", **body)

    async def read_some(self, user: int, some: list[int]) -> None:
        ids = [self.of_inbox(user, which) for which in some]
        await self.user(self.model.read_some(user, ids), user, "PUT", "/read", json={"ids": ids})

    async def register(self, user: int, phone: str, replaces: str | None) -> None:
        body = {"json": {"replaces": replaces}} if replaces else {}
        await self.user(self.model.register(user, phone, replaces), user, "POST", f"/devices/{phone}", **body)

    async def detach(self, user: int, phone: str) -> None:
        await self.user(self.model.detach(user, phone), user, "DELETE", f"/devices/{phone}")

    async def host_detach(self, user: int, phone: str | None) -> None:
        path = f"/directory/users/{user}/devices" + (f"/{phone}" if phone else "")
        await self.host(self.model.host_detach(user, phone), "DELETE", path)

    async def look(self, user: int) -> None:
        """Check that a user's inbox and phones equal the model, in the list and in the changes."""
        if not self.model.opens(user):
            for path in ("", "?show=unread", "/changes", "/devices", f"/{UNKNOWN}"):
                await self.user(401, user, "GET", path)
            return
        expected = self.model.listed(user)
        assert await listed(self.api, user) == expected
        for follower in (self.followers[user], Follower(self.api, user, self.starts[user])):
            unread = await follower.follow()
            assert (follower.listed(), unread) == (expected, sum(not read for _, read in expected))
        await self.look_at_the_rest(user)

    async def look_at_the_rest(self, user: int) -> None:
        times = await read_times(self.api, user)
        before = self.read_at.get(user, {})
        assert {id_: times[id_] for id_ in before if id_ in times} == {
            id_: before[id_] for id_ in before if id_ in times
        }
        self.read_at[user] = times
        phones = (await self.user(200, user, "GET", "/devices"))["data"]
        theirs = [phone[-6:] for phone, owner in reversed(self.model.phones.items()) if owner == user]
        assert [phone["token_ending"] for phone in phones] == theirs

    async def look_at_all(self) -> None:
        for team in TEAMS:
            there = self.model.teams.get(team)
            found = await self.host(200 if there else 404, "GET", f"/directory/teams/{team}")
            assert not there or (found["company_id"], set(found["users"])) == (there.company, there.members)
        for id_ in self.model.events:
            await self.settled(id_)
        for user in USERS:
            await self.look(user)
            person = self.model.people.get(user)
            if person and not person.active:
                await self.put_user(user, person.company, active=True)
                await self.look(user)
        for user, cursor in self.former:
            if self.model.opens(user):
                assert (await self.user(200, user, "GET", f"/changes?since={cursor}"))["resync"] is True


users, teams, companies = st.sampled_from(USERS), st.sampled_from(TEAMS), st.sampled_from(COMPANIES)
few_users = st.lists(users, max_size=3, unique=True)
phones = st.sampled_from(PHONES)
bound, seldom_bound = st.none() | companies, st.sampled_from([None, None, None, 1])


def notify(most: int) -> st.SearchStrategy[dict[str, list[int]]]:
    named, of_teams = st.lists(users, max_size=most, unique=True), st.lists(teams, max_size=most, unique=True)
    return st.fixed_dictionaries({"users": named, "teams": of_teams, "except": st.lists(users, max_size=1)})


def post(**given_: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    nothing = {"actor": st.none(), "key": st.none(), "id": st.none(), "held": st.just(value=False)}
    return step("post", **{"company": st.none(), "notify": notify(2), "body": st.just("x"), **nothing, **given_})


STEPS = st.one_of(
    post(),
    post(notify=notify(1), actor=users, company=bound),
    post(held=st.booleans(), key=st.sampled_from(KEYS), company=seldom_bound),
    post(notify=notify(1), held=st.booleans(), key=st.sampled_from(KEYS)),
    post(
        notify=st.just({"users": [1], "teams": [], "except": []}),
        held=st.booleans(),
        id=st.integers(0, 1).map(own_id),
        body=st.sampled_from("xy"),
    ),
    post(notify=notify(1), id=st.integers(0, 1).map(own_id), company=bound),
    post(notify=notify(1), held=st.just(value=True)),
    step("say", user=users, notify=notify(1)),
    *[step("come_due", which=whiches) for _ in range(2)],
    step("cancel", company=seldom_bound, which=whiches),
    step("cancel_by_key", company=seldom_bound, key=st.sampled_from(KEYS)),
    *[step("mark", user=users, which=whiches, what=st.sampled_from(list(MARKS))) for _ in range(3)],
    step("read_all", user=users, which=st.none() | whiches),
    step("read_some", user=users, some=st.lists(whiches, min_size=1, max_size=4)),
    step("put_user", user=users, company=companies, active=st.booleans()),
    *[step("come_back") for _ in range(2)],
    step("erase", user=st.sampled_from(USERS[1::2])),
    step("put_team", team=teams, company=companies, users=few_users),
    step("drop_team", team=st.just(3)),
    step("enter", team=teams, user=users),
    step("leave", team=teams, user=users),
    step("register", user=users, phone=phones, replaces=st.none() | phones),
    step("detach", user=users, phone=phones),
    step("host_detach", user=users, phone=st.none() | phones),
    step("look", user=users),
)

BEGINNING: list[Step] = [
    ("come_back", {}),
    ("put_team", {"team": 1, "company": 1, "users": [1, 2]}),
    ("put_team", {"team": 2, "company": 2, "users": [3]}),
    ("put_team", {"team": 3, "company": 2, "users": [3, 4]}),
    *[("say", {"user": user, "notify": {"users": [1, 2], "teams": [1], "except": []}}) for user in (1, 1, 2)],
    *[("say", {"user": user, "notify": {"users": [3, 4], "teams": [2], "except": []}}) for user in (3, 3, 4)],
]


def lives(most: int) -> st.SearchStrategy[list[Step]]:
    """Return sequences that are long, which lists seldom are, and still shrink to what matters."""
    return st.lists(st.none() | STEPS, min_size=most, max_size=most).map(lambda some: [each for each in some if each])


async def agree(api: Api, server: Embedded, steps: Sequence[Step]) -> None:
    await wipe(url_for(server, "busy"))
    world = World(api)
    for each in [*BEGINNING, *steps]:
        await world.do(each)
    await world.look_at_all()


@pytest.mark.slow
@at_most(20, soak=300)
@given(steps=lives(40))
async def test_inbox_matches_the_model_after_any_operations(
    busy_service: Api, server: Embedded, steps: list[Step]
) -> None:
    await agree(busy_service, server, steps)


@pytest.mark.slow
@at_most(8, soak=200)
@given(steps=lives(150))
async def test_inbox_matches_the_model_after_many_operations(
    busy_service: Api, server: Embedded, steps: list[Step]
) -> None:
    await agree(busy_service, server, steps)
