-- The events $1 with the users above $2 up to $3. The limit is the number of events. It shows the planner that they are few, so
-- that it keeps its plan.
candidate as materialized (
    select p.ordinal::int as ordinal, p.after_user, p.up_to, e.id as event_id, e.users, e.actor, e.excepted, e.company_id,
           e.accepted_at, e.generation,
           array(
               -- a team that was made since has the id of a deleted one, which was named, and may be of another company
               select t.id
               from teams t
               where t.id = any(e.teams) and coalesce(t.company_id = e.company_id, true)
                 and coalesce(t.generation <= e.generation, true)
           ) as teams
    from (
        select *
        from unnest($1::uuid[], $2::int[], $3::int[]) with ordinality as given (event_id, after_user, up_to, ordinal)
        limit $6::bigint
    ) p
    join events e on e.id = p.event_id
),
