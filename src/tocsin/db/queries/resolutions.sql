-- Resolutions: the notifications about a subject are read, removed or rewritten.

-- name: hold
-- The next statement sees which of these failed, were replayed, or became due since.
with
-- include: about
,
-- include: held(ids=any(select id from about))

-- name: cancel
-- Cancel the events about a subject that are not completely delivered, but for those that are not only the caller's. Those that
-- were accepted since `hold` and are locked are skipped, because locks are taken in order.
with
-- include: about
,
stopped as (
    delete from jobs
    where id = any(array(
        select j.id from jobs j where j.id in (select id from about where addressed) and j.task = 'deliver'
        for update skip locked
    ))
    returning id
),
dead as (
    delete from dead_letters
    where id = any(array(
        select d.id from dead_letters d where d.id in (select id from about where addressed) and d.task = 'deliver'
        for update skip locked
    ))
    returning id
)
insert into cancellations (event_id) select id from stopped union all select id from dead

-- name: except
-- Except users, named or in a team, from events that are not delivered to them yet, also if they failed. The teams of the users
-- are read once for all events.
with
-- include: about
,
pending as materialized (
    select j.id from jobs j where j.id in (select id from about) and j.task = 'deliver'
    union all
    select d.id from dead_letters d where d.id in (select id from about) and d.task = 'deliver'
),
of_team as materialized (
    select jsonb_object_agg(team_id, user_ids) as members
    from (
        select m.team_id, array_agg(m.user_id) as user_ids
        from unnest($4::int[]) as left_out (user_id)
        cross join lateral (select team_id, user_id from members where user_id = left_out.user_id offset 0) m
        group by m.team_id
    ) grouped
),
addressed as materialized (
    select e.id, array(
        (
            select named.user_id
            from unnest(e.users) as named (user_id)
            where (named.user_id in (select unnest($4::int[]))) is true
            union
            select member.id::int
            from unnest(e.teams) as t (id)
            cross join lateral jsonb_array_elements_text((select members from of_team) -> t.id::text) as member (id)
        )
        except
        select unnest(e.excepted)
    ) as user_ids
    from pending
    join events e on e.id = pending.id
)
update events e
set excepted = e.excepted || addressed.user_ids
from addressed
where e.id = addressed.id and cardinality(addressed.user_ids) > 0

-- name: accept
-- Store the resolution $4 for users $5, in parts of $6 events with a job each, in turns of their own ($7): an erasure for the
-- events within one company, others for those that are not held. Returns the number of events that are the caller's alone:
-- others may concern other companies only.
with
-- include: about
,
part as (
    insert into resolutions (id, how, company_id, users, event_ids, rewritten)
    select gen_random_uuid(), $4, $3, $5, array_agg(id order by id), $4 <> 'erased'
    from (
        select id, row_number() over (order by id) - 1 as place
        from about
        where case when $4 = 'erased' then addressed else not held end
    ) concerned
    group by place / $6::int
    returning id
),
job as (
    insert into jobs (id, task, lane, sender)
    select id, 'resolve', case row_number() over () when 1 then 'direct' else 'bulk' end, $7 from part
)
select count(*) filter (where addressed) from about

-- name: begin
-- Begin a pass: record whether some events are still being delivered, so that another pass has to follow.
update resolutions r
set again = r.how <> 'erased'
    and exists (select from jobs j where j.id = any(r.event_ids) and j.task = 'deliver')
where r.id = $1 and r.after_user < 0

-- name: resolution
select how, company_id, users, rewritten, again from resolutions where id = $1

-- name: chunks
-- The next recipients, about $2 of them in $3 records at most; `more`: others follow.
with next as materialized (
    select c.event_id, c.after_user, c.user_ids,
           sum(cardinality(c.user_ids)) over (order by c.event_id, c.after_user) - cardinality(c.user_ids) as before
    from resolutions r
    cross join lateral (
        select event_id, after_user, user_ids
        from recipients
        where event_id = any(r.event_ids) and (event_id, after_user) > (r.after_event, r.after_user)
        order by event_id, after_user
        limit $3
    ) c
    where r.id = $1
),
taken as materialized (
    select * from next where before < $2::int
)
select event_id, after_user, user_ids,
       (select count(*) from next) > (select count(*) from taken) or (select count(*) from next) = $3 as more
from taken
order by event_id, after_user

-- name: advance
update resolutions set after_event = $2, after_user = $3 where id = $1

-- name: restart
update resolutions set after_event = default, after_user = default where id = $1

-- name: forget
delete from resolutions where id = $1

-- name: to_rewrite
-- The next events, with no kind if they were deleted. No other events are looked up.
select next.id, e.kind, e.data, e.params
from (
    select named.id
    from resolutions r
    cross join unnest(r.event_ids) as named (id)
    where r.id = $1 and named.id > r.after_event
    order by named.id
    limit $2
) next
left join lateral (select kind, data, params from events where id = next.id offset 0) e on true
order by next.id

-- name: hold_deliveries
-- Lock the jobs of these events: a running chunk ends first, and the next one reads the new words.
select id from jobs where id = any($1::uuid[]) and task = 'deliver' order by id for update

-- name: contents
select event_id, language, body from contents where event_id = any($1::uuid[])

-- name: rewrite
-- An event whose words were deleted since they were read, because its user was erased, stays without words.
with event as (
    update events e
    set data = n.data, params = n.params, erased = true
    from unnest($1::uuid[], $2::text[], $3::text[]) as n (id, data, params)
    where e.id = n.id and (e.data, e.params) <> ('{}', '{}')
)
update contents c
set body = n.body
from unnest($4::uuid[], $5::text[], $6::text[]) as n (event_id, language, body)
where c.event_id = n.event_id and c.language = n.language

-- name: rewritten
update resolutions set rewritten = true, after_event = default, after_user = default where id = $1
