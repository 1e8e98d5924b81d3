-- Registrations: when tokens were registered last, compared with those of other databases.

-- name: seen
select noted_at from seen_registrations where cell = $1

-- name: see
insert into seen_registrations as s (cell, noted_at) values ($1, $2)
on conflict (cell) do update set noted_at = greatest(s.noted_at, excluded.noted_at)

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
-- Remove the devices whose tokens were registered in another cell later. A token that came there with an earlier time after that cell
-- had looked, by an import or the move of a company, is noted here again, so that it is found at the next look from there. The time
-- of the device itself is compared, because it may be registered at this moment. The limit is the length of the list. It shows
-- the planner that it is short, so that it keeps its plan.
with given as materialized (
    select *
    from unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) as given (digest, registered_at, noted_at)
    limit $4::bigint
),
again as (
    update registrations set noted_at = clock_timestamp()
    where digest = any(array(
        select r.digest
        from given
        join registrations r on r.digest = given.digest
        where r.registered_at > given.registered_at and r.noted_at < given.noted_at
        for update of r skip locked
    ))
)
delete from devices
where token = any(array(
    select d.token
    from given later
    cross join lateral (
        select device_id from registrations where digest = later.digest and left_at is null offset 0
    ) r
    join devices d on d.id = r.device_id
    where d.registered_at < later.registered_at
    order by d.token collate "C"
    for update of d
))
returning user_id
