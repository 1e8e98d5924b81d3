-- The rows `row` of the teams of the company @company after the team @low up to @high.
team as materialized (
    select id from teams where id > @low and id <= @high and company_id = @company
),
row as materialized (
    select 'teams' as table_name, to_jsonb(t)::text as row
    from team cross join lateral (select * from teams where id = team.id offset 0) t
    union all
    select 'members', to_jsonb(t)::text
    from team cross join lateral (select * from members where team_id = team.id offset 0) t
)
