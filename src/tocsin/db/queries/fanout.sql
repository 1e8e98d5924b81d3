-- Fan-out: from an event to the inboxes.

-- name: outline
-- The next chunk of each event: how many it reaches (at most $3), and up to which user. What an event names more than $4
-- ids is not looked up here: it is taken to reach $3.
select e.id, p.after_user, case when named.n > $4 then $3 else chunk.reach end as reach, chunk.up_to
from unnest($1::uuid[], $2::int[]) with ordinality as p (event_id, after_user, ordinal)
join events e on e.id = p.event_id
cross join lateral (select cardinality(e.users) + cardinality(e.teams) + cardinality(e.excepted) as n) named
cross join lateral (
    select count(*) as reach, max(user_id) as up_to
    from (
        select user_id
        from (
            (
                select named.user_id from unnest(e.users) as named (user_id) where named.user_id > p.after_user
                union
                select member.user_id
                from unnest(e.teams) as t (team_id)
                cross join lateral (
                    select m.user_id
                    from members m
                    where m.team_id = t.team_id and m.user_id > p.after_user and m.user_id is distinct from e.actor
                    order by m.user_id
                    limit $3 + cardinality(e.excepted)
                ) member
            )
            except
            select unnest(e.excepted)
        ) found
        order by user_id
        limit $3
    ) next
    where named.n <= $4
) chunk
order by p.ordinal

-- name: behind_locks
-- Of these events, those that concern somebody whose head another session holds: of at most 100 such heads. Members of a
-- team are looked at up to $2; an event that names more than $3 ids enters no inbox in this lane.
with reached as materialized (
    select e.id as event_id, named.user_id
    from unnest($1::uuid[]) as asked (event_id)
    join events e on e.id = asked.event_id
    cross join lateral (
        select unnest(e.users) as user_id
        union all
        select member.user_id
        from unnest(e.teams) as t (team_id)
        cross join lateral (select m.user_id from members m where m.team_id = t.team_id order by m.user_id limit $2) member
    ) named
    where cardinality(e.users) + cardinality(e.teams) + cardinality(e.excepted) <= $3
),
head as materialized (
    select h.user_id
    from (select distinct user_id from reached order by user_id) r
    cross join lateral (select user_id from heads where user_id = r.user_id offset 0) h
),
free as materialized (
    select h.user_id
    from head
    cross join lateral (select user_id from heads where user_id = head.user_id for no key update skip locked) h
),
held as materialized (
    select user_id from head except select user_id from free limit 100
)
select distinct event_id from reached where user_id = any(array(select user_id from held))

-- name: deliver
-- One chunk each of one or more events, in their order, into the inboxes. Heads are updated, and so locked, in the order
-- of their ids, so that two deliveries never wait for each other in a circle: whatever the planner chooses comes to
-- them by their one index or by the sorted list, since our sessions scan neither tables nor bitmaps. What is to be said
-- is read here, under the lock of the job: words that are erased meanwhile must not be said any more.
--
-- Each list of people is read once, and nothing is joined to it but by an index: the planner takes all of them for short,
-- and would compare each row of one with each of the other.
with piece as materialized (
    select p.ordinal::int as ordinal, p.after_user, p.up_to, e.id as event_id, e.users, e.actor, e.excepted, e.company_id,
           e.accepted_at, e.generation,
           case
               when e.company_id is null then e.teams
               else array(select t.id from teams t where t.id = any(e.teams) and t.company_id = e.company_id)
           end as teams
    from unnest($1::uuid[], $2::int[], $3::int[]) with ordinality as p (event_id, after_user, up_to, ordinal)
    join events e on e.id = p.event_id
),
found as (
    -- Whoever has the id of somebody erased since, or went to another company, is not who was named: they get a number
    -- that is nobody's, and so are dropped, and counted. Each is looked up by itself, whatever the planner expects.
    select p.ordinal,
           case
               when (
                   select coalesce(h.generation > p.generation, h.made_at > p.accepted_at)
                   from heads h
                   where h.user_id = named.user_id
               ) then - named.user_id
               when p.company_id is null then named.user_id
               when (select u.company_id <> p.company_id from users u where u.id = named.user_id) then - named.user_id
               else named.user_id
           end as user_id,
           0 as team_id
    from piece p
    cross join unnest(p.users) as named (user_id)
    where named.user_id > p.after_user and named.user_id <= p.up_to
    union all
    select p.ordinal, member.user_id, t.team_id
    from piece p
    cross join unnest(p.teams) as t (team_id)
    cross join lateral (
        select m.user_id
        from members m
        where m.team_id = t.team_id and m.user_id > p.after_user and m.user_id <= p.up_to
        offset 0
    ) member
    where member.user_id is distinct from p.actor
    union all
    -- who is left out, whoever they are by now
    select p.ordinal, sign * left_out.user_id, -1
    from piece p
    cross join unnest(p.excepted) as left_out (user_id)
    cross join unnest('{1,-1}'::int[]) as sign
    where left_out.user_id > p.after_user and left_out.user_id <= p.up_to
),
recipient as materialized (
    -- each once; being left out goes before being named, and that before any team
    select ordinal, user_id, min(team_id) as team_id
    from found
    group by ordinal, user_id
    having min(team_id) >= 0
),
head as (
    update heads h
    set position = h.position + a.n, total = h.total + a.n, unread = h.unread + a.n,
        last_at = greatest(h.last_at, clock_timestamp())
    from (
        -- a part is the ordinal and, in its lower half, the team
        select user_id, count(*)::int as n, array_agg(ordinal::bigint << 32 | team_id order by ordinal) as parts
        from recipient
        group by user_id
        order by user_id
    ) a
    where h.user_id = a.user_id and h.active
    returning h.user_id, h.position - a.n as before, h.last_at, h.locale, a.parts
),
spoken as materialized (
    -- da-DK speaks da where there is no da-DK, and the first language of all where there is neither
    select jsonb_object_agg(l.locale, coalesce((
        select language
        from unnest($4::text[]) as known (language)
        where starts_with(lower(replace(l.locale, '_', '-')) || '-', lower(known.language) || '-')
        order by length(language) desc
        limit 1
    ), ($4::text[])[1])) as languages
    from (select distinct locale from head) l
),
entry as materialized (
    select (part >> 32)::int as ordinal, ($1::uuid[])[part >> 32] as event_id, head.user_id,
           (part & x'7fffffff'::int)::int as team_id, head.before + nth as position, head.last_at,
           (select languages from spoken) ->> head.locale as language
    from head
    cross join unnest(head.parts) with ordinality as part_of (part, nth)
),
delivered as (
    insert into inbox (position, created_at, event_id, user_id, language)
    select position, last_at, event_id, user_id, language
    from entry
),
pushed as (
    -- one delivery for each device that a lane leads to; without lanes nothing is looked up
    insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending)
    select entry.event_id, d.id, entry.user_id, d.lane, $6, d.type, right(d.token, 6)
    from entry
    cross join lateral (
        select id, lane, type, token from devices where user_id = entry.user_id and lane = any($5::text[]) offset 0
    ) d
    where cardinality($5::text[]) > 0 and exists (select from devices)
    returning true
),
meant as materialized (
    select ordinal, count(*) as n from recipient group by ordinal
),
got as materialized (
    select ordinal, array_agg(user_id) as user_ids, array_agg(team_id) as team_ids,
           array_agg(distinct language) as languages
    from entry
    group by ordinal
),
result as materialized (
    select p.event_id, p.after_user, coalesce(got.user_ids, '{}') as user_ids, coalesce(got.team_ids, '{}') as team_ids,
           coalesce(meant.n, 0) as meant, got.languages
    from piece p
    left join meant using (ordinal)
    left join got using (ordinal)
),
noted as (
    insert into recipients (event_id, after_user, user_ids, team_ids, reached, dropped)
    select event_id, after_user, user_ids, team_ids, cardinality(user_ids), meant - cardinality(user_ids)
    from result
)
select e.id, e.kind, e.data, e.params, e.erased, result.languages, result.user_ids,
       exists (select from pushed) as pushed
from result
join events e on e.id = result.event_id
where result.languages is not null

-- name: say
insert into contents (event_id, language, body)
select * from unnest($1::uuid[], $2::text[], $3::text[])
on conflict do nothing
