-- Exports: everything, up to a thousand lines at a time, in the format of imports.

-- name: users
-- The columns that come from the host application.
select u.id as last,
       jsonb_build_object(
           'user', to_jsonb(u) - 'moved_at' || jsonb_build_object('locale', h.locale, 'active', h.active)
       )::text as line
from users u
join heads h on h.user_id = u.id
where u.id > $1 and ($2::int is null or u.company_id = $2)
order by u.id
limit 1000

-- name: teams
-- A few at a time, since each may have a million members.
select t.id as last,
       '{"team":' || json_build_object(
           'id', t.id, 'name', t.name, 'company_id', t.company_id,
           'users', array(select m.user_id from members m where m.team_id = t.id order by m.user_id)
       ) || '}' as line
from teams t
where t.id > $1 and ($2::int is null or t.company_id = $2)
order by t.id
limit 20

-- name: devices
-- The devices of the next users.
with person as materialized (
    select id from users where id > $1 and ($2::int is null or company_id = $2) order by id limit 1000
)
select (select max(id) from person) as last,
       case when d.token is not null then
           '{"device":' || json_build_object(
               'user_id', d.user_id, 'token', coalesce(d.whole_token, d.token), 'type', d.type, 'provider', d.provider,
               'environment', d.environment, 'app', d.app,
               'registered_at', to_char(d.registered_at, 'YYYY-MM-DD"T"HH24:MI:SS.USZ'),
               'last_delivered_at', to_char(d.last_delivered_at, 'YYYY-MM-DD"T"HH24:MI:SS.USZ')
           ) || '}'
       end as line
from person p
left join devices d on d.user_id = p.id and is_phone(d.type) -- a browser subscribes again by itself
order by p.id, d.registered_at, d.token

-- name: people
select id as last from users where id > $1 and ($2::int is null or company_id = $2) order by id limit 1000

-- name: notifications
-- The notifications of a user, the oldest first, without deleted ones. For one company, also without those of events of
-- other companies, and of events of no company those from before the user came from another company.
select i.position as last,
       case when $3::int is null or coalesce(e.company_id = $3, u.moved_at is null or u.moved_at <= i.created_at) then
           '{"notification":{"user_id":' || i.user_id || ',' || c.body
           || ',"read_at":' || coalesce('"' || to_char(i.read_at, 'YYYY-MM-DD"T"HH24:MI:SS.USZ') || '"', 'null')
           || ',"created_at":"' || to_char(i.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.USZ') || '"}}'
       end as line
from (
    (
        select user_id, position, event_id, language, read_at, created_at from inbox
        where user_id = $2 and position > $1 and deleted_at is null and read_at is null
        order by position limit 1000
    )
    union all
    (
        select user_id, position, event_id, language, read_at, created_at from inbox
        where user_id = $2 and position > $1 and deleted_at is null and read_at is not null
        order by position limit 1000
    )
) i
join contents c on c.event_id = i.event_id and c.language = i.language
join users u on u.id = i.user_id
left join events e on e.id = i.event_id
order by i.position
limit 1000
