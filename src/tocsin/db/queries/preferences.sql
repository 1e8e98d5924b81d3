-- What users chose to be told of, and when.

-- name: load
-- Scalar sub-query, so that each is a look-up by key, however many there are and whatever the planner expects.
select u.id, u.time_zone, (select p.chosen from preferences p where p.user_id = u.id) as chosen
from users u
where u.id = any($1::int[])

-- name: one
select u.time_zone, (select p.chosen from preferences p where p.user_id = u.id) as chosen
from heads h
join users u on u.id = h.user_id
where h.user_id = $1 and h.active

-- name: hold_owner
-- One change of a user's preferences at a time, so that none is lost: there may be no row of theirs yet. The user's row,
-- which an erasure takes first too, and not the head, which deliveries need.
select id from users where id = $1 for no key update

-- name: put
insert into preferences (user_id, chosen) values ($1, $2)
on conflict (user_id) do update set chosen = excluded.chosen

-- name: forget
delete from preferences where user_id = $1
