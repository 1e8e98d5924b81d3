-- Deliveries: claimed as far as the window has room, checked again, and settled.

-- name: claim
-- The oldest due deliveries of a lane, one per device, and none of a device that has one under way. Whether it has is
-- looked up by a join, so that the planner can keep the answer: a few devices with a long backlog are looked up once each.
with due as materialized (
    select d.event_id, d.device_id, d.due_at, d.state
    from deliveries d
    left join lateral (
        select true as is_busy from deliveries where device_id = d.device_id and worker_id is not null limit 1
    ) of_device on true
    where d.lane = (select $2::text) and d.is_bulk = (select $3::bool) and d.worker_id is null
      and d.state in ('queued', 'later', 'held') and d.due_at <= now() and of_device.is_busy is null
    order by d.due_at, d.event_id
    limit (select $4::bigint)
    for update of d skip locked
),
one as (
    select distinct on (device_id) event_id, device_id from due
    order by device_id, state = 'later' desc, due_at, event_id  -- the first of a bundle that failed, before those held for it
)
update deliveries d
set worker_id = $1, attempts = d.attempts + 1,
    -- the life of a push that was held begins when it is released
    made_at = case when d.state = 'held' then greatest(d.made_at, d.due_at) else d.made_at end
from one
where d.event_id = one.event_id and d.device_id = one.device_id
returning d.event_id, d.device_id, d.state, d.attempts

-- name: claim_held
-- The other held deliveries of these devices in this lane that are due, up to $4 of each: they are bundled. Locked ones are
-- skipped, as by `claim`: who releases held deliveries locks them in another order.
update deliveries d
set worker_id = $1, attempts = d.attempts + 1, made_at = greatest(d.made_at, d.due_at)
where (d.event_id, d.device_id) in (
    select held.event_id, held.device_id
    from (select unnest($2::uuid[]) as id limit cardinality($2::uuid[])) asked
    cross join lateral (
        select event_id, device_id from deliveries
        where device_id = asked.id and state = 'held' and worker_id is null and due_at <= now() and lane = $3
        limit (select $4::bigint)
        for update skip locked
    ) held
)
returning d.event_id, d.device_id, d.state, d.attempts

-- name: look
-- The current state of these deliveries. Each is looked up separately, independent of the planner's estimates.
select d.event_id, d.device_id, d.user_id, d.attempts, d.state, d.made_at, clock_timestamp() as looked_at,
       coalesce(v.whole_token, v.token) as token, v.type, v.environment, v.app, v.registered_at, v.p256dh, v.auth, v.server_key, v.told_up_to,
       coalesce(v.user_id = d.user_id, false) as is_theirs,
       h.active, coalesce(h.unread, 0) as unread, coalesce(h.position, 0) as position, coalesce(h.locale, '') as locale,
       coalesce(i.position, 0) as place, i.read_at, i.deleted_at, coalesce(i.language, '') as language,
       coalesce(e.kind, '') as kind, coalesce(e.params, '{}') as params, coalesce(c.body, '') as body,
       (select true from cancellations x where x.event_id = d.event_id) as cancelled
from (select * from unnest($1::uuid[], $2::uuid[]) as d (event_id, device_id) limit cardinality($1::uuid[])) asked
cross join lateral (
    select * from deliveries where event_id = asked.event_id and device_id = asked.device_id offset 0
) d
left join lateral (select * from devices where id = d.device_id offset 0) v on true
left join lateral (select * from heads where user_id = d.user_id offset 0) h on true
left join lateral (select * from inbox where user_id = d.user_id and event_id = d.event_id offset 0) i on true
left join lateral (select kind, params from events where id = d.event_id offset 0) e on true
left join lateral (select body from contents where event_id = i.event_id and language = i.language offset 0) c on true

-- name: settle
-- Write the new states of deliveries whose lease is still held. Each is looked up by its key: a planner that expects one
-- leased row would use the index of leases, and compare each result with all deliveries under way.
with outcome as materialized (
    select *
    from unnest($2::uuid[], $3::uuid[], $4::text[], $5::timestamptz[], $6::text[]) as o (
        event_id, device_id, state, due_at, reason
    )
    limit cardinality($2::uuid[])
),
settled as (
    update deliveries d
    set state = o.state, reason = o.reason, worker_id = null, due_at = coalesce(o.due_at, d.due_at),
        attempts = d.attempts - (o.state = 'held')::int,  -- it was checked, not attempted
        settled_at = case when o.state not in ('queued', 'later', 'held') then clock_timestamp() end
    from outcome o
    where d.event_id = o.event_id and d.device_id = o.device_id and d.worker_id is not distinct from $1
    returning d.device_id, d.state
)
update devices
set last_delivered_at = now()
where token = any(array(
    select token from devices
    where id = any(array(select device_id from settled where state = 'delivered'))
      and coalesce(last_delivered_at < now() - interval '1 minute', true)
    order by token collate "C"
    for no key update
))

-- name: drop
-- Remove a device that its provider no longer knows, unless it was registered since.
delete from devices
where token = any(array(
    select v.token
    from unnest($1::uuid[], $2::timestamptz[]) as gone (id, at)
    join devices v on v.id = gone.id and v.registered_at <= gone.at
    order by v.token collate "C"
    for update of v
))

-- name: release
-- Locked rows are skipped, so that they do not keep the others leased; they are released when the worker is missed.
update deliveries
set worker_id = null, attempts = greatest(attempts - 1, 0)
where (event_id, device_id) in (
    select event_id, device_id from deliveries where worker_id = $1 for update skip locked
)

-- name: release_others
-- Release what a worker leased in a lane and does not send, because an error followed the claim.
update deliveries
set worker_id = null, attempts = greatest(attempts - 1, 0)
where (event_id, device_id) in (
    select d.event_id, d.device_id
    from deliveries d
    where d.worker_id = $1 and d.lane = $2
      and (d.event_id, d.device_id) not in (select * from unnest($3::uuid[], $4::uuid[]))
    order by d.event_id, d.device_id
    for update
)
returning event_id

-- name: put_back
-- Return deliveries to the queue, as if they had never been claimed; each is looked up by its key, as above.
update deliveries d
set worker_id = null, attempts = greatest(d.attempts - 1, 0)
from unnest($2::uuid[], $3::uuid[]) as o (event_id, device_id)
where d.event_id = o.event_id and d.device_id = o.device_id and d.worker_id is not distinct from $1

-- name: release_held
-- Make the held deliveries of these users due, to be decided again.
update deliveries
set due_at = now()
where (event_id, device_id) in (
    select d.event_id, d.device_id
    from unnest($1::int[]) as asked (id)
    cross join lateral (select * from deliveries where user_id = asked.id and state = 'held' offset 0) held
    join deliveries d on d.event_id = held.event_id and d.device_id = held.device_id
    order by d.event_id, d.device_id
    for update of d
)

-- name: release_all_held
-- Make the next held deliveries after a device and an event due, to be decided again. Returns the last of them.
with found as (
    select device_id, event_id
    from deliveries
    where state = 'held' and (device_id, event_id) > ($1::uuid, $2::uuid)
    order by device_id, event_id
    limit $3
),
released as (
    update deliveries
    set due_at = now()
    where (event_id, device_id) in (
        select d.event_id, d.device_id
        from found f
        cross join lateral (
            select * from deliveries where event_id = f.event_id and device_id = f.device_id offset 0
        ) held
        join deliveries d on d.event_id = held.event_id and d.device_id = held.device_id
        where held.state = 'held'
        order by d.event_id, d.device_id
        for update of d
    )
)
select event_id, device_id from found order by device_id desc, event_id desc limit 1

-- name: rules
-- The digest of the preference policy by which deliveries were held.
select digest from operator_rules where id = 1

-- name: put_rules
insert into operator_rules (id, digest) values (1, $1) on conflict (id) do update set digest = excluded.digest

-- name: note_closed
update devices v
set told_up_to = greatest(v.told_up_to, o.position)
from unnest($1::uuid[], $2::bigint[]) as o (id, position)
where v.id = o.id

-- name: closed
-- The latest notifications, at most 20, that were read, deleted or erased after a position; of what was read up to an entry, the
-- latest that are read. Only the latest 100 changes are read.
with recent as materialized (
    select position, change, event_ids, up_to from changes where user_id = $1 and position > $2 order by position desc limit 100
),
all_read as materialized (
    select max(position) as position, max(up_to) as up_to from recent where change = 'all_read'
)
select id
from (
    select unnest(event_ids) as id, position from recent where change in ('read', 'deleted', 'rewritten')
    union all
    select r.event_id, a.position
    from all_read a
    cross join lateral (
        select event_id from inbox
        where user_id = $1 and deleted_at is null and read_at is not null and position <= a.up_to
        order by position desc
        limit 20
    ) r
) c
group by id
order by max(position) desc, id desc
limit 20

-- name: enter_lane
-- With a new configuration, delayed deliveries are due.
with changed as materialized (
    select from lanes where name = $1 and configuration <> $2
),
services as (
    delete from push_services where lane = $1 and exists (select from changed)
),
-- include: waiting(if_any=changed, size=10000)
-- include: due(of=waiting)
insert into lanes as l (name, configuration)
values ($1, $2)
on conflict (name) do update
set configuration = excluded.configuration,
    delivered_at = case when l.configuration = excluded.configuration then l.delivered_at end,
    stopped_at = case when l.configuration = excluded.configuration then l.stopped_at end,
    reason = case when l.configuration = excluded.configuration then l.reason end

-- name: service_refuses
insert into push_services as s (lane, origin, refused_at, last_refused_at, reason)
values ($1, $2, now(), now(), $3)
on conflict (lane, origin) do update
set refused_at = coalesce(s.refused_at, now()), last_refused_at = now(), reason = excluded.reason

-- name: service_delivers
-- Deliveries to a service that refused the authentication for more than a minute are due. A recent refusal by a service
-- that accepts other pushes may be about one subscription, which follows its schedule.
with was as materialized (
    select refused_at from push_services where lane = $1 and origin = $2 for update
),
noted as (
    insert into push_services as s (lane, origin, delivered_at)
    values ($1, $2, now())
    on conflict (lane, origin) do update set delivered_at = now(), refused_at = null, reason = null
),
recovered as materialized (
    select from was where refused_at < now() - interval '1 minute'
),
-- include: waiting(if_any=recovered, size=50000)
subscribed as materialized (
    select event_id, device_id from waiting
    where (select starts_with(v.token, $2 || '/') from devices v where v.id = device_id)
    limit 20000
),
-- include: due(of=subscribed)
select refused_at from was

-- name: service_has_delivered
select delivered_at > $3 from push_services where lane = $1 and origin = $2

-- name: refusing
-- Services that refused within a day: pushes are not retried for longer.
select lane, origin, refused_at, reason
from push_services
where refused_at is not null and last_refused_at > now() - interval '25 hours'
order by lane, origin

-- name: lane_works
-- Returns since when it was stopped, if it was.
with was as materialized (
    select stopped_at from lanes where name = $1 and stopped_at is not null for update
),
noted as (
    update lanes set delivered_at = now(), stopped_at = null, reason = null
    where name = $1 and (delivered_at is null or stopped_at is not null or delivered_at < now() - interval '1 minute')
)
select stopped_at from was

-- name: lane_stops
update lanes set stopped_at = coalesce(stopped_at, now()), reason = $2 where name = $1

-- name: lane_has_delivered
select delivered_at is not null from lanes where name = $1

-- name: lanes
-- The lanes, with the number of due deliveries, counted up to $1, and the longest wait of one. Those without a worker are left out
-- once nothing waits in them.
select l.name, l.delivered_at, case when s.is_served then l.stopped_at end as stopped_at,
       case when s.is_served then l.reason end as reason, s.is_served, waiting.due,
       coalesce(extract(epoch from now() - oldest.since)::float8, 0) as oldest
from lanes l
cross join lateral (
    select
-- include: served(lane=l.name)
        as is_served
) s
cross join lateral (
    select count(*) as due
    from (
        select from deliveries
        where lane = l.name and worker_id is null and state in ('queued', 'later', 'held') and due_at <= now()
        limit $1
    ) found
) waiting
cross join lateral (
    select min(first.due_at) as since
    from unnest(array[true, false]) as kind (is_bulk)
    cross join lateral (
        select due_at from deliveries d
        where d.lane = l.name and d.is_bulk = kind.is_bulk and d.worker_id is null
          and d.state in ('queued', 'later', 'held') and d.due_at <= now()
        order by d.due_at
        limit 1
    ) first
) oldest
where s.is_served or waiting.due > 0
order by l.name

-- name: oldest
-- The longest wait of a due delivery in any lane. Only the first of each lane and leased ones are read.
select coalesce(extract(epoch from now() - min(first.due_at)), 0)::double precision
from lanes l
cross join lateral (
    (
        select due_at from deliveries
        where lane = l.name and is_bulk and worker_id is null and state in ('queued', 'later', 'held') and due_at <= now()
        order by due_at, event_id
        limit 1
    )
    union all
    (
        select due_at from deliveries
        where lane = l.name and not is_bulk and worker_id is null and state in ('queued', 'later', 'held')
          and due_at <= now()
        order by due_at, event_id
        limit 1
    )
    union all
    select min(due_at) from deliveries where lane = l.name and worker_id is not null
) first

-- name: stopped
select l.name, l.stopped_at is not null and
-- include: served(lane=l.name)
    as stopped
from lanes l
order by l.name

-- name: claim_clears
-- The users with notifications to clear, and the position since which. A change that is not committed locks the clear of its
-- user, which is skipped. What to clear is read by another statement, which sees all changes that were committed before.
delete from clears
where user_id = any(array(
    select user_id from clears where due_at <= now() order by due_at limit $1 for update skip locked
))
returning user_id, since

-- name: cleared
-- What the phones of these users clear since a position: all if nothing is unread, or the latest that were read, deleted or
-- erased; of what was read up to an entry, the latest that are read. `raised`: some are unread again. Only the latest 100 changes
-- of a user are read. The limit is the number of users. It shows the planner that they are few, so that it keeps its plan.
select due.user_id, h.unread, exists (
           select from changes c where c.user_id = due.user_id and c.position > due.since and c.change = 'unread'
       ) as raised,
       h.unread = 0 and exists (
           select from changes c where c.user_id = due.user_id and c.position > due.since and c.change = 'all_read'
       ) as all_read,
       array(
           select id
           from (
               select unnest(c.event_ids) as id, c.position
               from changes c
               where c.user_id = due.user_id and c.position > due.since
                 and c.change in ('read', 'deleted', 'rewritten')
               union all
               select r.event_id, c.position
               from changes c
               cross join lateral (
                   select event_id from inbox
                   where user_id = due.user_id and deleted_at is null and read_at is not null and position <= c.up_to
                   order by position desc
                   limit 100
               ) r
               where c.user_id = due.user_id and c.position > due.since and c.change = 'all_read'
           ) told
           group by id
           order by max(position) desc, id desc
           limit 100
       ) as ids
from (
    select user_id, coalesce(
               (
                   select c.position from changes c
                   where c.user_id = asked.user_id and c.position > asked.since
                   order by c.position desc
                   offset 100
                   limit 1
               ),
               since
           ) as since
    from unnest($1::int[], $2::bigint[]) as asked (user_id, since)
    limit cardinality($1::int[])
) due
join heads h on h.user_id = due.user_id and h.active

-- name: claim_last_clears
-- Phones that show notifications which their user may no longer see, except those that were registered again since.
with due as (
    delete from last_clears
    where id = any(array(select id from last_clears order by made_at limit $1 for update skip locked))
    returning *
)
select token, type, environment, app, registered_at, null as p256dh, null as auth, null as server_key, lane
from due
where not coalesce(
    (
        select (select h.active from heads h where h.user_id = v.user_id)
        from devices v
        where v.token = device_key(due.token)
    ),
    false
)

-- name: phones
select user_id, coalesce(whole_token, token) as token, type, environment, app, registered_at, p256dh, auth, server_key, lane
from devices
where user_id = any($1::int[]) and is_phone(type)

-- name: found_as
-- A token that turned out to be of the other environment, or a subscription of another VAPID key.
update devices set environment = $2, server_key = $3 where id = $1

-- name: counts
-- Without those of users of the companies $2.
select d.state, count(*) as count
from deliveries d
where d.event_id = $1 and not (
-- include: in_other_cell(user=d.user_id, companies=$2)
)
group by d.state

-- name: is_waiting
-- Whether any delivery of an event is still to be sent. It stops at the first row.
select exists (select from deliveries where event_id = $1 and state in ('queued', 'later'))

-- name: of_person
-- The deliveries of an event to a user, and then the user's devices that got none, because their lane has no key.
with delivered as (
    select d.type, d.token_ending, d.lane, d.state, d.attempts, d.due_at, d.settled_at, d.reason,
           l.stopped_at, l.reason as lane_reason,
-- include: served(lane=d.lane)
           as is_served
    from deliveries d
    left join lanes l on l.name = d.lane
    where d.event_id = $1 and d.user_id = $2
    order by d.made_at, d.device_id
),
unserved as (
    select v.type, right(v.token, 6), v.lane, 'unserved', 0, null::timestamptz, null::timestamptz,
           'not sent: no key is set for this provider and app', null::timestamptz, null, false
    from devices v
    where v.user_id = $2
      and not (
          exists (select from lanes l where l.name = v.lane)
          and
-- include: served(lane=v.lane)
      )
      and (select d.device_id from deliveries d where d.event_id = $1 and d.device_id = v.id) is null
    order by v.registered_at desc, v.id
)
select * from delivered
union all
select * from unserved

-- name: dead
-- Dead letters among the deliveries, the latest first; for a company, its own among the latest 10,000.
select 'push' as what, 'push' as task, event_id, user_id, lane, attempts, reason, settled_at as at
from (
    select *
    from deliveries
    where state = 'dead' and settled_at < coalesce($1::timestamptz, 'infinity')
    order by settled_at desc
    limit case when $3::int is null then $2::bigint else 10000 end
) d
where $3::int is null or (select e.company_id = $3 from events e where e.id = d.event_id)
order by settled_at desc
limit $2

-- name: replay
-- Those that another session replays or erases are skipped, so that no two wait for each other.
with replayed as (
    update deliveries d
    set state = 'queued', attempts = 0, due_at = now(), made_at = now(), settled_at = null, reason = null
    where (d.event_id, d.device_id) in (
        select dead.event_id, dead.device_id
        from unnest($1::uuid[]) as asked (id)
        cross join lateral (
            select event_id, device_id from deliveries
            where event_id = asked.id and state = 'dead' and ($3::text is null or lane = $3)
            for update skip locked
        ) dead
    )
      and ($2::int is null or (select e.company_id = $2 from events e where e.id = d.event_id))
    returning true
)
select count(*) from replayed

-- name: replay_lane
update deliveries
set state = 'queued', attempts = 0, due_at = now(), made_at = now(), settled_at = null, reason = null
where (event_id, device_id) in (
    select event_id, device_id from deliveries d
    where state = 'dead' and ($1::text is null or lane = $1) and settled_at >= $2 and settled_at < coalesce($5::timestamptz, 'infinity')
      and ($4::int is null or (select e.company_id = $4 from events e where e.id = d.event_id))
    order by settled_at
    limit $3
    for update skip locked
)
returning lane
