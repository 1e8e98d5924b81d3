-- The status of events.

-- name: event
-- Without the users of the companies $4, which have their part in another database.
select e.id, e.kind, e.service,
       case
           when j.id is not null then
               case
                   when j.progress > 0 or j.worker_id is not null then 'delivering'
                   when least(j.due_at, j.wanted_at) > now() and j.attempts = 0 then 'held'
                   else 'queued'
               end
           when d.id is not null then 'failed'
           when c.event_id is not null then 'cancelled'
           else 'delivered'
       end as state,
       d.reason, c.replaced_by, c.operator, coalesce(part.recipients, 0) as recipients, coalesce(part.dropped, 0) as dropped
from events e
cross join lateral (
    select sum(r.reached - others.n) as recipients, sum(r.dropped) filter (where others.n = 0 or others.n < r.reached) as dropped
    from recipients r
    cross join lateral (
        select count(*) as n
        from unnest(r.user_ids) as named (id)
        where
-- include: in_other_cell(user=named.id, companies=$4)
    ) others
    where r.event_id = e.id
) part
left join jobs j on j.id = e.id
left join dead_letters d on d.id = e.id
left join cancellations c on c.event_id = e.id
where e.id = (select $1::uuid) and ($2::text is null or e.service = $2) and ($3::int is null or e.company_id = $3)

-- name: readers
-- All users of a chunk are looked up in one scan of the primary key. Those of the companies $2 do not count.
select coalesce(sum(had_read.n), 0)::bigint
from recipients c
cross join lateral (
    select count(*) as n
    from inbox i
    where i.user_id = any(c.user_ids) and i.event_id = c.event_id and i.read_at is not null and not (
-- include: in_other_cell(user=i.user_id, companies=$2)
    )
) had_read
where c.event_id = (select $1::uuid)

-- name: person
-- One user of an event: whether the event names or excepts the user, by which team the user is a recipient, and the result.
select e.actor = $2 as is_actor, $2 = any(e.excepted) as is_excepted, $2 = any(e.users) as is_named,
       j.id is not null as pending, j.due_at, c.event_id is not null as cancelled, c.operator, d.reason,
       (
           select min(m.team_id) from members m where m.user_id = $2 and m.team_id = any(e.teams)
       ) as member_of,
       nullif(r.team_id, 0) as team_id, i.created_at as delivered_at, i.read_at, i.deleted_at,
       (select h.active from heads h where h.user_id = $2) as active,
       (
           select coalesce(h.generation > e.generation, h.made_at > e.accepted_at) from heads h where h.user_id = $2
       ) as is_successor,
       exists (select from users u where u.id = $2 and ($4::int is null or u.company_id = $4)) as is_known
from events e
left join jobs j on j.id = e.id
left join cancellations c on c.event_id = e.id
left join dead_letters d on d.id = e.id
left join lateral (
    select chunk.team_ids[array_position(chunk.user_ids, $2)] as team_id
    from recipients chunk
    where chunk.event_id = e.id and $2 = any(chunk.user_ids)
    limit 1
) r on true
left join inbox i on i.user_id = $2 and i.event_id = e.id
where e.id = $1 and ($3::text is null or e.service = $3) and ($4::int is null or e.company_id = $4)

-- name: customs
-- Custom notifications, or those before a time, the latest first, of all companies or of one: the sender, by the name at that time,
-- since another user may have the id now, and the number of recipients. Each of the two lists has its index, and only one
-- is read.
with latest as (
    (
        select id, accepted_at, service, actor, data, users, teams
        from events
        where $3::int is null and kind = 'custom' and accepted_at < coalesce($1::timestamptz, 'infinity')
        order by accepted_at desc
        limit $2
    )
    union all
    (
        select id, accepted_at, service, actor, data, users, teams
        from events
        where company_id = $3 and kind = 'custom' and accepted_at < coalesce($1::timestamptz, 'infinity')
        order by accepted_at desc
        limit $2
    )
)
select e.id, e.accepted_at, e.service, e.actor, sender.person ->> 'first_name' as first_name,
       sender.person ->> 'last_name' as last_name,
       cardinality(e.users) as users, cardinality(e.teams) as teams,
       (select coalesce(sum(reached), 0) from recipients where event_id = e.id) as recipients,
       (select coalesce(sum(dropped), 0) from recipients where event_id = e.id) as dropped
from latest e
cross join lateral (select e.data::json -> 'user' as person) sender
order by e.accepted_at desc
