-- Statistics: what the planner believes of our tables.

-- name: small
-- Tables of ours that are believed to have fewer rows than $1, and have at least so many bytes.
select c.relname as name
from pg_class c
where c.relnamespace = 'tocsin'::regnamespace and c.relkind = 'r' and c.reltuples >= 0 and c.reltuples < $1
  and pg_relation_size(c.oid) >= $2 and pg_has_role(c.relowner, 'usage')
order by c.relname
