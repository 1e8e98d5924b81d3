-- Streams: the open ones of all processes.

-- name: open
-- Record streams that process $4 opened, and mark the oldest streams of users who then have more than $5. Streams that other
-- sessions record at the same time are not counted.
with new as materialized (
    select * from unnest($1::uuid[], $2::int[], $3::double precision[]) as n (id, user_id, ends_at) limit $6::bigint
),
recorded as (
    insert into streams (id, user_id, process_id, ends_at) select id, user_id, $4, to_timestamp(ends_at) from new
),
counted as materialized (
    select user_id, count(*) as n from new group by user_id
),
earlier as materialized (
    select s.id, c.n + row_number() over (partition by c.user_id order by s.opened_at desc, s.id desc) as place
    from counted c
    cross join lateral (
        select id, opened_at from streams where user_id = c.user_id and not is_over offset 0
    ) s
),
superfluous as materialized (
    select s.id
    from (select id from earlier where place > $5 order by id) e
    cross join lateral (select id from streams where id = e.id for no key update) s
)
update streams
set is_over = true, ends_at = least(ends_at, now() + interval '1 hour')
where id = any(array(select id from superfluous))

-- name: close
delete from streams where id = any($1::uuid[])

-- name: over
-- The streams that a process has to close.
select id from streams where process_id = $1 and is_over
