-- The users whom each of the events `candidate` reaches.
found as (
    -- A user who got the id of an erased user or moved to another company since is not the user who was named. The
    -- negative id matches no head, so that the recipient is counted as dropped. Scalar sub-queries look up each user by
    -- key, independent of the planner's estimates.
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
    from candidate p
    cross join unnest(p.users) as named (user_id)
    where named.user_id > p.after_user and named.user_id <= p.up_to
    union all
    select p.ordinal, member.user_id, t.team_id
    from candidate p
    cross join unnest(p.teams) as t (team_id)
    cross join lateral (
        select m.user_id
        from members m
        where m.team_id = t.team_id and m.user_id > p.after_user and m.user_id <= p.up_to
        offset 0
    ) member
    where member.user_id is distinct from p.actor
    union all
    -- users whom the event excludes, by both the positive and the negative id
    select p.ordinal, sign * left_out.user_id, -1
    from candidate p
    cross join unnest(p.excepted) as left_out (user_id)
    cross join unnest('{1,-1}'::int[]) as sign
    where left_out.user_id > p.after_user and left_out.user_id <= p.up_to
),
@into as materialized (
    -- each user once: excluded (-1) takes precedence over named (0), and named over a team
    select ordinal, user_id, min(team_id) as team_id
    from found
    group by ordinal, user_id
    having min(team_id) >= 0
),
