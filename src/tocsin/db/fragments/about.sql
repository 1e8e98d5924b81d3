-- The events about a subject $1; if $2 is given, only those of that service. Events of other companies than $3 are left out. Of
-- events without a company, a service of a company resolves the notifications of users of that company. An event is held if
-- its delivery has not begun.
about as materialized (
    select e.id, $3::int is null or e.company_id = $3 as addressed,
           j.id is not null and j.worker_id is null and j.progress = 0 and j.attempts = 0
           and least(j.due_at, j.wanted_at) > now() as held
    from subjects s
    cross join lateral (select id, service, company_id from events where id = s.event_id offset 0) e
    left join jobs j on j.id = e.id and j.task = 'deliver'
    where s.subject = $1 and coalesce(e.company_id = $3, true)
      and ($2::text is null or (e.service = $2 and e.company_id is not distinct from $3))
)
