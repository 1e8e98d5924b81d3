-- Registrations: when tokens were registered last, compared with those of other databases.

-- name: seen
select noted_at from seen_registrations where cell = $1

-- name: see
insert into seen_registrations as s (cell, noted_at) values ($1, $2)
on conflict (cell) do update set noted_at = greatest(s.noted_at, excluded.noted_at)

-- name: look_again
update seen_registrations set noted_at = noted_at - interval '1 day' where cell <> ''

-- name: add_older
-- Add the next devices after a token, of before there were registrations; returns the last token.
with page as materialized (
    select token, id, registered_at from devices where token > $1 order by token limit $2
),
added as (
    insert into registrations (digest, device_id, registered_at)
    select md5(token), id, registered_at from page
    on conflict do nothing
)
select max(token) from page

-- name: later
select digest, registered_at, noted_at
from registrations
where (noted_at, digest) > ($1, $2)
order by noted_at, digest
limit $3

-- name: release
-- Remove the devices whose tokens were registered in another cell later. The limit is the length of the list. It shows the planner
-- that it is short, so that it keeps its plan.
delete from devices
where token = any(array(
    select d.token
    from (select * from unnest($1::text[], $2::timestamptz[]) as given (digest, registered_at) limit $3::bigint) later
    cross join lateral (
        select device_id from registrations
        where digest = later.digest and registered_at < later.registered_at and left_at is null
        offset 0
    ) r
    join devices d on d.id = r.device_id
    order by d.token collate "C"
    for update of d
))
returning user_id
