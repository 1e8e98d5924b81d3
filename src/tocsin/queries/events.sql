-- Events: accepted, and what became of them.

-- name: accept
-- Drafts of any number of callers, each accepted by itself: one that names somebody unknown is left out.
with draft as materialized (
    select d.id, d.service, d.company_id, d.kind, d.actor, d.users::int[] as users, d.teams::int[] as teams,
           d.data, d.params, array(select jsonb_array_elements_text(d.subjects::jsonb)) as subjects
    from unnest(
        $1::uuid[], $2::text[], $3::int[], $4::text[], $5::int[], $6::text[], $7::text[], $8::text[], $9::text[],
        $10::text[]
    ) as d (id, service, company_id, kind, actor, users, teams, data, params, subjects)
),
unknown as materialized (
    select draft.id as event_id, s.field, s.id
    from draft
    cross join lateral strangers(draft.users, draft.teams, draft.company_id) s
),
accepted as (
    insert into events (id, service, company_id, kind, actor, users, teams, data, params, subjects)
    select id, service, company_id, kind, actor, users, teams, data, params, subjects
    from draft
    where id not in (select event_id from unknown)
    returning id, subjects
),
about as (
    insert into subjects (subject, event_id) select unnest(subjects), id from accepted
),
job as (
    insert into jobs (id, task, lane) select id, 'deliver', 'direct' from accepted
)
select event_id, field, id from unknown

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
       (select coalesce(sum(reached), 0) from recipients where event_id = e.id) as recipients
from events e
left join jobs j on j.id = e.id
left join dead_letters d on d.id = e.id
where e.id = $1 and ($2::text is null or e.service = $2) and ($3::int is null or e.company_id = $3)

-- name: readers
select count(*)
from recipients c
cross join unnest(c.user_ids) as got (user_id)
join inbox i on i.user_id = got.user_id and i.event_id = c.event_id
where c.event_id = $1 and i.read_at is not null
