-- Partitions for tables that have rows.

-- name: turn
select pg_try_advisory_lock($1::bigint + hashtext(current_schema()) - hashtext('tocsin'))

-- name: other_owner
-- The role that owns the tables, if this one cannot act as it.
select pg_get_userbyid(relowner) from pg_class where oid = to_regclass('events') and not pg_has_role(relowner, 'usage')

-- name: tables
-- The tables that can have partitions, those of events first: their names, whether they have partitions, and whether
-- `<table>_next` is there.
select name, c.relkind = 'p' as is_partitioned, to_regclass(name || '_next') is not null as has_begun
from unnest('{events,contents,recipients,subjects,inbox,changes}'::text[]) with ordinality as given (name, place)
join pg_class c on c.oid = to_regclass(name)
order by place

-- name: begin
select begin_partitions($1)

-- name: copy
select copied, total from copy_to_partitions($1, $2)

-- name: compare
select before, after, are_same from compare_partitions($1)

-- name: finish
select finish_partitions($1)

-- name: abandon
select abandon_partitions($1)
