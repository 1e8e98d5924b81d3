-- Preferences: the choices of users.

-- name: load
-- A scalar subquery, so that each row is looked up by key, independent of the planner's estimates.
select u.id, u.time_zone, (select p.chosen from preferences p where p.user_id = u.id) as chosen
from users u
where u.id = any($1::int[])

-- name: one
select u.time_zone, (select p.chosen from preferences p where p.user_id = u.id) as chosen
from heads h
join users u on u.id = h.user_id
where h.user_id = $1 and h.active

-- name: hold_owner
-- Serializes changes of a user's preferences, of which there may be no row yet. It locks the row of the user, as an
-- erasure does first, and not the head, which deliveries need.
select id from users where id = $1 for no key update

-- name: put
insert into preferences (user_id, chosen) values ($1, $2)
on conflict (user_id) do update set chosen = excluded.chosen

-- name: forget
delete from preferences where user_id = $1

-- name: hold_locks
-- Lock the row of the locked preferences until the end of the transaction, and return them.
insert into preference_locks (id, locked) values (1, '{}')
on conflict (id) do update set locked = preference_locks.locked
returning locked

-- name: put_locks
update preference_locks set locked = $1 where id = 1
