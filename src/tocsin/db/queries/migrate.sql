-- name: holders
-- The sessions that hold locks on the tables, the longest first. Not everything of other roles' sessions is visible.
-- An index that is built concurrently ($1) waits for every older snapshot in the database, too.
select concat_ws(
        ', ',
        'process ' || a.pid,
        a.usename,
        nullif(a.application_name, ''),
        'for ' || extract(epoch from clock_timestamp() - a.xact_start)::int || ' s'
    ) as holder
from pg_stat_activity a
where a.pid <> pg_backend_pid()
    and a.datname = current_database()
    and (
        $1::boolean and a.backend_xmin is not null
        or exists (
            select
            from pg_locks l
            join pg_class c on c.oid = l.relation
            join pg_namespace n on n.oid = c.relnamespace
            where l.pid = a.pid and l.granted and n.nspname = 'tocsin'
                and l.database = (select oid from pg_database where datname = current_database())
        )
    )
order by a.xact_start, a.pid
limit 5
