-- Statistics: what the planner believes of our tables.

-- name: small
-- Tables of ours that are believed to have fewer rows than $1, and have at least $2 bytes, where that is asked:
-- to look at the size of a table that is locked would wait.
select c.relname as name
from pg_class c
where c.relnamespace = 'tocsin'::regnamespace and c.relkind = 'r' and c.reltuples >= 0 and c.reltuples < $1
  and pg_has_role(c.relowner, 'usage')
  and case when $2::bigint > 0 then pg_relation_size(c.oid) >= $2 else true end
order by c.relname
