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

-- name: problems
-- The problems of running workers.
select name, problem from workers
where problem is not null and seen_at > clock_timestamp() - make_interval(secs => $1::double precision)
order by name
limit 100

-- name: lockers
-- The sessions that hold a lock on a whole table, for which all statements on it wait.
select c.relname as "table", a.pid, a.application_name as application
from pg_locks l
join pg_class c on c.oid = l.relation and c.relnamespace = current_schema()::regnamespace and c.relkind = 'r'
join pg_stat_activity a on a.pid = l.pid
where l.granted and l.mode = 'AccessExclusiveLock' and l.pid <> pg_backend_pid()
  and l.database = (select oid from pg_database where datname = current_database())
order by c.relname, a.pid
limit 10
