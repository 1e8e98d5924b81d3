"""The data of a service after some time of use: users, teams, and inboxes with all kinds of notification."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import UUID

from tocsin.catalogue import Catalogue
from tocsin.db.connections import Connection
from tocsin.notifications import body_of, to_json

FIRST = 1_001
"""The lowest id of the users here; the acting users of the samples have lower ones."""

LANGUAGE = "en"

ROWS = 1_000_000
"""About how many rows of inboxes a statement inserts."""

_NOBODY = UUID(int=0)


async def users(connection: Connection, count: int) -> range:
    """Add users to the directory and return their ids."""
    ids = range(FIRST, FIRST + count)
    await connection.execute(
        """
        with added as (
            insert into users (id, company_id, first_name, last_name, time_zone)
            select id, 1, 'First' || id, 'Last' || id, 'UTC' from generate_series($1::int, $2::int) as named (id)
            returning id
        )
        insert into heads (user_id, locale, active) select id, $3, true from added
        """,
        ids.start,
        ids.stop - 1,
        LANGUAGE,
    )
    return ids


async def devices(connection: Connection, owners: range, environment: str = "production") -> None:
    """Give each of these users an iPhone."""
    await connection.execute(
        """
        insert into devices (token, user_id, type, provider, environment, app)
        select md5(id::text) || md5('x' || id), id, 'iOS', 'apns', $3, 'default'
        from generate_series($1::int, $2::int) as named (id)
        """,
        owners.start,
        owners.stop - 1,
        environment,
    )


async def team(connection: Connection, id_: int, members: range) -> None:
    """Add a team of these users to the directory."""
    await connection.execute("insert into teams (id, company_id, name) values ($1, 1, 'Everyone')", id_)
    await connection.execute(
        "insert into members (team_id, user_id) select $1, id from generate_series($2::int, $3::int) as named (id)",
        id_,
        members.start,
        members.stop - 1,
    )


async def notifications(connection: Connection, count: int) -> None:
    """Insert this many events, of all kinds in turn; `inboxes` on the same connection distributes them."""
    await connection.execute(
        "create temp table pool as select number, uuidv7() as event_id from generate_series(0, $1 - 1) as number",
        count,
    )
    await connection.execute("create unique index on pool (number)")
    await connection.execute("analyze pool")
    samples = list(_samples())
    await connection.execute(
        """
        insert into events (id, kind, data, params, users, teams, subjects)
        select event_id, ($1::text[])[at], ($2::text[])[at], ($3::text[])[at], '{}', '{}', '{}'
        from pool
        cross join lateral (select 1 + number % cardinality($1::text[]) as at) sample
        order by number
        """,
        *([sample[part] for sample in samples] for part in ("kind", "data", "params")),
    )
    await connection.execute(
        """
        insert into contents (event_id, language, body)
        select event_id, $1, replace(($2::text[])[1 + number % cardinality($2::text[])], $3, event_id::text)
        from pool
        order by number
        """,
        LANGUAGE,
        [sample["body"] for sample in samples],
        str(_NOBODY),
    )


async def inboxes(connection: Connection, owners: range, size: int, *, unread: int) -> None:
    """Fill the inboxes of these users in turn; the `unread` oldest notifications are unread."""
    step = max(1, ROWS // len(owners))
    for first in range(1, size + 1, step):
        await connection.execute(
            """
            insert into inbox (position, created_at, read_at, event_id, user_id, language)
            select position, now() - make_interval(mins => $3::int - position), case when position > $4 then now() end,
                   pool.event_id, owner.id, $5
            from generate_series($1::int, $2::int) as owner (id)
            cross join generate_series($6::int, $7::int) as position
            join pool
                on pool.number = ((owner.id - $1::int)::bigint * $3::int + position - 1) % (select count(*) from pool)
            order by position, owner.id
            """,
            owners.start,
            owners.stop - 1,
            size,
            unread,
            LANGUAGE,
            first,
            min(first + step - 1, size),
        )
    await connection.execute(
        """
        update heads set position = $3::int, total = $3::int, unread = $4, last_at = now()
        where user_id between $1 and $2
        """,
        owners.start,
        owners.stop - 1,
        size,
        unread,
    )


@asynccontextmanager
async def indexes_afterwards(connection: Connection) -> AsyncIterator[None]:
    """Build the indexes of inboxes after the block, since rows of many users in turn write each page again."""
    indexes = await connection.fetch(
        "select indexdef from pg_indexes where tablename = 'inbox' and indexname <> 'inbox_pkey'"
    )
    await connection.execute(
        "alter table inbox drop constraint inbox_pkey; drop index inbox_deleted, inbox_read, inbox_unread"
    )
    yield
    await connection.execute("set maintenance_work_mem = '1GB'")
    await connection.execute("alter table inbox add primary key (user_id, event_id)")
    for index in indexes:
        await connection.execute(index["indexdef"].replace(" ON ONLY ", " ON "))  # of the partitions too


async def history(connection: Connection, owners: range, size: int) -> None:
    """Create an inbox for each of these users, and the planner statistics of a database in use.

    Statements that were planned when their tables were known to be empty would read all of them, however they grow.
    """
    await notifications(connection, len(owners) * size)
    await inboxes(connection, owners, size, unread=size)
    await settle(connection)


async def announcements(connection: Connection, owners: range, size: int) -> None:
    """Fill these inboxes with events of the company that all of the users have got, in records of a chunk each."""
    await notifications(connection, size)
    await connection.execute("update events set company_id = 1")
    await inboxes(connection, owners, size, unread=size)
    await connection.execute(
        """
        insert into recipients (event_id, after_user, user_ids, team_ids, reached, dropped, delivered_at)
        select event_id, first - 1, user_ids, array_fill(1, array[n]), n, 0, now()
        from pool
        cross join generate_series($1::int, $2::int, 10000) as first
        cross join lateral (select array(select generate_series(first, least(first + 9999, $2))) as user_ids) chunk
        cross join lateral (select cardinality(user_ids) as n) counted
        """,
        owners.start,
        owners.stop - 1,
    )
    await settle(connection)


async def settle(connection: Connection) -> None:
    """Run maintenance that the database would otherwise do during a measurement."""
    await connection.execute("vacuum analyze")
    await connection.execute("checkpoint")


def _samples() -> Iterator[dict[str, str]]:
    """Return the columns of a sample of each kind, and its text with an id to be replaced."""
    catalogue = Catalogue.load()
    for kind, sample in catalogue.samples.items():
        event = sample["event"]
        columns = {"kind": kind, "data": to_json(event["data"]), "params": to_json(event.get("params", {}))}
        yield {**columns, "body": body_of(catalogue, {**columns, "id": _NOBODY, "erased": False}, LANGUAGE)}
