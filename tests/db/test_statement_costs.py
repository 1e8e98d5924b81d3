"""No statement compares each row with each other row, for any statistics of its tables.

Statements are planned with parameters of unknown length: on tables that were never analyzed, on full ones, and on ones
that were empty when last vacuumed, like a queue, after a worker has updated their statistics.
A plan may use an index or a hash. A list that is scanned once for each row
of another is quadratic, and so is an array that is compared with each row: 100,000 of both stop the service. Arrays of
lanes and of languages are short.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.support.database import make_database, url_for
from tests.support.service import Api
from tests.support.statements import STATEMENTS
from tests.support.waiting import until
from tocsin.db.connections import Connection, connect
from tocsin.db.planner_statistics import correct_with
from tocsin.db.statements import queries
from tocsin.postgres.supervisor import Embedded

BOUNDED = {
    ("cell_leases", "look"): "a row for each worker process",
    ("cell_leases", "processes"): "a row for each worker process",
    ("cells", "counts"): "a count that an operator asks for",
    ("console_sessions", "of_token"): "the last two tokens of one session",
    ("devices", "keep"): "one user's devices",
    ("directory", "failed"): "the events that failed within thirty days, once in an erasure",
    ("directory", "mask"): "one chunk of at most 10,000 recipients for each of 2,000 events",
    ("directory", "put_users"): "the teams of at most 2,500 users",
    ("deliveries", "counts"): "the companies that are moving",
    ("deliveries", "lanes"): "a row for each worker",
    ("deliveries", "of_person"): "a row for each worker, for the pushes of one event to one user",
    ("deliveries", "stopped"): "a row for each worker",
    ("event_status", "event"): "the companies that are moving",
    ("event_status", "person"): "the recipients of one event, compared with one user",
    ("event_status", "readers"): "the companies that are moving",
    ("explain", "devices"): "one user's devices, and a row for each worker",
    ("explain", "events"): "the last 5,000 events, compared with one user",
    ("fanout", "behind_locks"): "at most 100 heads that others hold",
    ("inbox", "changes"): "a language is compared with that of the one row that was looked up",
    ("inbox", "changes_of_one"): "the same",
    ("inbox", "one"): "the languages of one event",
    ("invariants", "indexes"): "a row for each index",
    ("jobs", "depth"): "one row for each job that is due",
    ("jobs", "end_hanging"): "a row for each session",
    ("jobs", "finish"): "at most 200 jobs are claimed",
    ("jobs", "first_others"): "at most 1,000 events of a batch and 200 jobs that are claimed",
    ("jobs", "hand_back"): "at most 200 jobs are claimed",
    ("jobs", "hold"): "at most 200 jobs are claimed",
    ("jobs", "reap"): "a row for each worker",
    ("jobs", "reap_deliveries"): "a row for each worker",
    ("jobs", "lanes_of_workers"): "a row for each worker",
    ("jobs", "workers"): "a row for each worker",
    ("moving", "busy"): "a row for each import and resolution under way",
    ("moving", "failed"): "a row for each erasure and resolution under way, some times in a move",
    ("moving", "forget_jobs"): "a look at all jobs, once in a move",
    ("moving", "forget_rest"): "a look at the keys of a day, once in a move",
    ("moving", "has_company"): "a look at all teams, once in a move",
    ("moving", "lock_deliveries"): "a look at all users, once in a move",
    ("moving", "forget_rewritten"): "a row for each event that an erasure changed, once in a move",
    ("moving", "note_rewritten"): "a row for each erasure and resolution under way",
    ("moving", "pending"): "a look at all jobs, some times in a move",
    ("moving", "release"): "a look at all users, once in a move",
    ("moving", "whereabouts"): "a row for each company that moved",
    ("moving", "stash_posts"): "a look at the posted events that wait, once in a move",
    ("moving", "stash_rest"): "a look at all users, once in a move",
    ("posts", "taken"): "at most 200 jobs are claimed",
    ("rate_limits", "take"): "at most 200 keys are asked for",
    ("resolutions", "except"): "one row with the teams of the users",
    ("retention", "imports"): "a row for each import under way",
    ("readiness", "lockers"): "the sessions that lock a whole table, and those before them",
    ("readiness", "problems"): "a row for each worker",
    ("readiness", "row_lockers"): "the locks of idle transactions",
    ("readiness", "running"): "a row for each worker",
    ("readiness", "stopped_lanes"): "a row for each worker",
}
"""Statements whose plan looks quadratic, and what bounds it."""

REPLANNED = {
    "few executions, by an operator or a task": {
        ("deliveries", "claim_last_clears"),
        ("deliveries", "dead"),
        ("deliveries", "lanes"),
        ("deliveries", "replay"),
        ("deliveries", "replay_lane"),
        ("event_status", "customs"),
        ("event_status", "person"),
        ("inbox", "count_history"),
        ("inbox", "recount"),
        ("inbox", "remove_records"),
        ("jobs", "forget_workers"),
        ("jobs", "requeue"),
    },
    "only after changes of users and devices, or errors": {
        ("deliveries", "drop"),
        ("deliveries", "note_closed"),
        ("deliveries", "put_back"),
        ("deliveries", "release_held"),
        ("devices", "clear_phones"),
        ("fanout", "behind_locks"),
        ("inbox", "put_heads"),
        ("streams", "close"),
    },
    "simple: a plan takes about 20 us": {
        ("deliveries", "claim_clears"),
        ("deliveries", "phones"),
        ("events", "name_keys"),
        ("events", "posted"),
        ("inbox", "heads"),
        ("inbox", "lock"),
        ("inbox", "position"),
        ("posts", "forget"),
        ("preferences", "load"),
    },
}
"""The statements of `HOT` that PostgreSQL plans for each execution, by the reason why that is acceptable."""

HOT = {"deliveries", "devices", "event_status", "events", "fanout", "idempotency"}
HOT |= {"inbox", "jobs", "posts", "preferences", "rate_limits", "streams"}
"""The modules whose statements are executed for each request, event or push."""

ROWS = 20_000

FULL = f"""
insert into users (id, company_id, first_name, last_name, time_zone)
    select i, 1, 'First', 'Last', 'UTC' from generate_series(1, {ROWS}) i;
insert into heads (user_id, locale, active) select id, 'en', true from users;
insert into teams (id, company_id, name) select i, 1, 'Team' from generate_series(1, 200) i;
insert into members (team_id, user_id) select 1 + id % 199, id from users union all select 200, id from users;
insert into devices (token, user_id, type, provider, environment, app)
    select md5(id::text), id, 'iOS', 'apns', 'production', 'default' from users;
insert into events (id, kind, data, params, users, teams, subjects)
    select gen_random_uuid(), 'custom', '{{}}', '{{}}', array[i], '{{}}', array['case:' || i / 3]
    from generate_series(1, 5000) i;
insert into subjects (subject, event_id) select subjects[1], id from events;
insert into contents (event_id, language, body) select id, 'en', '' from events;
insert into inbox (position, created_at, read_at, event_id, user_id, language)
    select row_number() over (partition by u), now(), case when u % 2 = 0 then now() end, id, u, 'en'
    from events cross join generate_series(1, 10) u;
insert into recipients (event_id, after_user, user_ids, team_ids, reached, dropped)
    select event_id, 0, array_agg(user_id), array_agg(0), count(*), 0 from inbox group by event_id;
insert into changes (user_id, position, change, event_ids) select user_id, position, 'read', array[event_id] from inbox;
insert into clears (user_id, since) select id, 0 from users;
insert into last_clears (token, type, environment, app, registered_at, lane)
    select token, type, environment, app, registered_at, lane from devices;
-- The plan of a claim must not depend on how many jobs become due while the tests run.
insert into jobs (id, task, lane, due_at)
    select gen_random_uuid(), 'deliver', (array['bulk', 'direct'])[1 + i % 2], now() + make_interval(days => i)
    from generate_series(0, {ROWS}) i;
insert into dead_letters (id, task, lane, attempts, progress, reason)
    select gen_random_uuid(), 'deliver', 'direct', 8, 0, '' from generate_series(1, 2000);
insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending, state, settled_at)
    select i.event_id, d.id, d.user_id, d.lane, false, 'iOS', '', (array['queued', 'dead'])[1 + d.user_id % 2],
           case when d.user_id % 2 = 1 then now() end
    from inbox i join devices d using (user_id);
insert into cancellations (event_id) select id from dead_letters;
insert into posted (id, event_id, role, service, key, body)
    select gen_random_uuid(), gen_random_uuid(), 'crm', 'crm', i::text, '{{}}' from generate_series(1, 2000) i;
insert into posted_people (user_id, id) select number, id from posted;
insert into event_keys (service, company_id, key, event_id) select 'crm', 0, id::text, id from events;
insert into idempotency_keys (caller, method, path, key, digest, status, body)
    select 'user ' || id, 'POST', '/notifications', '', '', 202, '' from users;
insert into preferences (user_id, chosen) select id, '{{}}' from users;
insert into rate_limits (name, key, ends_at, used) select 'user-requests', id::text, now(), 1 from users;
insert into audit_entries (id, action, caller, company_id, details)
    select gen_random_uuid(), 'custom_sent', 'user ' || id, company_id, '{{}}' from users;
insert into imports (id, state, company_id) select gen_random_uuid(), 'checking', 1;
insert into import_lines (import_id, number, part, user_id, body, event_id, happened_at)
    select imports.id, row_number() over (), part, case when part <> 'team' then users.id end, '{{}}',
           gen_random_uuid(), now()
    from imports, users, unnest('{{user,device,notification,team}}'::text[]) as part;
"""

STATES = ("empty", "vacuumed", "full", "drained")
"""What the planner may know: nothing; that all tables were empty; that they are full; that the queues were empty."""

QUEUES = ("jobs", "dead_letters", "posted", "deliveries", "changes", "clears", "imports", "import_lines", "event_keys")


@pytest.fixture(scope="module")
async def databases(server: Embedded) -> AsyncIterator[dict[str, Connection]]:
    connections = {name: await connect(await make_database(server, f"costs_{name}")) for name in STATES}
    for name in ("full", "drained"):
        await connections[name].execute(FULL)
    await connections["drained"].execute(f"truncate {', '.join(QUEUES)}")
    for name in ("vacuumed", "full", "drained"):
        await connections[name].execute("vacuum analyze")
        await correct_with(connections[name])
    for connection in connections.values():
        await connection.execute("set plan_cache_mode = force_generic_plan")
    yield connections
    for connection in connections.values():
        await connection.close()
    connection = await connect(url_for(server, "tocsin"))
    for name in connections:
        await connection.execute(f"drop database costs_{name} with (force)")
    await connection.close()


async def plan_of(connection: Connection, module: str, name: str) -> dict[str, Any]:
    statement = queries(module)[name]
    parameters = (await connection.prepare(statement)).get_parameters()
    await connection.execute(f'prepare "{module}/{name}" as {statement}')
    nothing = f"({', '.join('null' for _ in parameters)})" if parameters else ""
    plan = await connection.fetchval(f'explain (format json, verbose) execute "{module}/{name}"{nothing}')
    found: dict[str, Any] = json.loads(plan)[0]["Plan"]
    return found


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


def quadratic(plan: dict[str, Any]) -> Iterator[str]:
    """Return the nodes of a plan that scan a list or an array for each row of another."""
    text = json.dumps(plan)
    for node in nodes(plan):
        kind = node["Node Type"]
        for condition in (node.get("Filter", ""), node.get("Join Filter", "")):
            long = re.sub(r"ANY \(\(?[^)]*hashed SubPlan|\.(lane|language) = ANY", "", condition)
            if re.search(r" (ALL|ANY) \((?!')", long):
                yield f"an array is compared with each row: {condition}"
        if kind == "Seq Scan":
            yield f"all of a table is read: {node['Relation Name']}"
        if kind == "Nested Loop":
            outer, inner = (part for part in node["Plans"] if part["Parent Relationship"] in {"Outer", "Inner"})
            looked_up = any(re.search(r"= \(?\w+\.\w+", each.get("Index Cond", "")) for each in nodes(inner))
            if "Join Filter" in node and not looked_up:
                yield f"each is compared with each: {node['Join Filter']}"
            elif any(each["Node Type"] == "CTE Scan" for each in nodes(inner)) and outer["Node Type"] != "Result":
                yield f"a list is gone through for each row: {inner}"
        if node.get("Parent Relationship") == "SubPlan" and f"hashed {node.get('Subplan Name')}" not in text:
            yield from read_for_each_row(node)


def read_for_each_row(subplan: dict[str, Any]) -> Iterator[str]:
    """Return what a subplan that is executed for each row reads as a whole."""
    for node in nodes(subplan):
        if node["Node Type"] == "CTE Scan":
            yield f"a list is gone through for each row: {node['CTE Name']}"
        if node["Node Type"].startswith("Index") and "Index Cond" not in node:
            yield f"all of an index is read for each row: {node['Index Name']}"


@pytest.mark.parametrize("filled", STATES)
@pytest.mark.parametrize(("module", "name"), STATEMENTS)
async def test_no_statement_is_quadratic_in_its_arrays(
    databases: dict[str, Connection], module: str, name: str, filled: str
) -> None:
    found = list(quadratic(await plan_of(databases[filled], module, name)))
    if module == "invariants":  # deep checks read every row, but each only once
        found = [each for each in found if not each.startswith("all of a table is read")]
    assert not found or (module, name) in BOUNDED, "\n".join(found)


SAMPLES = {"int4": "5", "int8": "7", "float8": "1", "bool": "true", "timestamptz": "now()", "text": "'en'"}


def sample(type_name: str, id_: str) -> str:
    """Return a value of a type as SQL: a list has one item, for which a plan of its own is cheapest."""
    item = type_name.removesuffix("[]")
    value = f"'{id_}'" if item == "uuid" else SAMPLES.get(item, f"null::{item}")
    return f"array[{value}]::{type_name}" if type_name != item else value


@pytest.mark.parametrize(("module", "name"), [each for each in STATEMENTS if each[0] in HOT])
async def test_statement_of_each_request_keeps_its_plan(
    databases: dict[str, Connection], module: str, name: str
) -> None:
    """Planning takes up to ten times as long as the execution. EXPLAIN chooses between plans like an execution."""
    connection = databases["full"]
    await connection.execute("set plan_cache_mode = auto")
    try:
        id_ = await connection.fetchval("select event_id::text from inbox where user_id = 5 limit 1")
        types = [each.name for each in (await connection.prepare(queries(module)[name])).get_parameters()]
        values = f"({', '.join(sample(each, id_) for each in types)})" if types else ""
        await connection.execute(f"prepare kept as {queries(module)[name]}")
        for _ in range(7):
            await connection.execute(f"explain execute kept{values}")
        is_kept = await connection.fetchval("select generic_plans > 0 from pg_prepared_statements where name = 'kept'")
    finally:
        await connection.execute("deallocate kept")
        await connection.execute("set plan_cache_mode = force_generic_plan")
    assert is_kept != any((module, name) in statements for statements in REPLANNED.values())


async def test_claim_looks_up_each_device_once_however_long_its_backlog_is(databases: dict[str, Connection]) -> None:
    connection, worker = databases["full"], "00000000-0000-0000-0000-000000000001"
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "update deliveries d set worker_id = $1 from"
        " (select distinct on (device_id) event_id, device_id from deliveries where state = 'queued') first"
        " where d.event_id = first.event_id and d.device_id = first.device_id",
        worker,
    )
    await connection.execute(f"prepare claim as {queries('deliveries')['claim']}")
    text = await connection.fetchval(
        f"explain (format json, analyze) execute claim('{worker}', 'apns/default', false, 100)"
    )
    await transaction.rollback()
    [due] = [node for node in nodes(json.loads(text)[0]["Plan"]) if node.get("Index Name") == "deliveries_due"]
    [busy] = [node for node in nodes(json.loads(text)[0]["Plan"]) if node.get("Index Name") == "deliveries_under_way"]
    assert due["Actual Rows"] > 20_000
    assert busy["Actual Loops"] <= 10


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("inbox", "remove_range"),
        ("inbox", "remove_records"),
        ("retention", "forget_range"),
        ("retention", "forget_related"),
        ("retention", "old_in_range"),
    ],
)
async def test_retention_looks_up_its_rows_however_many_the_planner_expects(
    databases: dict[str, Connection], server: Embedded, module: str, name: str
) -> None:
    assert databases
    connection = await connect(url_for(server, "costs_full"))
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("set local plan_cache_mode = force_generic_plan")
    await connection.execute(
        "update pg_class set reltuples = reltuples * 1000 where relkind = 'r' and relname ~ '^(events|recipients)_'"
    )
    found = {node["Node Type"] for node in nodes(await plan_of(connection, module, name))}
    await transaction.rollback()
    await connection.close()
    assert not found & {"Hash Join", "Merge Join", "Hash"}


async def test_planner_has_no_second_index_of_a_few_rows_of_a_queue(databases: dict[str, Connection]) -> None:
    """Two indexes of the same few rows cost the same to a planner that expects none: it may read all by one."""
    found = await databases["full"].fetch(
        "select indrelid::regclass::text, pg_get_expr(indpred, indrelid) from pg_index"
        " where indrelid = any($1::regclass[]) and indpred is not null group by 1, 2 having count(*) > 1",
        ["jobs", "deliveries"],
    )
    assert not found


async def test_statistics_of_empty_table_are_updated_and_plans_renewed(api: Api) -> None:
    """A running worker updates the statistics, and statements get new plans."""
    database = api.app_state.database
    await database.value("vacuum tocsin.jobs")
    assert await database.value("select reltuples from pg_class where oid = 'tocsin.jobs'::regclass") == 0
    known = "select reltuples <> 0 from pg_class where oid = 'tocsin.jobs'::regclass"
    await until(lambda: database.value(known))
