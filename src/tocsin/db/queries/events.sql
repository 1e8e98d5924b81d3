-- Events: accepted, replaced and cancelled.

-- name: accept
-- Store events of any number of callers, each with its subjects and its job. Left out is an event without data, one that
-- names unknown recipients and does not skip them, and one whose id is in use. Events that are due at once are due in
-- their order, microseconds apart and before now. They are inserted in the order of their ids, so that two sessions never
-- wait for each other. Returns the events that were left out or have unknown recipients.
--
-- The limit is the number of events. It shows the planner that they are few, so that it keeps its plan.
with draft as materialized (
    select given.*, unknown_users <> '{}' or unknown_teams <> '{}' as has_unknown
    from (
        select d.id, d.service, d.company_id, d.kind, d.actor, d.users::int[] as users, d.teams::int[] as teams,
               d.excepted::int[] as excepted, d.data, d.params, d.subjects::text[] as subjects, d.key, d.digest, d.batch,
               d.skips, d.cost, coalesce(d.due_at, now() - d.lag * interval '1 microsecond') as due_at,
               array(select id from unknown_users(d.users::int[], d.company_id)) as unknown_users,
               array(select id from unknown_teams(d.teams::int[], d.company_id)) as unknown_teams
        from unnest(
            $1::uuid[], $2::text[], $3::int[], $4::text[], $5::int[], $6::text[], $7::text[], $8::text[], $9::text[],
            $10::text[], $11::text[], $12::bool[], $13::timestamptz[], $14::text[], $15::bytea[], $16::uuid[],
            $17::int[], $18::int[]
        ) as d (
            id, service, company_id, kind, actor, users, teams, data, params, subjects, excepted, skips, due_at, key,
            digest, batch, lag, cost
        )
        limit $19::bigint
    ) given
),
accepted as (
    insert into events
        (
            id, service, company_id, kind, actor, users, teams, excepted, data, params, subjects, key, digest,
            skipped_users, skipped_teams, generation
        )
    select id, service, company_id, kind, actor,
           case when has_unknown then array(select unnest(users) except select unnest(unknown_users)) else users end,
           case when has_unknown then array(select unnest(teams) except select unnest(unknown_teams)) else teams end,
           excepted, data, params, subjects, key, digest,
           case when skips then unknown_users end, case when skips then unknown_teams end,
           (select coalesce(max(current), 0) from generations where generations.id = 1)
    from draft
    where data is not null and (skips or not has_unknown)
    order by id
    on conflict (id) do nothing
    returning id, subjects
),
about as (
    insert into subjects (subject, event_id) select unnest(subjects), id from accepted
),
result as materialized (
    select id, batch, due_at, cost, unknown_users, unknown_teams, has_unknown,
           id in (select id from accepted) as is_stored
    from draft
),
job as (
    insert into jobs (id, task, lane, due_at, batch, wanted_at, cost)
    select id, 'deliver', 'direct', due_at, batch, greatest(due_at, now()), cost
    from result
    where is_stored
)
select id, is_stored, unknown_users, unknown_teams
from result
where has_unknown or not is_stored

-- name: posted
-- The callers, digests and skipped recipients of the events with these ids.
select id, service, company_id, digest, coalesce(skipped_users, '{}') as skipped_users,
       coalesce(skipped_teams, '{}') as skipped_teams
from events
where id = any($1::uuid[])

-- name: hold_keys
-- Lock these keys, in their order, and return the event that each of them names. A new key names its event in $4.
insert into event_keys (service, company_id, key, event_id)
select $1, $2, k.key, k.event_id
from unnest($3::text[], $4::uuid[]) as k (key, event_id)
order by k.key
on conflict (service, company_id, key) do update set event_id = event_keys.event_id
returning key, event_id

-- name: name_keys
update event_keys e
set event_id = k.event_id
from unnest($3::text[], $4::uuid[]) as k (key, event_id)
where e.service = $1 and e.company_id = $2 and e.key = k.key

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

-- name: owned
select id, service, company_id from events
where id = $1 and ($2::text is null or service = $2) and ($3::int is null or company_id = $3)

-- name: key
select event_id from event_keys where service = $1 and company_id = $2 and key = $3 for update

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

-- name: count_of_recipients
-- The active users among $1 and the members of the teams $2 of a company, without the actor as a member, counted up to $5. At
-- most $6 memberships are read.
select count(*)::int
from (
    select h.user_id
    from (
        select distinct user_id
        from (
            (select named.user_id from unnest($1::int[]) as named (user_id))
            union all
            (
                select m.user_id
                from unnest($2::int[]) as given (team_id)
                cross join lateral (
                    select id from teams where id = given.team_id and company_id = $4 offset 0
                ) t
                cross join lateral (
                    select user_id from members where team_id = t.id and user_id is distinct from $3::int limit $5
                ) m
                limit $6
            )
        ) found
    ) reached
    cross join lateral (select user_id from heads where user_id = reached.user_id and active offset 0) h
    limit $5
) counted
