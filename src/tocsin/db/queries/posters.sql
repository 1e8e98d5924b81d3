-- Posters: the roles that may post events in transactions of their own.

-- name: role
-- The name of a role, quoted; no row without the role.
select quote_ident(rolname) from pg_roles where rolname = $1

-- name: add
insert into posters (role, service, company_id) values ($1, $2, $3)
on conflict (role) do update set service = excluded.service, company_id = excluded.company_id

-- name: remove
delete from posters where role = $1 returning true
