-- Devices: the phones and browsers of users.
--
-- Devices are locked in the order of their tokens, after the users that a transaction needs. So there is no deadlock.

-- name: register
-- A token belongs to the user who registered it last; nothing of the previous user is kept. Returns the id of a device of the
-- same user that has another lane now. A new token takes the id of the device that it replaces, and so its pushes.
with put as (
    insert into devices (token, whole_token, user_id, type, provider, environment, app, p256dh, auth, id)
    values (device_key($2), nullif($2, device_key($2)), $1, $3, $4, $5, $6, $7, $8, coalesce($9, gen_random_uuid()))
    on conflict (token) do update
    set user_id = excluded.user_id, type = excluded.type, provider = excluded.provider,
        environment = excluded.environment, app = excluded.app, p256dh = excluded.p256dh, auth = excluded.auth,
        registered_at = clock_timestamp(),
        id = case when devices.user_id = excluded.user_id then devices.id else excluded.id end,
        told_up_to = case when devices.user_id = excluded.user_id then devices.told_up_to end,
        last_delivered_at = case when devices.user_id = excluded.user_id then devices.last_delivered_at end
    returning id, lane
)
select put.id from put where put.id = $9 or (select was.lane <> put.lane from devices was where was.id = put.id)

-- name: follow
-- Send the pushes that wait for a device through the lane that it has now. Those that are claimed or recorded are skipped: here,
-- devices are locked before deliveries.
with waiting as materialized (
    select d.event_id, d.device_id, v.lane
    from (select id, user_id, lane from devices where id = $1) v
    cross join lateral (
        select event_id, device_id
        from deliveries
        where user_id = v.user_id and device_id = v.id and lane <> v.lane and worker_id is null
          and state in ('queued', 'later', 'held')
        for update skip locked
    ) d
)
update deliveries d
set lane = waiting.lane
from waiting
where d.event_id = waiting.event_id and d.device_id = waiting.device_id

-- name: clear_phones
-- A last clear for the phones of users, or for one of them, if their lane is served.
insert into last_clears (token, type, environment, app, registered_at, lane)
select coalesce(d.whole_token, d.token), d.type, d.environment, d.app, d.registered_at, d.lane
from unnest($1::int[]) as leaving (id)
cross join lateral (select * from devices where user_id = leaving.id offset 0) d
join lanes l on l.name = d.lane and l.stopped_at is null
where is_phone(d.type)
  and ($2::text is null or d.token = device_key($2) or (d.token = lower($2) and d.provider = 'apns'))

-- name: lock_in_order
-- Lock two devices in the order of their tokens.
select token from devices
where token in (device_key($1), device_key($2))
order by token collate "C"
for update

-- name: detach
-- APNs tokens are not case-sensitive.
delete from devices where user_id = $1 and (token = device_key($2) or (token = lower($2) and provider = 'apns'))
returning id

-- name: detach_all
delete from devices
where token = any(array(select token from devices where user_id = $1 order by token collate "C" for update))

-- name: hold_owner
-- Lock the user, so that registrations run one at a time and the limit holds. It is the user's row, which an erasure locks
-- first too, and not the head, which deliveries lock.
select id from users where id = $1 for no key update

-- name: is_active
-- Read after the lock: an earlier snapshot may be out of date.
select active from heads where user_id = $1

-- name: keep
-- The devices above the limit, unused for longest, are removed. Locked ones are skipped: they are moving to another
-- user, or are removed the next time.
delete from devices
where token = any(array(
    select token from devices
    where user_id = $1 and token in (
        select token from devices
        where user_id = $1
        order by greatest(registered_at, last_delivered_at) desc, token
        offset $2::int
    )
    for update skip locked
))

-- name: devices
select type, environment, app, right(token, 6) as token_ending, registered_at, last_delivered_at
from devices
where user_id = $1
order by registered_at desc, token

-- name: user
select id from users where id = $1 and ($2::int is null or company_id = $2)

-- name: by_ending
-- Devices by the last characters of their token, with their owners. APNs tokens are not case-sensitive.
select d.user_id, d.type, d.environment, d.app, d.lane, right(d.token, 6) as token_ending, d.registered_at,
       d.last_delivered_at
from devices d
where right(d.token, 6) = any(array[$1, lower($1)]) and (right(d.token, 6) = $1 or d.provider = 'apns')
  and ($2::int is null or (select u.company_id = $2 from users u where u.id = d.user_id))
order by d.registered_at desc
limit $3
