-- Events: accepted and stored.

-- name: accept
-- Store events (`fragments/accepted.sql`), each with a job. Returns those that were left out or have unknown recipients.
with
-- include: accepted
outcome as materialized (
    select id, batch, due_at, cost, unknown_users, unknown_teams, has_unknown,
           id in (select id from accepted) as is_stored
    from draft
),
job as (
    insert into jobs (id, task, lane, due_at, batch, wanted_at, cost)
    select id, 'deliver', 'direct', due_at, batch, greatest(due_at, now()), cost
    from outcome
    where is_stored
)
select id, is_stored, unknown_users, unknown_teams
from outcome
where has_unknown or not is_stored

-- name: accept_at_once
-- The same, but those of the events with content ($19..$21; all in the same languages) that reach at most $25 users, whose
-- heads no other session has locked, are delivered and get no job, if their content is given in all languages of their
-- recipients; with $24, all of the events or none. Waiting for a head would delay the events of other callers. Returns the events with content, too.
--
-- Lists are not joined but looked up in a hash, as `in` does that is not a condition by itself: the planner expects every
-- list to be short, and would compare each row of one list with each row of another.
with
-- include: accepted
stored as materialized (
    select ordinal, id, company_id, actor, known_users, known_teams, excepted, generation, batch, due_at, cost, unknown_users,
           unknown_teams, has_unknown, id in (select id from accepted) as is_stored,
           ordinal in (select unnest($19::int[])) as has_content
    from draft
),
candidate as materialized (
    select ordinal, 0 as after_user, 2147483647 as up_to, id as event_id, known_users as users, known_teams as teams, actor,
           excepted, company_id, generation, null::timestamptz as accepted_at
    from stored
    where is_stored and has_content
      and not exists (
          select
          from unnest(known_teams) as t (team_id)
          cross join lateral (select m.user_id from members m where m.team_id = t.team_id offset $25::int limit 1) further
      )
),
-- include: found(into=reached)
free as materialized (
    select h.user_id, h.locale, h.active
    from (select distinct user_id from reached order by user_id) r
    cross join lateral (
        select user_id, locale, active from heads where user_id = r.user_id for no key update skip locked
    ) h
),
speaker as (select locale from free where active),
-- include: spoken(languages=$22)
served as (
    select user_id
    from free
    where not active or (select languages from spoken) ->> locale in (select unnest($20::text[]))
),
ready as materialized (
    select ordinal
    from reached
    group by ordinal
    having count(*) <= $25 and bool_and(user_id < 0 or user_id in (select user_id from served))
),
piece as materialized (
    select *
    from candidate
    where (ordinal in (select ordinal from ready)) is true
      and (not $24::bool or (select count(*) from ready) = $18)
),
recipient as materialized (
    select * from reached where (ordinal in (select ordinal from piece)) is true
),
-- include: head
-- include: entries(lanes=$23)
,
said as (
    insert into contents (event_id, language, body)
    select ($1::uuid[])[content.ordinal], content.language, content.body
    from unnest($19::int[], $20::text[], $21::text[]) as content (ordinal, language, body)
    join got using (ordinal)
    where content.language = any(got.languages)
),
outcome as materialized (
    select stored.*, result.user_ids
    from stored
    full join result using (ordinal)
),
job as (
    insert into jobs (id, task, lane, due_at, batch, wanted_at, cost)
    select id, 'deliver', 'direct', due_at, batch, greatest(due_at, now()), cost
    from outcome
    where is_stored and user_ids is null
)
select id, is_stored, unknown_users, unknown_teams, user_ids, exists (select from pushed) as is_pushed,
       (select languages from spoken) as languages
from outcome
where has_unknown or not is_stored or has_content

-- name: write_log
-- Write a record, so that the commit waits for synchronous standbys, which may not have the event that is repeated: the server
-- may have been restarted, or the session ended, while its first transaction waited for them.
select pg_logical_emit_message(true, 'tocsin', '')

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
