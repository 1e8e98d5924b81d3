-- Retention: deletes expired data in small steps. Each returns the number of rows.

-- name: clock
select clock_timestamp()

-- name: turn
-- A lock until the end of the transaction, so that one process at a time runs a step.
select pg_try_advisory_xact_lock($1::bigint + hashtext(current_schema()) - hashtext('tocsin'))

-- name: suspend
select pg_advisory_xact_lock_shared($1::bigint + hashtext(current_schema()) - hashtext('tocsin'))

-- name: idempotency_keys
with old as materialized (
    select caller, method, path, key
    from idempotency_keys
    where kept_at < now() - make_interval(hours => 24)
    order by kept_at
    limit $1
),
gone as (
    delete from idempotency_keys k using old o
    where k.caller = o.caller and k.method = o.method and k.path = o.path and k.key = o.key
)
select count(*) from old

-- name: streams
-- Streams whose token has expired, of processes that were killed.
with old as materialized (
    select id from streams where ends_at < now() - interval '1 minute' order by ends_at limit $1 for update skip locked
),
gone as (
    delete from streams where id = any(array(select id from old))
)
select count(*) from old

-- name: console_sessions
with old as materialized (
    select id from console_sessions where ends_at < now() order by ends_at limit $1 for update skip locked
),
gone as (
    delete from console_sessions where id = any(array(select id from old))
)
select count(*) from old

-- name: metric_minutes
-- Those that are to come are of a clock that was ahead.
with old as materialized (
    (
        select minute, process_id from metric_minutes where minute < now() - make_interval(days => 1, mins => 1)
        order by minute limit $1
    )
    union all
    (select minute, process_id from metric_minutes where minute > now() + make_interval(mins => 1) order by minute limit $1)
),
gone as (
    delete from metric_minutes m using old o where m.minute = o.minute and m.process_id = o.process_id
)
select count(*) from old

-- name: last_clears
-- Clears that are not sent, because there is no worker with their lanes.
with old as materialized (
    select id from last_clears where made_at < now() - make_interval(hours => 1) order by made_at limit $1
),
gone as (
    delete from last_clears where id = any(array(select id from old))
)
select count(*) from old

-- name: rate_limits
-- Windows that have ended. Rows that a process is using are skipped.
with old as materialized (
    select name, key from rate_limits where ends_at < now() order by ends_at limit $1 for update skip locked
),
gone as (
    delete from rate_limits r using old o where r.name = o.name and r.key = o.key
)
select count(*) from old

-- name: dead_letters
-- An event whose dead letter expires is cancelled: it is not delivered further. The lines of an import are deleted by `imports`.
-- Erasures and resolutions that failed are kept until they are replayed: texts would stay that were to be erased.
with old as materialized (
    select id, task from dead_letters
    where died_at < now() - make_interval(days => 30) and task not in ('erase', 'resolve')
    order by died_at
    limit $1
    for update skip locked  -- one that is replayed is not cancelled
),
stopped as (
    insert into cancellations (event_id) select id from old where task = 'deliver' on conflict do nothing
),
person as (
    delete from posted_people p using old o where p.id = o.id
),
event as (
    delete from posted p using old o where p.id = o.id and o.task = 'post'
),
ended as (
    update imports i set state = 'checking', touched_at = '-infinity' from old o where i.id = o.id and o.task = 'import'
),
gone as (
    delete from dead_letters d using old o where d.id = o.id
)
select count(*) from old

-- name: deliveries
-- Results of pushes are kept for thirty days; dead letters can be replayed for as long. Pushes that waited for as long are of
-- a lane without workers.
with old as materialized (
    (
        select event_id, device_id from deliveries
        where settled_at < now() - make_interval(days => 30)
        order by settled_at
        limit $1
    )
    union all
    (
        select waiting.event_id, waiting.device_id
        from lanes l
        cross join unnest(array[true, false]) as is_bulk
        cross join lateral (
            select event_id, device_id
            from deliveries
            where lane = l.name and deliveries.is_bulk = is_bulk.is_bulk and worker_id is null
              and state in ('queued', 'later', 'held') and due_at < now() - make_interval(days => 30)
            limit $1
            for update skip locked
        ) waiting
        limit $1
    )
),
gone as (
    delete from deliveries d using old o where d.event_id = o.event_id and d.device_id = o.device_id
)
select count(*) from old

-- name: devices
-- Providers remove such devices too.
with old as materialized (
    select token from devices
    where greatest(registered_at, last_delivered_at) < now() - make_interval(days => 270)
    order by greatest(registered_at, last_delivered_at)
    limit $1
    for update skip locked
),
gone as (
    delete from devices d using old o where d.token = o.token
)
select count(*) from old

-- name: imports
-- Imports that were interrupted, or whose dead letters have expired: their lines first.
with old as materialized (
    select id from imports where state = 'checking' and touched_at < now() - make_interval(hours => 1)
),
line as materialized (
    select l.place
    from old
    cross join lateral (select ctid as place from import_lines where import_id = old.id limit $1) l
    limit $1
),
gone as (
    delete from import_lines where ctid = any(array(select place from line))
),
ended as (
    delete from imports i using old o where i.id = o.id and (select count(*) from line) < $1
)
select count(*) from line

-- name: make_partition
-- Make the next partition that is missing, unless the partition for the rest is larger than $1; return its name, or null.
select make_partition($1)

-- name: months
-- The months of which all tables of events have partitions: their names, and their first ids with those of the next ones.
select month, first_id(start at time zone 'UTC') as low, first_id((start + interval '1 month') at time zone 'UTC') as high
from (
    select right(c.relname, 7) as month, to_date(right(c.relname, 7), 'YYYY_MM')::timestamp as start
    from unnest('{events,contents,recipients,subjects}'::text[]) as parent
    join pg_inherits i on i.inhparent = to_regclass(parent)
    join pg_class c on c.oid = i.inhrelid and c.relname ~ '_[0-9]{4}_[0-9]{2}$'
    group by 1
    having count(*) = 4
) found
order by month

-- name: is_needed
-- Whether something of a month is needed, as in `drop_month`, or its end, an event or a delivery is younger than $3 days.
select high > first_id(old)
    or exists (select from jobs where id >= low and id < high)
    or exists (select from dead_letters where id >= low and id < high)
    or coalesce(
        (
            select accepted_at >= old from events
            where id >= low and id < high
            order by accepted_at desc limit 1
        ) or (
            select delivered_at >= old from recipients
            where event_id >= low and event_id < high
            order by delivered_at desc limit 1
        ),
        false
    )
from (
    select $1::uuid as low, $2::uuid as high, now() - make_interval(days => $3) as old
) month

-- name: end_events
-- Events in this range of ids are about to be dropped: they may have no recipients, and are not deleted row by row.
insert into ending_events (id, low, high) values (1, $1, $2)
on conflict (id) do update set low = excluded.low, high = excluded.high

-- name: keep_events
delete from ending_events where id = 1

-- name: event_after
-- The event that is $3 events after one in a month; without one, the end of the month.
select coalesce((select id from events where id >= $1 and id < $2 order by id offset $3::int limit 1), $2)

-- name: has_recipients
select exists (select from recipients where event_id >= $1 and event_id < $2)

-- name: forget_related
-- What belongs to the events in a range of ids, and is not in partitions. Returns the number of their keys.
with cancellation as (
    delete from cancellations where event_id >= $1 and event_id < $2
),
push as (
    delete from deliveries where event_id >= $1 and event_id < $2
),
old as materialized (
    select id, service, company_id, key from events where id >= $1 and id < $2 and key is not null
),
-- include: keyed
select count(*) from old

-- name: drop_month
select drop_month($1, $2)

-- name: cutoff
-- The time before which everything is past retention.
select now() - make_interval(days => $1)

-- name: ranges
-- The same time, and the ids that were made before it, but for those of a month that is being dropped.
select range.low, range.high, old as cutoff
from (select now() - make_interval(days => $1) as old) past
left join ending_events ending on ending.id = 1
cross join lateral (
    values
        ('00000000-0000-0000-0000-000000000000'::uuid, least(first_id(old), ending.low)),
        (ending.high, first_id(old))
) range (low, high)
where range.low < range.high
order by range.low

-- name: forget_range
-- Delete the events in a range of ids with all that belongs to them, if none is needed, and none is younger than $3. Returns
-- their number, or null. Subjects are looked up, since no index leads from events to them.
with free as materialized (
    select
        not exists (select from recipients where event_id >= $1 and event_id < $2)
        and not exists (select from events where id >= $1 and id < $2 and accepted_at >= $3)
        and not exists (select from jobs where id >= $1 and id < $2)
        and not exists (select from dead_letters where id >= $1 and id < $2) as is_free
),
old as materialized (
    select id, subjects, service, company_id, key
    from events
    where id >= $1 and id < $2 and (select is_free from free)
),
about as materialized (
    select pair.event_id, pair.subject
    from (
        select array_agg(old.id) as ids, array_agg(of.subject) as subjects
        from old
        cross join unnest(old.subjects) as of (subject)
    ) listed
    cross join lateral unnest(listed.ids, listed.subjects) as pair (event_id, subject)
),
-- include: keyed
,
subject as (
    delete from subjects s using about a
    where s.subject = a.subject and s.event_id = a.event_id and s.event_id >= $1 and s.event_id < $2
),
content as (
    delete from contents where event_id >= $1 and event_id < $2 and (select is_free from free)
),
cancellation as (
    delete from cancellations where event_id >= $1 and event_id < $2 and (select is_free from free)
),
push as (
    delete from deliveries where event_id >= $1 and event_id < $2 and (select is_free from free)
),
event as (
    delete from events where id >= $1 and id < $2 and (select is_free from free)
)
select case when is_free then (select count(*) from old) end from free

-- name: old_in_range
-- The events in a range of ids that are older than $3, and have no recipients.
select array(
    select id
    from events e
    where e.id >= $1 and e.id < $2 and e.accepted_at < $3
      and (select true from recipients r where r.event_id = e.id limit 1) is null
      and (select true from jobs j where j.id = e.id) is null
      and (select true from dead_letters d where d.id = e.id) is null
)

-- name: hold_events
-- Imports that are adding recipients to these events end first.
select from events where id = any($1::uuid[]) order by id for update

-- name: forget_events
-- Of these events, those without recipients are deleted.
with old as materialized (
    select o.id
    from unnest($1::uuid[]) as o (id)
    where not exists (select from recipients r where r.event_id = o.id)
      and not exists (select from jobs j where j.id = o.id)
      and not exists (select from dead_letters d where d.id = o.id)
),
subject as (
    delete from subjects s using events e, old
    where e.id = old.id and s.event_id = e.id and s.subject = any(e.subjects)
),
content as (
    delete from contents c using old where c.event_id = old.id
),
cancellation as (
    delete from cancellations c using old where c.event_id = old.id
),
push as (
    delete from deliveries d using old where d.event_id = old.id
),
key as (
    delete from event_keys k using events e, old
    where e.id = old.id and e.key is not null and k.service = e.service and k.company_id = coalesce(e.company_id, 0)
      and k.key = e.key and k.event_id = e.id
)
delete from events e using old where e.id = old.id

-- name: old_events
-- Of the next $1 events after ($3, $4) that are older than $2 days, those that were never delivered; the last of all, and their
-- number.
with next as materialized (
    select id, accepted_at
    from events
    where accepted_at < now() - make_interval(days => $2) and (accepted_at, id) > ($3::timestamptz, $4::uuid)
    order by accepted_at, id
    limit $1
),
last as (
    select accepted_at, id from next order by accepted_at desc, id desc limit 1
)
select last.accepted_at, last.id, (select count(*) from next) as count, array(
    select n.id
    from next n
    where (select n.id >= ending.low and n.id < ending.high from ending_events ending where ending.id = 1) is not true
      and (select true from recipients r where r.event_id = n.id limit 1) is null
      and (select true from jobs j where j.id = n.id) is null
      and (select true from dead_letters d where d.id = n.id) is null
) as old
from last
