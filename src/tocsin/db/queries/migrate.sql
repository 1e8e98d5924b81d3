-- name: holders
-- The sessions that hold locks on the tables, the longest first. Not everything of other roles' sessions is visible.
-- An index that is built concurrently ($1) waits for every older snapshot in the database, too.
select
-- include: holder
    as holder
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
            where l.pid = a.pid and l.granted and n.nspname = current_setting('search_path')
                and l.database = (select oid from pg_database where datname = current_database())
        )
    )
order by a.xact_start, a.pid
limit 5

-- name: waited_for
-- The sessions that a session waits for; null if it does not wait.
select string_agg(
-- include: holder
    , '; ' order by a.xact_start, a.pid)
from unnest(pg_blocking_pids($1)) as blocking(pid)
join pg_stat_activity a using (pid)

-- name: turn
-- Each schema of a database has its own lock.
select pg_try_advisory_lock($1::bigint + hashtext(current_setting('search_path')) - hashtext('tocsin'))

-- name: migrating
-- The session that holds this lock, and its statement. Not everything of other roles' sessions is visible.
select concat_ws(
        ', ',
        'process ' || a.pid,
        a.usename,
        nullif(a.application_name, ''),
        'connected for ' || extract(epoch from clock_timestamp() - a.backend_start)::int || ' s',
        nullif(left(regexp_replace(btrim(a.query), '\s+', ' ', 'g'), 100), '')
    )
from pg_locks l
join pg_stat_activity a on a.pid = l.pid
cross join (select $1::bigint + hashtext(current_setting('search_path')) - hashtext('tocsin') as key) wanted
where l.locktype = 'advisory' and l.granted and l.objsubid = 1
    and l.database = (select oid from pg_database where datname = current_database())
    and l.classid::bigint = (wanted.key >> 32) and l.objid::bigint = (wanted.key & 4294967295)
limit 1

-- name: schema
select current_setting('search_path')

-- name: role_and_schema
select quote_ident(current_user), quote_ident(split_part(current_setting('search_path'), ',', 1))

-- name: done
select number from migrations

-- name: add
insert into migrations (number, name) values ($1, $2)
