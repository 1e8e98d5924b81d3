-- The relay: reads the outbox of an application, in its database. `notifications_outbox` stands for the name of its table.

-- name: table
-- The name of a table, quoted, with its schema if that is needed.
select $1::text::regclass::text

-- name: turn
-- A lock of the table $1 until the session ends, so that one relay at a time works.
select pg_try_advisory_lock(7420, $1::text::regclass::oid::int)

-- name: waiting
-- The first waiting rows: at most $1, and the first one or as many as have $2 bytes. An event of more bytes is null. Rows are read
-- one by one, since all together may be too large for the memory.
with recursive taken (n, bytes, number, id, event) as (
    (
        select 1, octet_length(event::text), number, id, event
        from notifications_outbox
        where sent_at is null and refused is null
        order by number
        limit 1
    )
    union all
    select t.n + 1, t.bytes + octet_length(o.event::text), o.number, o.id, o.event
    from taken t
    cross join lateral (
        select number, id, event
        from notifications_outbox
        where sent_at is null and refused is null and number > t.number
        order by number
        limit 1
    ) o
    where t.n < $1::int and t.bytes < $2::int
)
select number, id::text as id, case when bytes <= $2 then event::text end as event
from taken
where n = 1 or bytes <= $2
order by number

-- name: sent
update notifications_outbox set sent_at = clock_timestamp() where number = any($1::bigint[])

-- name: refuse
update notifications_outbox set refused = $2 where number = $1

-- name: forget
-- Delete at most $2 rows that were sent $1 days ago or earlier, and return how many.
with old as (
    select number from notifications_outbox
    where sent_at < now() - make_interval(days => $1)
    order by sent_at
    limit $2
),
deleted as (
    delete from notifications_outbox o using old where o.number = old.number returning 1
)
select count(*) from deleted
