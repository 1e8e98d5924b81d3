-- name: server
-- The properties of the server.
select current_setting('server_version_num')::int / 10000 as version,
    current_setting('server_encoding') as encoding,
    array(
        select name
        from unnest(array['fsync', 'full_page_writes', 'synchronous_commit']) as name
        where current_setting(name) = 'off'
    ) as off,
    extract(epoch from clock_timestamp())::double precision as clock

-- name: wait_for_locks
select set_config('lock_timeout', $1, false)

-- name: dead_letters
-- They are counted up to a limit.
select count(*) from (select from dead_letters limit 1000) dead

-- name: queues
-- How long the oldest due job of each queue has waited.
select lanes.lane as queue, extract(epoch from now() - least(oldest.due_at, now()))::double precision as waited
from unnest(array['direct', 'bulk']) as lanes (lane)
left join lateral (
    select due_at from jobs where lane = lanes.lane and worker_id is null order by due_at, id limit 1
) oldest on true
order by waited desc, queue
