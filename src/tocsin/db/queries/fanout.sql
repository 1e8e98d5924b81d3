-- Fan-out: the recipients of events, and the content of notifications.

-- name: outline
-- The next chunk of each event: how many users it reaches, at most $3, and the last of them. An event that names more than
-- $4 ids is not looked up: it counts as $3. The limit is the number of events. It shows the planner that they are few, so
-- that it keeps its plan.
select e.id, p.after_user, case when named.n > $4 then $3 else chunk.reach end as reach, chunk.up_to
from (
    select *
    from unnest($1::uuid[], $2::int[]) with ordinality as given (event_id, after_user, ordinal)
    limit $5::bigint
) p
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
-- Those of these events with a recipient whose head another session has locked, for at most 100 such heads. At most $2
-- members of a team are looked up. An event that names more than $3 ids is left out: the direct queue does not deliver it.
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

-- name: forget_erased
-- Remove from these events, which are delivered, the ids of users who were erased before; and the words, if they are for erased
-- users only. A new user with the id of an erased one is not the user who was named.
with event as materialized (
    select e.id, e.service, e.company_id, e.key, e.subjects, array(
               select named.user_id
               from unnest(e.users) as named (user_id)
               where (select true from heads h where h.user_id = named.user_id)
           ) as users,
           cardinality(e.teams) = 0 and not
-- include: named_still
           as is_void
    from (select * from unnest($1::uuid[]) as asked (id) limit cardinality($1::uuid[])) asked
    join events e on e.id = asked.id
),
-- include: voided
update events e
set users = event.users,
-- include: emptied
from event
where e.id = event.id and (event.is_void or cardinality(event.users) < cardinality(e.users))

-- name: insert_contents
insert into contents (event_id, language, body)
select * from unnest($1::uuid[], $2::text[], $3::text[])
on conflict do nothing
