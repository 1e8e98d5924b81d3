-- Events that are cancelled or replaced.

-- name: owned
select id, service, company_id from events
where id = $1 and ($2::text is null or service = $2) and ($3::int is null or company_id = $3)

-- name: key
select event_id from event_keys where service = $1 and company_id = $2 and key = $3 for update

-- name: hold
with
-- include: held(ids=any($1::uuid[]))

-- name: cancel
-- Returns true if the event is cancelled, false if it was before, and null if it is delivered.
with stopped as (
    delete from jobs where id = $1 and task = 'deliver' returning id
),
dead as (
    delete from dead_letters where id = $1 and task = 'deliver' returning id
),
noted as (
    insert into cancellations (event_id, operator) select id, $2::text from stopped union select id, $2 from dead
    on conflict do nothing
)
select case
    when exists (select from stopped) or exists (select from dead) then true
    when exists (select from cancellations where event_id = $1) then false
end

-- name: replace
-- Cancel those of these events that are not delivered, each in favour of the event that replaces it.
with stopped as (
    delete from jobs j
    using unnest($1::uuid[], $2::uuid[]) as r (old, new)
    where j.id = r.old and j.task = 'deliver'
    returning j.id, r.new
),
dead as (
    delete from dead_letters d
    using unnest($1::uuid[], $2::uuid[]) as r (old, new)
    where d.id = r.old and d.task = 'deliver'
    returning d.id, r.new
)
insert into cancellations (event_id, replaced_by)
select id, new from stopped
union all
select id, new from dead
