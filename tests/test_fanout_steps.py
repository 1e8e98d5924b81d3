"""One step of the fan-out: what a claim delivers at once, and what it leaves to later steps."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from tests.support.events import accepted, custom, post
from tests.support.pushes import ANDROID, register
from tests.support.service import Api
from tocsin import fanout, inbox, jobs
from tocsin.db.connections import Connection
from tocsin.fanout import Done, Pushes, Undeliverable
from tocsin.ids import MAX_ID, new_id
from tocsin.jobs import Job, Lost, Queue


async def populate(api: Api, count: int) -> None:
    """Insert users 1 to `count` of one company, who are all members of team 7."""
    await api.app_state.database.value(
        "with u as (insert into users select n, 1, 'F', 'L', null, null, 'UTC' from generate_series(1, $1) n"
        " returning id) insert into heads (user_id, locale, active) select id, 'en', true from u",
        count,
    )
    await api.team(7, *range(1, count + 1))


async def claim(api: Api, worker: UUID, queue: Queue = "direct") -> list[Job]:
    return await jobs.claim(api.app_state.database, worker, queue, 100)


async def deliver(api: Api, worker: UUID, leased: Sequence[Job], pushes: Pushes | None = None) -> Done:
    return await fanout.deliver(api.app_state.database, api.app_state.catalogue, worker, leased, pushes)


async def reached(api: Api, event: UUID) -> list[int]:
    rows = await api.app_state.database.rows("select user_id from inbox where event_id = $1 order by 1", event)
    return [row["user_id"] for row in rows]


async def job_of(api: Api, event: UUID) -> tuple[Any, ...] | None:
    row = await api.app_state.database.row("select lane, progress, attempts, worker_id from jobs where id = $1", event)
    return tuple(row) if row else None


@pytest.mark.parametrize("count", [1, 99, 100, 101])
async def test_event_with_more_than_100_recipients_moves_to_the_bulk_queue(idle: Api, count: int) -> None:
    await populate(idle, count)
    event, worker = await accepted(idle, teams=[7]), new_id()
    done = await deliver(idle, worker, await claim(idle, worker))
    everyone = list(range(1, count + 1))
    if count > 100:
        assert done == Done([], set())
        assert await reached(idle, event) == []
        assert await job_of(idle, event) == ("bulk", 0, 0, None)
        done = await deliver(idle, worker, await claim(idle, worker, "bulk"))
    assert done == Done([event], set(everyone))
    assert await reached(idle, event) == everyone
    assert await job_of(idle, event) is None


@pytest.mark.parametrize(("count", "is_large"), [(1_000, False), (1_001, True)])
@pytest.mark.parametrize("field", ["teams", "excepted"])
async def test_event_that_names_more_than_1000_ids_moves_to_the_bulk_queue(
    idle: Api, field: str, count: int, *, is_large: bool
) -> None:
    await populate(idle, 2)
    event, worker = await accepted(idle, 1), new_id()
    await idle.app_state.database.value(
        f"update events set {field} = array(select 1000 + n from generate_series(2, $1::int) n)", count
    )
    done = await deliver(idle, worker, await claim(idle, worker))
    if is_large:
        assert done == Done([], set())
        assert await job_of(idle, event) == ("bulk", 0, 0, None)
        done = await deliver(idle, worker, await claim(idle, worker, "bulk"))
    assert done.user_ids == {1}
    assert await reached(idle, event) == [1]


async def test_text_is_rendered_once_for_all_recipients_of_a_language(idle: Api) -> None:
    await populate(idle, 3)
    await idle.people(4, 5, locale="da")
    event = await accepted(idle, *range(1, 6))
    async with idle.app_state.database.transaction() as connection:
        [found] = await inbox.enter(connection, [(event, 0, MAX_ID)], ["en", "da"], [], is_bulk=False)
    assert sorted(found["languages"]) == ["da", "en"]
    assert sorted(found["user_ids"]) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("users", "teams", "count"),
    [([1, 6, 8], [7, 9], 5), ([], [9], 2), ([2, 6, 7], [], 2), ([5], [], 0)],
    ids=["users and teams", "one team", "users", "nobody who is active"],
)
async def test_large_chunk_writes_what_a_small_one_writes(
    idle: Api, users: list[int], teams: list[int], count: int
) -> None:
    await populate(idle, 7)
    await idle.people(8, locale="da")
    await idle.team(9, 3, 4, 8)
    await register(idle, 3, "ab" * 32)
    await idle.app_state.database.value("update heads set active = false where user_id in (4, 5)")
    event = await accepted(idle, *users, teams=teams, **{"except": [2]})
    small, large = [await written(idle, event, is_bulk=is_bulk) for is_bulk in (False, True)]
    assert large == small
    assert len(large["inbox"]) == count


async def written(api: Api, event: UUID, *, is_bulk: bool) -> dict[str, list[Any]]:
    """Enter an event, and return what it answers and writes, without times; then undo it."""
    async with api.app_state.database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        lanes = ["apns/default"]
        entered = await inbox.enter(connection, [(event, 0, MAX_ID)], ["en", "da"], lanes, is_bulk=is_bulk)
        found: dict[str, list[Any]] = {
            "answer": [
                {**each, "languages": sorted(each["languages"]), "user_ids": sorted(each["user_ids"])}
                for each in entered
            ]
        }
        for table, times in (
            ("heads", "{last_at}"), ("inbox", "{created_at}"), ("deliveries", "{due_at,made_at,is_bulk}")
        ):  # fmt: skip
            rows = await connection.fetch(f"select (to_jsonb(t) - '{times}'::text[])::text as row from {table} t")
            found[table] = sorted(row["row"] for row in rows)
        rows = await connection.fetch("select after_user, user_ids, team_ids, reached, dropped from recipients")
        found["recipients"] = [
            (after, sorted(zip(user_ids, team_ids, strict=True)), *counts)
            for after, user_ids, team_ids, *counts in rows
        ]
        await transaction.rollback()
    return found


async def test_unknown_team_that_an_event_skipped_gets_nothing_when_it_is_created(idle: Api) -> None:
    await idle.people(1, 2)
    event, worker = await accepted(idle, 1, teams=[7], unknown="skip"), new_id()
    await idle.team(7, 2)
    assert await deliver(idle, worker, await claim(idle, worker)) == Done([event], {1})
    assert await reached(idle, event) == [1]


async def test_large_event_delays_those_after_it_in_its_batch_only(idle: Api) -> None:
    await populate(idle, 101)
    batch = [custom(1), custom(teams=(7,)), custom(2), custom(3)]
    answer = await idle.as_service("POST", "/events/batch", json={"events": batch})
    first, large, third, fourth = [UUID(id_) for id_ in answer.json()["ids"]]
    single, worker = await accepted(idle, 4), new_id()
    done = await deliver(idle, worker, await claim(idle, worker))
    assert done == Done([first, single], {1, 4})
    assert await job_of(idle, large) == ("bulk", 0, 0, None)
    assert [await job_of(idle, each) for each in (third, fourth)] == [("direct", 0, 0, None)] * 2
    assert await claim(idle, worker) == []
    assert (await deliver(idle, worker, await claim(idle, worker, "bulk"))).events == [large]
    assert await deliver(idle, worker, await claim(idle, worker)) == Done([third, fourth], {2, 3})
    assert await idle.ids(2) == [str(third), str(large)]


async def test_chunk_is_halved_after_each_failure_down_to_a_64th(idle: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "BULK_CHUNK_SIZE", 128)
    await populate(idle, 300)
    event, worker = await accepted(idle, teams=[7]), new_id()
    await deliver(idle, worker, await claim(idle, worker))
    at = 0
    for failures, size in ((0, 128), (1, 64), (2, 32), (5, 4), (6, 2), (7, 2), (20, 2)):
        await idle.app_state.database.value("update jobs set attempts = $1", failures)
        done = await deliver(idle, worker, await claim(idle, worker, "bulk"))
        assert done == Done([], set(range(at + 1, at + size + 1)))
        at += size
        assert await job_of(idle, event) == ("bulk", at, 0, None)
    assert await reached(idle, event) == list(range(1, at + 1))
    done = await deliver(idle, worker, await claim(idle, worker, "bulk"))
    assert done == Done([event], set(range(at + 1, 301)))


async def test_chunks_count_each_recipient_once_and_none_that_is_excluded(
    idle: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "BULK_CHUNK_SIZE", 61)
    await populate(idle, 300)
    named, excluded = range(2, 150, 2), range(5, 300, 5)
    event, worker = await accepted(idle, *named, teams=[7], **{"except": list(excluded)}), new_id()
    await deliver(idle, worker, await claim(idle, worker))
    recipients = sorted(set(range(1, 301)) - set(excluded))
    assert recipients[60] in named  # the chunk ends with one that is named and in the team
    while len(recipients) >= 61:
        done = await deliver(idle, worker, await claim(idle, worker, "bulk"))
        assert done == Done([], set(recipients[:61]))
        del recipients[:61]
    assert await deliver(idle, worker, await claim(idle, worker, "bulk")) == Done([event], set(recipients))


async def test_chunk_that_ends_with_a_named_user_reaches_that_user(idle: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "BULK_CHUNK_SIZE", 51)
    await populate(idle, 102)
    event, worker = await accepted(idle, *range(1, 103)), new_id()
    await deliver(idle, worker, await claim(idle, worker))
    for reached_last in (51, 102):
        done = await deliver(idle, worker, await claim(idle, worker, "bulk"))
        assert done == Done([], set(range(reached_last - 50, reached_last + 1)))
    assert await deliver(idle, worker, await claim(idle, worker, "bulk")) == Done([event], set())


async def test_large_event_without_a_batch_delays_no_other(idle: Api) -> None:
    await populate(idle, 101)
    large, single, worker = await accepted(idle, teams=[7]), await accepted(idle, 1), new_id()
    assert await deliver(idle, worker, await claim(idle, worker)) == Done([single], {1})
    assert await job_of(idle, large) == ("bulk", 0, 0, None)


async def test_chunk_that_ends_with_the_last_recipient_is_followed_by_an_empty_one(
    idle: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "BULK_CHUNK_SIZE", 101)
    await populate(idle, 101)
    event, worker = await accepted(idle, teams=[7]), new_id()
    await deliver(idle, worker, await claim(idle, worker))
    assert await deliver(idle, worker, await claim(idle, worker, "bulk")) == Done([], set(range(1, 102)))
    assert await deliver(idle, worker, await claim(idle, worker, "bulk")) == Done([event], set())
    assert len(await reached(idle, event)) == 101


async def test_dispatcher_is_woken_only_if_there_is_a_push(idle: Api) -> None:
    await populate(idle, 2)
    await register(idle, 1, "ab" * 32)
    lane = await idle.app_state.database.value("select lane from devices")
    woken: list[int] = []
    worker = new_id()
    for user, lanes, expected in ((2, [lane], []), (1, [], []), (1, ["apns/other"], []), (1, [lane], [1])):
        await accepted(idle, user)
        await deliver(idle, worker, await claim(idle, worker), Pushes(lanes, lambda: woken.append(1)))
        assert woken == expected
    await accepted(idle, 1)
    await deliver(idle, worker, await claim(idle, worker))
    assert await idle.app_state.database.value("select count(*) from deliveries") == 1


async def test_each_device_in_one_of_the_lanes_gets_a_push(idle: Api) -> None:
    await populate(idle, 1)
    for token, more in (("ab" * 32, {}), ("cd" * 32, {"environment": "sandbox"}), (ANDROID, {"type": "Android"})):
        await register(idle, 1, token, **more)
    await accepted(idle, 1)
    lanes, worker = ["apns/default", "fcm/default", "web/default"], new_id()
    await deliver(idle, worker, await claim(idle, worker), Pushes(lanes, lambda: None))
    found = await idle.app_state.database.rows("select lane from deliveries order by lane")
    assert [row["lane"] for row in found] == lanes[:2]


async def test_event_that_reaches_no_inbox_is_recorded_with_its_dropped_recipients(idle: Api) -> None:
    await populate(idle, 2)
    await idle.people(3, active=False)
    await idle.team(8)
    moved = {**custom(2), "notify": {"users": [2], "except": [2]}}
    events = [
        await accepted(idle, teams=[8]),
        await accepted(idle, 3),
        await accepted(idle, 1, **{"except": [1]}),
        UUID((await post(idle, moved, company_id=1)).json()["id"]),
    ]
    await idle.people(2, company_id=2)
    worker = new_id()
    assert await deliver(idle, worker, await claim(idle, worker)) == Done(events, set())
    rows = await idle.app_state.database.rows("select event_id, user_ids, reached, dropped from recipients")
    assert {row["event_id"]: tuple(row)[1:] for row in rows} == dict(
        zip(events, [([], 0, dropped) for dropped in (0, 1, 0, 0)], strict=True)
    )


@pytest.mark.parametrize("languages", [["en", "pt", "pt-BR"], ["en", "pt-BR", "pt"]])
async def test_language_is_the_most_specific_of_the_locale_or_the_first(idle: Api, languages: list[str]) -> None:
    locales = {"pt-BR": "pt-BR", "pt_br": "pt-BR", "PT-PT": "pt", "pt": "pt", "ptx": "en", "de-AT": "en"}
    await populate(idle, len(locales))
    database = idle.app_state.database
    await database.value(
        "update heads set locale = l.locale from unnest($1::text[]) with ordinality l (locale, id) where user_id = id",
        list(locales),
    )
    event = await accepted(idle, teams=[7])
    async with database.transaction() as connection:
        await inbox.enter(connection, [(event, 0, MAX_ID)], languages, [], is_bulk=False)
    rows = await database.rows("select locale, language from inbox join heads using (user_id)")
    assert {row["locale"]: row["language"] for row in rows} == locales


async def test_step_without_the_lease_delivers_nothing(idle: Api) -> None:
    await populate(idle, 1)
    event, worker = await accepted(idle, 1), new_id()
    leased = await claim(idle, worker)
    with pytest.raises(Lost):
        await deliver(idle, new_id(), leased)
    assert await reached(idle, event) == []
    assert await job_of(idle, event) == ("direct", 0, 1, worker)


async def test_event_of_an_unknown_kind_is_undeliverable(idle: Api) -> None:
    await populate(idle, 1)
    event, worker = await accepted(idle, 1), new_id()
    await idle.app_state.database.value("update events set kind = 'of_yesterday'")
    with pytest.raises(Undeliverable, match="cannot render of_yesterday in en"):
        await deliver(idle, worker, await claim(idle, worker))
    assert await reached(idle, event) == []


async def test_events_behind_a_locked_inbox_are_found_by_users_and_teams(idle: Api, dba: Connection) -> None:
    await populate(idle, 3)
    await idle.team(8, 1, 3)
    named, other = await accepted(idle, 3), await accepted(idle, 1)
    in_team, apart = await accepted(idle, teams=[8]), await accepted(idle, 2)
    await idle.team(9, 2)
    other_team, large = await accepted(idle, teams=[9]), await accepted(idle, 3)
    await idle.app_state.database.value(
        "update events set excepted = array(select 1000 + n from generate_series(1, 1000) n) where id = $1", large
    )
    leased = await claim(idle, new_id())
    assert {job.id for job in leased} == {named, other, in_team, apart, other_team, large}
    for few in (leased, leased[:1]):
        assert await fanout.behind_locks(idle.app_state.database, few) == []
    async with dba.transaction():
        await dba.execute("select from heads where user_id = 3 for update")
        found = await fanout.behind_locks(idle.app_state.database, leased)
        assert [job.id for job in found] == [job.id for job in leased if job.id in {named, in_team}]
        for job in found:
            assert await fanout.behind_locks(idle.app_state.database, [job]) == [job]
        unaffected = [job for job in leased if job.id in {other, apart, other_team}]
        assert await fanout.behind_locks(idle.app_state.database, unaffected) == []
