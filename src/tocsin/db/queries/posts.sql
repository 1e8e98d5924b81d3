-- Posted events: written by `tocsin.post` in transactions of other applications, and accepted or refused here.

-- name: taken
-- The posted events of these jobs, in the order of the jobs.
select p.id, p.event_id, p.service, p.company_id, p.body
from jobs j
join posted p on p.id = j.id
where j.id = any($2::uuid[]) and j.worker_id = $1
order by j.due_at, j.id

-- name: is_first
-- Whether no job before this one in its batch is left.
select not exists (
    select from jobs b where b.batch = j.batch and (b.due_at, b.id) < (j.due_at, j.id)
)
from jobs j
where j.id = $1

-- name: forget
with people as (
    delete from posted_people where id = any($1::uuid[])
)
delete from posted where id = any($1::uuid[])

-- name: forget_erased
-- Remove the users whom these events name, and who were erased before they were accepted; and the words, if they are for these
-- users only.
with event as materialized (
    select e.id, e.service, e.company_id, e.key, e.subjects, e.users = '{}' and e.teams = '{}' as is_void
    from (select * from unnest($1::uuid[]) as asked (id) limit cardinality($1::uuid[])) asked
    join events e on e.id = asked.id
),
-- include: voided
update events e
set skipped_users = '{}',
-- include: emptied
from event
where e.id = event.id

-- name: refuse
-- Keep why an event was refused, and which users it names.
with event as materialized (
    select id, body::jsonb as body from posted where id = $1
),
named as (
    insert into posted_people (user_id, id)
    select distinct u.id::numeric::int, event.id
    from event
    cross join lateral (
        select jsonb_array_elements_text(coalesce(event.body #> '{notify,users}', '[]')) as id
        union all
        select jsonb_array_elements_text(coalesce(event.body #> '{notify,except}', '[]'))
        union all
        select coalesce(event.body #>> '{data,user,id}', event.body #>> '{data,user}')
    ) u
    where case when u.id ~ '^[1-9][0-9]{0,9}(\.0+)?$' then u.id::numeric < 2147483648 end
    on conflict do nothing
)
update posted set errors = $2 where id = $1

-- name: types
insert into posted_types (type) select unnest($1::text[]) on conflict do nothing

-- name: limit
-- Let as many more events be posted as are missing from $1 due jobs.
insert into posted_limit (id, number)
select 1, coalesce(pg_sequence_last_value(pg_get_serial_sequence('posted', 'number')::regclass), 0) + $1 - waiting.n
from (
    select count(*) as n
    from (select from jobs where lane = 'direct' and worker_id is null and due_at <= now() limit $1::bigint) due
) waiting
on conflict (id) do update set number = excluded.number
