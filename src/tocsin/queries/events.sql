-- Events: accepted, and what became of them.

-- name: accept
with unknown as materialized (
    select field, id from strangers($7, $8, $3)
),
event as (
    insert into events (id, service, company_id, kind, actor, users, teams, data, params, subjects)
    select $1, $2, $3, $4, $5, $7, $8, $9, $10, $6
    where not exists (select from unknown)
    returning id
),
about as (
    insert into subjects (subject, event_id)
    select subject, event.id from event cross join unnest($6::text[]) as s (subject)
),
job as (
    insert into jobs (id, task, lane) select id, 'deliver', 'direct' from event
)
select field, id from unknown

-- name: unknown
select field, id from strangers($1, $2, $3)

-- name: event
select e.id, e.kind, e.service,
       case
           when j.id is not null then
               case
                   when j.progress > 0 or j.worker_id is not null then 'delivering'
                   when j.due_at > now() and j.attempts = 0 then 'held'
                   else 'queued'
               end
           when d.id is not null then 'failed'
           else 'delivered'
       end as state,
       d.reason,
       r.recipients,
       (
           select count(*)
           from recipients c
           cross join unnest(c.user_ids) as got (user_id)
           join inbox i on i.user_id = got.user_id and i.event_id = e.id
           where c.event_id = e.id and i.read_at is not null
       ) as read
from events e
left join jobs j on j.id = e.id
left join dead_letters d on d.id = e.id
cross join lateral (
    select coalesce(sum(cardinality(user_ids)), 0) as recipients from recipients where event_id = e.id
) r
where e.id = $1 and ($2::text is null or e.service = $2) and ($3::int is null or e.company_id = $3)
