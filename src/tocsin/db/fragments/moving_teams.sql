-- The rows `row` of those of the teams @teams that are in the company @company.
team as materialized (
    select id from teams where id = any(@teams) and company_id = @company
),
row as materialized (
-- include: moving_rows(of=team, table=teams, key=id)
    union all
-- include: moving_rows(of=team, table=members, key=team_id)
)
