-- The relay: reads the outbox of an application, in its database. `notifications_outbox` stands for the name of its table.

-- name: table
-- The name of a table, quoted, with its schema if that is needed.
select $1::text::regclass::text

-- name: turn
-- A lock of the table $1 until the session ends, so that one relay at a time works.
select pg_try_advisory_lock(7420, hashtext($1))

-- name: waiting
select number, id::text as id, event::text as event
from notifications_outbox
where sent_at is null and refused is null
order by number
limit $1

-- name: sent
update notifications_outbox set sent_at = clock_timestamp() where number = any($1::bigint[])

-- name: refuse
update notifications_outbox set refused = $2 where number = $1

-- name: forget
-- Delete rows that were sent $1 days ago or earlier.
with old as (
    select number from notifications_outbox
    where sent_at < now() - make_interval(days => $1)
    order by sent_at
    limit 1000
)
delete from notifications_outbox o using old where o.number = old.number
