-- Invariants: each statement returns rows that must not exist, at most $1, as text in `found`. Each sees one snapshot, so
-- that a service that is running causes no false alarm.

-- name: entries_without_content
select format('user %s, event %s', i.user_id, i.event_id) as found
from inbox i
left join contents c on c.event_id = i.event_id and c.language = i.language
where c.event_id is null
limit $1

-- name: entries_without_event
select format('user %s, event %s', i.user_id, i.event_id) as found
from inbox i
left join events e on e.id = i.event_id
where e.id is null
limit $1

-- name: entries_without_owner
select format('user %s, event %s', i.user_id, i.event_id) as found
from inbox i
left join heads h on h.user_id = i.user_id
where h.user_id is null
limit $1

-- name: wrong_counts
select h.user_id::text as found
from heads h
left join (
    select user_id, count(*) as total, count(*) filter (where read_at is null) as unread
    from inbox
    where deleted_at is null
    group by user_id
) i on i.user_id = h.user_id
where h.total <> coalesce(i.total, 0) or h.unread <> coalesce(i.unread, 0)
limit $1

-- name: wrong_positions
-- Each position after those of forgotten changes is of one entry or one change, or of an entry that was removed, which has
-- a change.
select h.user_id::text as found
from heads h
left join (
    select of.user_id, count(*) as n, count(distinct of.position) as different, max(of.position) as last
    from (select user_id, position from inbox union all select user_id, position from changes) of
    join heads h on h.user_id = of.user_id and of.position > h.forgotten
    group by of.user_id
) p on p.user_id = h.user_id
left join (
    select c.user_id, count(distinct removed.event_id) as n
    from changes c
    join heads h on h.user_id = c.user_id and c.position > h.forgotten
    cross join unnest(c.event_ids) as removed (event_id)
    left join inbox i on i.user_id = c.user_id and i.event_id = removed.event_id
    where c.change = 'deleted' and i.event_id is null
    group by c.user_id
) r on r.user_id = h.user_id
where p.n <> p.different or p.last > h.position
   or h.position - h.forgotten - coalesce(p.n, 0) not between 0 and coalesce(r.n, 0)
limit $1

-- name: backward_times
select format('user %s, position %s', user_id, position) as found
from (
    select user_id, position, created_at, lag(created_at) over (partition by user_id order by position) as before
    from inbox
    where position > 0
) i
where created_at < before
limit $1

-- name: lost_events
-- An accepted event is queued, delivered, a dead letter, or cancelled.
select e.id::text as found
from events e
where not exists (select from jobs j where j.id = e.id)
  and not exists (select from recipients r where r.event_id = e.id)
  and not exists (select from dead_letters d where d.id = e.id)
  and not exists (select from cancellations c where c.event_id = e.id)
limit $1

-- name: lost_work
-- The same for resolutions, erasures and accepted imports.
select format('%s %s', w.task, w.id) as found
from (
    select 'resolution' as task, id from resolutions
    union all
    select 'erasure', id from erasures
    union all
    select 'import', id from imports where state = 'applying'
) w
where not exists (select from jobs j where j.id = w.id) and not exists (select from dead_letters d where d.id = w.id)
limit $1

-- name: jobs_without_object
select format('%s %s', j.task, j.id) as found
from (select task, id from jobs union all select task, id from dead_letters) j
where not case j.task
    when 'deliver' then exists (select from events e where e.id = j.id)
    when 'resolve' then exists (select from resolutions r where r.id = j.id)
    when 'erase' then exists (select from erasures e where e.id = j.id)
    when 'import' then exists (select from imports i where i.id = j.id)
    else true
end
limit $1

-- name: deliveries_without_owner
select format('event %s, device %s, user %s', d.event_id, d.device_id, d.user_id) as found
from deliveries d
left join users u on u.id = d.user_id
where u.id is null
limit $1

-- name: deliveries_without_event
select format('event %s, device %s', d.event_id, d.device_id) as found
from deliveries d
left join events e on e.id = d.event_id
where e.id is null
limit $1

-- name: leases_without_worker
-- Leases end a moment after their worker: those that stay are without one.
select found
from (
    select format('job %s, worker %s', id, worker_id) as found, worker_id from jobs where worker_id is not null
    union all
    select format('event %s, device %s, worker %s', event_id, device_id, worker_id), worker_id
    from deliveries
    where worker_id is not null
) leased
where not exists (select from workers w where w.id = leased.worker_id)
limit $1

-- name: missing_subjects
select format('%s of event %s', of.subject, e.id) as found
from events e
cross join unnest(e.subjects) as of (subject)
left join subjects s on s.subject = of.subject and s.event_id = e.id
where s.event_id is null
limit $1

-- name: leftovers
-- Rows about an event or a user that does not exist any longer. They take space and are not read.
select found
from (
    select format('subject %s of event %s', s.subject, s.event_id) as found
    from subjects s
    left join events e on e.id = s.event_id
    where e.id is null
    union all
    select format('content of event %s', c.event_id)
    from contents c
    left join events e on e.id = c.event_id
    where e.id is null
    union all
    select format('recipients of event %s', r.event_id)
    from recipients r
    left join events e on e.id = r.event_id
    where e.id is null
    union all
    select format('key %s of event %s', k.key, k.event_id)
    from event_keys k
    left join events e on e.id = k.event_id
    where e.id is null
    union all
    select format('change %s of user %s', c.position, c.user_id)
    from changes c
    left join heads h on h.user_id = c.user_id
    where h.user_id is null
) left_over
limit $1

-- name: indexes
-- The indexes of the schema: their keys in order, and the condition of a partial one.
select i.indexrelid::regclass::text as name, c.relname as short_name, i.indrelid::regclass::text as table_name,
       coalesce(pg_get_expr(i.indpred, i.indrelid), 'true') as condition,
       (
           select string_agg(
               pg_get_indexdef(i.indexrelid, n, true) || case when i.indoption[n - 1] & 1 = 1 then ' desc' else '' end
               || case when i.indoption[n - 1] & 2 = 2 then ' nulls first' else ' nulls last' end,
               ', ' order by n
           )
           from generate_series(1, i.indnkeyatts) as n
       ) as keys
from pg_index i
join pg_class c on c.oid = i.indexrelid
join pg_am m on m.oid = c.relam and m.amname = 'btree'
where c.relnamespace = 'tocsin'::regnamespace and i.indisvalid
order by name

-- name: amcheck
-- The schema of the extension amcheck, if it is installed.
select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'amcheck'

-- name: checksums
select current_setting('data_checksums') = 'on' as are_on,
       (select checksum_failures from pg_stat_database where datname = current_database()) as failures
