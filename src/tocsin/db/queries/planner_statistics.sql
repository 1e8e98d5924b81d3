-- Statistics of the planner.

-- name: small
-- Tables that are estimated to have fewer rows than $1, and have at least $2 bytes, if that is given: reading the size of
-- a locked table would wait.
select c.relname as name
from pg_class c
where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r' and c.reltuples >= 0 and c.reltuples < $1
  and pg_has_role(c.relowner, 'usage')
  and case when $2::bigint > 0 then pg_relation_size(c.oid) >= $2 else true end
order by c.relname
