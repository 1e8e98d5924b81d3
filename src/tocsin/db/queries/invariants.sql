-- Invariants: each statement returns rows that must not exist, at most $1, as text in `found`. Each sees one snapshot, so
-- that a service that is running causes no false alarm. Those of large tables read a range: the keys above $2, up to $3.
-- What a row refers to is looked up by its key, so that a statement takes as long as its range is large.

-- name: next_users
-- The end of the next range of users: after as many users ($2), or rows of one table ($3), as a statement reads quickly.
-- `last` is the end of all ranges.
with ends as (
    select greatest(
        (select max(user_id) from heads where user_id > $1),
        (select max(user_id) from inbox where user_id > $1),
        (select max(user_id) from changes where user_id > $1)
    ) as last
)
select last,
    least(
        last,
        (select user_id from heads where user_id > $1 order by user_id offset $2::int - 1 limit 1),
        (select user_id from inbox where user_id > $1 order by user_id offset $3::int - 1 limit 1),
        (select user_id from changes where user_id > $1 order by user_id offset $3::int - 1 limit 1)
    ) as next
from ends

-- name: next_events
-- The same of events.
with ends as (
    select greatest(
        (select id from events where id > $1 order by id desc limit 1),
        (select event_id from contents where event_id > $1 order by event_id desc limit 1),
        (select event_id from recipients where event_id > $1 order by event_id desc limit 1),
        (select event_id from deliveries where event_id > $1 order by event_id desc limit 1)
    ) as last
)
select last,
    least(
        last,
        (select id from events where id > $1 order by id offset $2::int - 1 limit 1),
        (select event_id from contents where event_id > $1 order by event_id offset $3::int - 1 limit 1),
        (select event_id from recipients where event_id > $1 order by event_id offset $3::int - 1 limit 1),
        (select event_id from deliveries where event_id > $1 order by event_id offset $3::int - 1 limit 1)
    ) as next
from ends

-- name: next_subjects
-- The same of subjects: as many rows, by subject and event.
with ends as (
    select array[subject, event_id::text] as last
    from subjects
    where (subject, event_id) > (($1::text[])[1], ($1::text[])[2]::uuid)
    order by subject desc, event_id desc
    limit 1
)
select last,
    coalesce(
        (
            select array[subject, event_id::text]
            from subjects
            where (subject, event_id) > (($1::text[])[1], ($1::text[])[2]::uuid)
            order by subject, event_id
            offset $2::int - 1
            limit 1
        ),
        last
    ) as next
from (select (select last from ends) as last) until

-- name: next_keys
-- Keys are read in the order of the disk, page by page: no index leads from their events to them.
select last, case when last > $1::bigint then least(last, $1 + $2::int) end as next
from (select pg_relation_size('event_keys') / current_setting('block_size')::int as last) pages

-- name: entries_without_content
select format('user %s, event %s', i.user_id, i.event_id) as found
from inbox i
where i.user_id > $2::int and i.user_id <= $3::int
  and (select true from contents c where c.event_id = i.event_id and c.language = i.language) is null
limit $1

-- name: entries_without_event
select format('user %s, event %s', i.user_id, i.event_id) as found
from inbox i
where i.user_id > $2::int and i.user_id <= $3::int and (select true from events e where e.id = i.event_id) is null
limit $1

-- name: entries_without_owner
select format('user %s, event %s', i.user_id, i.event_id) as found
from inbox i
where i.user_id > $2::int and i.user_id <= $3::int and (select true from heads h where h.user_id = i.user_id) is null
limit $1

-- name: wrong_counts
select h.user_id::text as found
from heads h
cross join lateral (
    select count(*) as total, count(*) filter (where read_at is null) as unread
    from inbox
    where user_id = h.user_id and deleted_at is null
) i
where h.user_id > $2::int and h.user_id <= $3::int and (h.total <> i.total or h.unread <> i.unread)
limit $1

-- name: wrong_positions
-- Each position after those of forgotten changes is of one entry or one change, or of an entry that was removed, which has
-- a change.
select h.user_id::text as found
from heads h
cross join lateral (
    select count(*) as n, count(distinct of.position) as different, max(of.position) as last
    from (
        select position from inbox where user_id = h.user_id and position > h.forgotten
        union all
        select position from changes where user_id = h.user_id and position > h.forgotten
    ) of
) p
cross join lateral (
    select count(distinct removed.event_id) as n
    from changes c
    cross join unnest(c.event_ids) as removed (event_id)
    where c.user_id = h.user_id and c.position > h.forgotten and c.change = 'deleted'
      and (select true from inbox i where i.user_id = c.user_id and i.event_id = removed.event_id) is null
) r
where h.user_id > $2::int and h.user_id <= $3::int
  and (p.n <> p.different or p.last > h.position or h.position - h.forgotten - p.n not between 0 and r.n)
limit $1

-- name: backward_times
select format('user %s, position %s', user_id, position) as found
from (
    select user_id, position, created_at, lag(created_at) over (partition by user_id order by position) as before
    from inbox
    where user_id > $2::int and user_id <= $3::int and position > 0
) i
where created_at < before
limit $1

-- name: leftover_changes
select format('change %s of user %s', c.position, c.user_id) as found
from changes c
where c.user_id > $2::int and c.user_id <= $3::int and (select true from heads h where h.user_id = c.user_id) is null
limit $1

-- name: lost_events
-- An accepted event is queued, delivered, a dead letter, cancelled, or about to be dropped with its month.
select e.id::text as found
from events e
where e.id > $2::uuid and e.id <= $3::uuid
  and (select e.id >= ending.low and e.id < ending.high from ending_events ending where ending.id = 1) is not true
  and (select true from jobs j where j.id = e.id) is null
  and (select true from recipients r where r.event_id = e.id limit 1) is null
  and (select true from dead_letters d where d.id = e.id) is null
  and (select true from cancellations c where c.event_id = e.id) is null
limit $1

-- name: missing_subjects
select format('%s of event %s', of.subject, e.id) as found
from events e
cross join unnest(e.subjects) as of (subject)
where e.id > $2::uuid and e.id <= $3::uuid
  and (select true from subjects s where s.subject = of.subject and s.event_id = e.id) is null
limit $1

-- name: deliveries_without_owner
select format('event %s, device %s, user %s', d.event_id, d.device_id, d.user_id) as found
from deliveries d
where d.event_id > $2::uuid and d.event_id <= $3::uuid and (select true from users u where u.id = d.user_id) is null
limit $1

-- name: deliveries_without_event
select format('event %s, device %s', d.event_id, d.device_id) as found
from deliveries d
where d.event_id > $2::uuid and d.event_id <= $3::uuid and (select true from events e where e.id = d.event_id) is null
limit $1

-- name: leftover_contents
select format('content of event %s', c.event_id) as found
from contents c
where c.event_id > $2::uuid and c.event_id <= $3::uuid and (select true from events e where e.id = c.event_id) is null
limit $1

-- name: leftover_recipients
select format('recipients of event %s', r.event_id) as found
from recipients r
where r.event_id > $2::uuid and r.event_id <= $3::uuid and (select true from events e where e.id = r.event_id) is null
limit $1

-- name: leftover_subjects
select format('subject %s of event %s', s.subject, s.event_id) as found
from subjects s
where (s.subject, s.event_id) > (($2::text[])[1], ($2::text[])[2]::uuid)
  and (s.subject, s.event_id) <= (($3::text[])[1], ($3::text[])[2]::uuid)
  and (select true from events e where e.id = s.event_id) is null
limit $1

-- name: leftover_keys
select format('key %s of event %s', k.key, k.event_id) as found
from event_keys k
where k.ctid >= format('(%s,0)', $2::bigint)::tid and k.ctid < format('(%s,0)', $3::bigint)::tid
  and (select true from events e where e.id = k.event_id) is null
limit $1

-- name: lost_work
-- Accepted resolutions, erasures and imports are queued or dead letters, too.
select format('%s %s', w.task, w.id) as found
from (
    select 'resolution' as task, id from resolutions
    union all
    select 'erasure', id from erasures
    union all
    select 'import', id from imports where state = 'applying'
    union all
    select 'posted event', id from posted
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
    when 'post' then exists (select from posted p where p.id = j.id)
    else true
end
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
where c.relnamespace = current_schema()::regnamespace and c.relkind = 'i' and i.indisvalid
order by name

-- name: amcheck
-- The schema of the extension amcheck, if it is installed.
select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'amcheck'

-- name: checksums
select current_setting('data_checksums') = 'on' as are_on,
       (select checksum_failures from pg_stat_database where datname = current_database()) as failures
