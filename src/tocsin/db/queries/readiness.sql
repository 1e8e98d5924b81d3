-- Readiness: whether the database accepts writes.

-- name: writable
-- Whether this session may write.
select pg_is_in_recovery() as is_standby, current_setting('transaction_read_only') = 'on' as is_read_only

-- name: small_memory
-- Values that exceed the memory are written to the disk of the database until the transaction ends.
select set_config('work_mem', '64kB', true), set_config('temp_tablespaces', '', true)

-- name: use_disk
select count(*) from generate_series(1, 20000)

-- name: write_log
-- Write a record to the write-ahead log. The commit flushes it to the disk, and to synchronous standbys.
select pg_logical_emit_message(true, 'tocsin', '')

-- name: has_unconfirmed
-- Whether a session waits for a synchronous standby for more than $1 seconds.
select current_setting('synchronous_standby_names') <> '' and exists (
    select from pg_stat_activity
    where wait_event = 'SyncRep' and query_start < clock_timestamp() - make_interval(secs => $1::double precision)
)

-- name: replay
-- Whether the server is a standby that receives changes, and for how long the last one that it applied is committed, if it
-- did not apply the one at position $1, or the last that it received.
select pg_is_in_recovery() as is_standby, exists (select from pg_stat_wal_receiver) as is_receiving,
       pg_last_wal_receive_lsn()::text as received,
       case when coalesce($1::text::pg_lsn, pg_last_wal_receive_lsn()) > pg_last_wal_replay_lsn()
            then coalesce(extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp()), 0) else 0
       end::double precision as behind

-- name: problems
-- The problems of running workers.
select name, problem from workers
where problem is not null and seen_at > clock_timestamp() - make_interval(secs => $1::double precision)
order by name
limit 100

-- name: running
select count(*) from workers where seen_at > clock_timestamp() - make_interval(secs => $1::double precision)

-- name: stopped_lanes
-- The lanes that have stopped, and those without a worker in which pushes wait, which have no reason.
select l.name, case when s.is_served then l.reason end as reason
from lanes l
cross join lateral (
    select
-- include: served(lane=l.name)
        as is_served
) s
where case
          when s.is_served then l.stopped_at is not null
          else exists (
              select from unnest(array[true, false]) as kind (is_bulk)
              cross join lateral (
                  select from deliveries d
                  where d.lane = l.name and d.is_bulk = kind.is_bulk and d.worker_id is null
                    and d.state in ('queued', 'later', 'held') and d.due_at <= now()
                  limit 1
              ) waiting
          )
      end
order by l.name

-- name: has_waiting
-- Whether a session waits for a table for more than $1 seconds.
select exists (
    select from pg_locks
    where not granted and relation is not null
      and waitstart < clock_timestamp() - make_interval(secs => $1::double precision)
      and database = (select oid from pg_database where datname = current_database())
)

-- name: lockers
-- The sessions that lock a whole table, or wait to, for which writes on it or all statements wait. `waits_for` are the
-- sessions that one of them waits for. One whose commit waits for a standby must not be ended: then nothing else would
-- wait for what it wrote.
select distinct coalesce(whole.relname, c.relname) as "table", a.pid, a.application_name as application, l.granted, (
           select string_agg(format('process %s, %s', b.pid, b.application_name), '; ' order by b.pid)
           from pg_stat_activity b
           where b.pid = any(case when l.granted then '{}' else pg_blocking_pids(l.pid) end)
       ) as waits_for
from pg_locks l
join pg_class c on c.oid = l.relation and c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p')
left join pg_inherits i on i.inhrelid = c.oid
left join pg_class whole on whole.oid = i.inhparent
join pg_stat_activity a on a.pid = l.pid
where l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
  and l.pid <> pg_backend_pid() and a.wait_event is distinct from 'SyncRep' and l.database = (select oid from pg_database where datname = current_database())
order by "table", l.granted desc, a.pid
limit 10

-- name: row_lockers
-- The sessions that changed or locked rows in a transaction that began more than $1 seconds ago, and do nothing now.
select a.pid, a.application_name as application, (
           string_agg(distinct coalesce(whole.relname, c.relname), ', ' order by coalesce(whole.relname, c.relname))
       ) as tables
from pg_locks l
join pg_class c on c.oid = l.relation and c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p')
left join pg_inherits i on i.inhrelid = c.oid
left join pg_class whole on whole.oid = i.inhparent
join pg_stat_activity a on a.pid = l.pid
where l.granted and l.mode in ('RowShareLock', 'RowExclusiveLock') and a.state like 'idle in transaction%'
  and a.xact_start < clock_timestamp() - make_interval(secs => $1::double precision)
  and l.database = (select oid from pg_database where datname = current_database())
group by a.pid, a.application_name
order by a.pid
limit 10
