"""Requests at the size limits are answered in time and do not delay others."""

import json
import time
from uuid import UUID

import pytest

from tests.support.service import Api, serving
from tocsin import fanout, jobs
from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection
from tocsin.db.pool import Database
from tocsin.ids import new_id

PEOPLE = 50_000
UNKNOWN = 200_000
JSON = {"Content-Type": "application/json"}

pytestmark = pytest.mark.slow


@pytest.fixture
async def large(idle: Api, dba: Connection) -> Api:
    """A company of 50,000 users, without a worker."""
    await dba.fetch(
        """
        with added as (
            insert into users (id, company_id, first_name, last_name, time_zone)
            select i, 1, 'First', 'Last', 'UTC' from generate_series(1, $1::int) i
            returning id
        )
        insert into heads (user_id, locale, active) select id, 'en', true from added
        """,
        PEOPLE,
    )
    return idle


async def test_import_of_large_team_is_checked_in_time(url: str, catalogue: Catalogue, large: Api) -> None:
    line = {"team": {"id": 7, "name": "Everybody", "company_id": 1, "users": list(range(1, 20_001))}}
    headers = {"Content-Type": "application/x-ndjson"}
    async with serving(url, catalogue):
        answer = await large.as_service("POST", "/directory/import", content=json.dumps(line), headers=headers)
    assert answer.status_code == 200, answer.text
    assert len((await large.as_service("GET", "/directory/teams/7")).json()["users"]) == 20_000


async def test_team_of_all_users_is_replaced_in_time(large: Api) -> None:
    for users in (range(1, PEOPLE + 1), range(1, PEOPLE + 1), range(2, PEOPLE, 2)):
        team = {"name": "Everybody", "company_id": 1, "users": list(users)}
        answer = await large.as_service("PUT", "/directory/teams/7", json=team)
        assert answer.status_code == 204, answer.text
    assert (await large.as_service("GET", "/directory/teams/7")).json()["users"] == list(range(2, PEOPLE, 2))


async def test_batch_that_skips_all_recipients_is_stored_in_time(large: Api) -> None:
    ids = list(range(UNKNOWN, UNKNOWN + 10_000))
    event = {"type": "custom", "notify": {"users": [1, *ids[1:]], "unknown": "skip"}, "params": {"body": "Hello"}}
    answer = await large.as_service("POST", "/events/batch", json={"events": [event] * 70})
    assert answer.status_code == 202, answer.text
    [stored] = await large.app_state.database.rows("select distinct users, skipped_users from events")
    assert stored["users"] == [1]
    assert stored["skipped_users"] == ids[1:]


async def test_refusing_unknown_recipients_costs_no_more_than_skipping_them(idle: Api) -> None:
    users = list(range(UNKNOWN, UNKNOWN + 10_000))
    seconds = {}
    for unknown, status in (("skip", 202), ("refuse", 422)):
        event = {"type": "custom", "notify": {"users": users, "unknown": unknown}, "params": {"body": "Hello"}}
        content = json.dumps({"events": [event] * 20})
        began = time.process_time()
        answer = await idle.as_service("POST", "/events/batch", content=content, headers=JSON)
        seconds[unknown] = time.process_time() - began
        assert answer.status_code == status
    assert answer.json()["more"] == 20 * 10_000 - 100
    assert seconds["refuse"] < 4 * seconds["skip"]


async def test_events_with_many_recipients_do_not_delay_others(
    large: Api, database: Database, catalogue: Catalogue
) -> None:
    await large.team(7, *range(2, 1_000))
    named, left_out = list(range(2, 5_002)), list(range(2, 4_952))
    many = {"type": "custom", "notify": {"users": named, "except": left_out}, "params": {"body": "Many"}}
    for _ in range(30):
        assert (await large.as_service("POST", "/events", json=many)).status_code == 202
    few = {"type": "custom", "notify": {"users": [1]}, "params": {"body": "Few"}}
    one = UUID((await large.as_service("POST", "/events", json=few)).json()["id"])
    worker = new_id()
    await jobs.enrol(database, worker, "test")
    done = list[UUID]()
    while leased := await jobs.claim(database, worker, "direct", 200):
        done += (await fanout.deliver(database, catalogue, worker, leased)).events
    assert done == [one]
    assert await large.ids(1) == [str(one)]
    assert await database.value("select count(*) from jobs where lane = 'bulk'") == 30
    while leased := await jobs.claim(database, worker, "bulk", 1):
        await fanout.deliver(database, catalogue, worker, leased)
    reached = await database.rows("select distinct user_ids from recipients where reached > 1")
    assert [row["user_ids"] for row in reached] == [list(range(4_952, 5_002))]
