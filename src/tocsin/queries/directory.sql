-- The directory: users, teams and who is in them.

-- name: put_user
with put as (
    insert into users (id, company_id, first_name, last_name, profile_picture, email, time_zone)
    values ($1, $2, $3, $4, $5, $6, $8)
    on conflict (id) do update
    set company_id = excluded.company_id, first_name = excluded.first_name, last_name = excluded.last_name,
        profile_picture = excluded.profile_picture, email = excluded.email, time_zone = excluded.time_zone
    where $10::int is null or users.company_id = $10
    returning id, company_id
),
head as (
    insert into heads (user_id, locale, active)
    select id, $7, $9 from put
    on conflict (user_id) do update set locale = excluded.locale, active = excluded.active
),
moved as (
    -- who changes the company leaves the teams of the old one
    delete from members m
    using put, teams t
    where m.user_id = put.id and t.id = m.team_id and t.company_id <> put.company_id
)
select id from put

-- name: user
select u.id, u.company_id, u.first_name, u.last_name, u.profile_picture, u.email, h.locale, u.time_zone, h.active
from users u
join heads h on h.user_id = u.id
where u.id = $1 and ($2::int is null or u.company_id = $2)

-- name: people
select id, first_name, last_name, profile_picture
from users
where id = any($1::int[]) and ($2::int is null or company_id = $2)

-- name: strangers
select id from strangers($1, '{}', $2)

-- name: put_team
insert into teams (id, company_id, name)
values ($1, $2, $3)
on conflict (id) do update
set company_id = excluded.company_id, name = excluded.name
where $4::int is null or teams.company_id = $4
returning id

-- name: leave
delete from members where team_id = $1 and user_id <> all($2::int[])

-- name: enter
insert into members (team_id, user_id)
select $1, id from unnest($2::int[]) as named (id)
on conflict do nothing

-- name: team
select id, company_id, name, array(select user_id from members where team_id = $1 order by user_id) as users
from teams
where id = $1 and ($2::int is null or company_id = $2)
