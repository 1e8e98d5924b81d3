-- The users and the teams that a caller may not address, each by a function of its own. A caller may be bound to a company.
-- Scalar sub-queries look each id up by its key, however many there are and whatever the planner expects. The function
-- `strangers` is left for the release before.
create function unknown_users(user_ids int[], company int) returns table (id int)
language sql stable parallel safe
begin atomic
    select named.id
    from unnest(user_ids) as named (id)
    where not coalesce((select company is null or u.company_id = company from users u where u.id = named.id), false);
end;

create function unknown_teams(team_ids int[], company int) returns table (id int)
language sql stable parallel safe
begin atomic
    select named.id
    from unnest(team_ids) as named (id)
    where not coalesce((select company is null or t.company_id = company from teams t where t.id = named.id), false);
end;
