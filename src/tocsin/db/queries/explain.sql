-- Explanations: what a user received, what not, and why.

-- name: person
select u.id, u.company_id, u.first_name, u.last_name, h.active, h.total, h.unread, u.time_zone
from users u
join heads h on h.user_id = u.id
where u.id = $1 and ($2::int is null or u.company_id = $2)

-- name: devices
-- The devices of a user, each with the state of its lane and its last push, if that is among the user's last 200.
with last as materialized (
    select device_id, made_at, state, reason from deliveries where user_id = $1 order by made_at desc limit 200
)
select d.id, d.type, d.environment, d.app, d.lane, right(d.token, 6) as token_ending, d.registered_at,
       d.last_delivered_at, l.name is not null and
-- include: served(lane=d.lane)
       as has_lane, l.stopped_at, l.reason as lane_reason, push.state, push.reason
from devices d
left join lanes l on l.name = d.lane
left join lateral (select * from last where device_id = d.id order by made_at desc limit 1) push on true
where d.user_id = $1
order by d.registered_at desc

-- name: reach
-- The time of the first event that is left out, if there are too many since a time. Of one company, it is that of its first
-- event that is not left out, or now: when others post is not its business.
with last as materialized (
    select company_id, accepted_at from events where accepted_at >= $1 order by accepted_at desc limit $2::bigint + 1
),
cut as (
    select accepted_at from last offset $2::bigint
)
select case
           when $3::int is null then cut.accepted_at
           else coalesce(
               (select min(accepted_at) from (select * from last limit $2::bigint) searched where company_id = $3), now()
           )
       end
from cut

-- name: events
-- Events since a time that concern a user, the latest first: those in the inbox, and of the latest events of all those
-- that name the user, except the user, or name a team that the user is a member of now.
with mine as materialized (
    select array_agg(team_id) as teams from members where user_id = $1
),
person as materialized (
    select generation, made_at from heads where user_id = $1
),
last as materialized (
    select id, users, teams, excepted, generation, accepted_at
    from events
    where accepted_at >= $2
    order by accepted_at desc
    limit $5
),
came as (
    (
        select event_id, created_at from inbox
        where user_id = $1 and read_at is null and deleted_at is null
        order by position desc
        limit $4
    )
    union all
    (
        select event_id, created_at from inbox
        where user_id = $1 and read_at is not null and deleted_at is null
        order by position desc
        limit $4
    )
    union all
    (select event_id, created_at from inbox where user_id = $1 and deleted_at is not null order by position desc limit $4)
),
found as (
    select event_id from came where created_at >= $2
    union
    select last.id from last
    where last.teams && (select teams from mine)
       or (
           ($1 = any(last.users) or $1 = any(last.excepted))
           -- events for an earlier user with the id are left out
           and coalesce(
               (select generation from person) <= last.generation, (select made_at from person) <= last.accepted_at
           )
       )
)
select e.id, e.kind, e.accepted_at
from found
join events e on e.id = found.event_id
where $3::int is null or e.company_id = $3
order by e.accepted_at desc
limit $4

-- name: find
-- Users whose whole name, last name or e-mail address begins with a text, of one company, or of all (null), which are looked at in
-- turn. At most about $4 are read.
with recursive every as (
    (select company_id as id from users where $2::int is null order by company_id limit 1)
    union all
    select (select u.company_id from users u where u.company_id > every.id order by u.company_id limit 1)
    from every
    where every.id is not null
),
company as (
    select id from every where id is not null
    union all
    select $2::int where $2::int is not null
),
found as (
    select person.id
    from company
    cross join lateral (
        (
            select id from users
            where company_id = company.id
              and lower(first_name || ' ' || last_name) ~>=~ lower($1::text)
              and lower(first_name || ' ' || last_name) ~<~ (lower($1::text) || chr(1114111))
            limit $4
        )
        union
        (
            select id from users
            where company_id = company.id
              and lower(last_name) ~>=~ lower($1::text) and lower(last_name) ~<~ (lower($1::text) || chr(1114111))
            limit $4
        )
        union
        (
            select id from users
            where company_id = company.id
              and email is not null
              and lower(email) ~>=~ lower($1::text)
              and lower(email) ~<~ (lower($1::text) || chr(1114111))
            limit $4
        )
    ) person
    limit $4
)
select u.id, u.company_id, u.first_name, u.last_name, u.email, h.active
from found
cross join lateral (select * from users where id = found.id offset 0) u
cross join lateral (select active from heads where user_id = found.id offset 0) h
order by u.id
limit $3

-- name: recipients
-- The recipients of an event with ids above $2; if $5 is true, only those with a push that is not
-- delivered. Of the two lists only one is read.
with person as (
    (
        select got.user_id
        from recipients c
        cross join unnest(c.user_ids) as got (user_id)
        where not $5::bool and c.event_id = $1 and got.user_id > $2
        order by got.user_id
        limit $3
    )
    union all
    (
        select distinct d.user_id
        from deliveries d
        where $5 and d.event_id = $1 and d.user_id > $2 and d.state <> 'delivered'
        order by d.user_id
        limit $3
    )
)
select p.user_id, u.first_name, u.last_name, i.read_at, coalesce(push.states, '{}') as pushes
from person p
left join users u on u.id = p.user_id and ($4::int is null or u.company_id = $4)
left join lateral (select read_at from inbox where user_id = p.user_id and event_id = $1 offset 0) i on true
left join lateral (
    select array_agg(distinct d.state order by d.state) as states
    from deliveries d
    where d.event_id = $1 and d.user_id = p.user_id
) push on true
order by p.user_id
