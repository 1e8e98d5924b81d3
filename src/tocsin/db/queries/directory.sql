-- The directory: users, teams and their members.

-- name: put_users
-- Create or replace users, a JSON array; with $2, only those of that company. Returns the users that were put, with their
-- heads, in the order of ids, and whether the time zone and the company of each changed.
with given as materialized (
    -- the time zone is read under the lock of the user, whom another session may be changing
    select p.*, p.time_zone <> u.time_zone as zone_changed
    from (
        select *
        from json_to_recordset($1::json) as each (
            id int, company_id int, first_name text, last_name text, profile_picture text, email text, locale text,
            time_zone text, active bool
        )
        order by id
    ) p
    left join lateral (select time_zone from users where id = p.id for no key update) u on true
),
put as (
    insert into users (id, company_id, first_name, last_name, profile_picture, email, time_zone)
    select id, company_id, first_name, last_name, profile_picture, email, time_zone from given order by id
    on conflict (id) do update
    set company_id = excluded.company_id, first_name = excluded.first_name, last_name = excluded.last_name,
        profile_picture = excluded.profile_picture, email = excluded.email, time_zone = excluded.time_zone,
        moved_at = case when users.company_id = excluded.company_id then users.moved_at else clock_timestamp() end
    where $2::int is null or users.company_id = $2
    returning id, coalesce(moved_at >= statement_timestamp(), false) as moved
)
select put.id, g.locale, g.active, g.zone_changed, put.moved from put join given g on g.id = put.id order by put.id

-- name: leave_former
-- Remove users from teams of companies other than theirs. A statement of its own sees the members that another session added
-- while it held the rows of these users.
delete from members m
using users u
where u.id = any($1::int[]) and m.user_id = u.id and u.company_id <> (select t.company_id from teams t where t.id = m.team_id)

-- name: deliveries_under_way
-- The transactions that write records of recipients. A statement locks its tables before it takes its snapshot.
select coalesce(array_agg(distinct l.virtualtransaction), '{}')
from pg_locks l
where l.relation = 'recipients'::regclass and l.mode = 'RowExclusiveLock' and l.granted
  and l.database = (select oid from pg_database where datname = current_database())

-- name: user
select u.id, u.company_id, u.first_name, u.last_name, u.profile_picture, u.email, h.locale, u.time_zone, h.active
from users u
join heads h on h.user_id = u.id
where u.id = $1 and ($2::int is null or u.company_id = $2)

-- name: people
-- Users for callers of a company; null: of all companies. The limit is the number of users. It shows the planner that they
-- are few, so that it keeps its plan.
select asked.company_id, u.id, u.first_name, u.last_name, u.profile_picture
from (select * from unnest($1::int[], $2::int[]) as pair (company_id, id) limit $3::bigint) asked
join users u on u.id = asked.id and (asked.company_id is null or u.company_id = asked.company_id)

-- name: unknown
select array(select id from unknown_users($1, $3)) as users, array(select id from unknown_teams($2, $3)) as teams

-- name: put_team
insert into teams (id, company_id, name)
values ($1, $2, $3)
on conflict (id) do update
set company_id = excluded.company_id, name = excluded.name
where $4::int is null or teams.company_id = $4
returning id

-- name: leave
delete from members m
where m.team_id = $1 and not exists (select from unnest($2::int[]) as named (user_id) where named.user_id = m.user_id)

-- name: enter
-- Add users to a team, without those who were erased or left the company since they were looked up. Their rows stay locked, so
-- that who leaves the company at the same time leaves the team afterwards.
insert into members (team_id, user_id)
select $1, u.id
from users u
where u.id = any($2::int[]) and u.company_id = (select t.company_id from teams t where t.id = $1)
order by u.id
for share
on conflict do nothing

-- name: team
select id, company_id, name, array(select user_id from members where team_id = $1 order by user_id) as users
from teams
where id = $1 and ($2::int is null or company_id = $2)

-- name: users
select u.id, u.company_id, u.first_name, u.last_name, u.profile_picture, u.email, h.locale, u.time_zone, h.active
from users u
join heads h on h.user_id = u.id
where u.id > $1 and ($2::int is null or u.company_id = $2)
order by u.id
limit $3

-- name: teams
select t.id, t.company_id, t.name, (select count(*) from members m where m.team_id = t.id) as size
from teams t
where t.id > $1 and ($2::int is null or t.company_id = $2)
order by t.id
limit $3

-- name: hold_team
select company_id from teams where id = $1 and ($2::int is null or company_id = $2) for share

-- name: leave_one
delete from members where team_id = $1 and user_id = $2

-- name: delete_team
delete from teams where id = $1 and ($2::int is null or company_id = $2) returning id

-- name: hold_user
select company_id from users where id = $1 and ($2::int is null or company_id = $2) for update

-- name: erase_deliveries
-- Lock deliveries before devices, as the dispatcher does.
delete from deliveries
where (event_id, device_id) in (
    select event_id, device_id from deliveries where user_id = $1 order by event_id, device_id for update
)

-- name: failed
-- The events that name the user and failed.
select d.id
from dead_letters d
cross join lateral (select users from events where id = d.id offset 0) e
where d.task = 'deliver' and $1 = any(e.users)

-- name: erase
-- The user's id stays in the events that reached the user, and in those that failed ($4). They are changed by jobs, $2 events
-- each, in turns of their own ($3).
with gone as (
    delete from inbox where user_id = $1 returning event_id
),
done as (
    delete from changes where user_id = $1
),
cleared as (
    delete from clears where user_id = $1
),
asked as (
    delete from idempotency_keys where caller = 'user ' || $1::int
),
refused as materialized (
    select id from posted_people where user_id = $1
),
refused_people as (
    delete from posted_people p using refused r where p.id = r.id
),
refused_letter as (
    delete from dead_letters d using refused r where d.id = r.id
),
refused_job as (
    delete from jobs j using refused r where j.id = r.id
),
refused_event as (
    delete from posted p using refused r where p.id = r.id
),
imported as (
    -- lines of imports that failed, or were accepted; one that a worker is applying is applied after the erasure
    delete from import_lines
    where ctid = any(array(
        select l.ctid
        from imports i
        join import_lines l on l.import_id = i.id and l.part in ('user', 'device', 'notification') and l.user_id = $1
        where i.state = 'applying'
        for update of l skip locked
    ))
),
person as (
    delete from users where id = $1
),
remembered as (
    insert into erased_ids (digest, erased_at) values (sha256(convert_to($1::int::text, 'UTF8')), clock_timestamp())
    on conflict (digest) do update set erased_at = excluded.erased_at
),
erasure as (
    insert into erasures (id, user_id, event_ids)
    select gen_random_uuid(), $1, array_agg(event_id order by event_id)
    from (
        select event_id, row_number() over (order by event_id) - 1 as place
        from (select event_id from gone union select unnest($4::uuid[])) concerned
    ) sorted
    group by place / $2::int
    returning id
)
insert into jobs (id, task, lane, sender) select id, 'erase', 'bulk', $3 from erasure

-- name: next_generation
-- A user or team that gets a freed id from now on is not a recipient of events that were accepted before.
insert into generations as g (id, current) values (1, 1) on conflict (id) do update set current = g.current + 1

-- name: mask
-- Replace the user's id in the records of recipients of these events.
with chunk as materialized (
    -- the only chunk that the user can be in: its ids are greater than `after_user`
    select of.event_id, last.after_user
    from unnest($2::uuid[]) as of (event_id)
    cross join lateral (
        select after_user from recipients where event_id = of.event_id and after_user < $1
        order by after_user desc
        limit 1
    ) last
)
update recipients r
set user_ids = array_replace(r.user_ids, $1, 0)
from chunk
where r.event_id = chunk.event_id and r.after_user = chunk.after_user and $1 = any(r.user_ids)

-- name: hold_events
-- Erasures of other users of these events, and imports that are adding recipients to them, end first.
select from events where id = any($1::uuid[]) order by id for update

-- name: forget
-- Remove the user's id from these events; delete the words of those that no user has or may still get, with their keys, and
-- imported texts of which that is so. The user stays in events that failed, so that a replay counts the user as dropped.
with event as materialized (
    select e.id, e.service, e.company_id, e.key, e.subjects, (select true from dead_letters where id = e.id) as has_failed,
           (
               select true from recipients r where r.event_id = e.id and (r.user_ids <@ '{0}') is false limit 1
           ) is null
           and (select true from jobs where id = e.id) is null
           and (
               (select true from dead_letters where id = e.id) is null
               or cardinality(e.teams) = 0 and not
-- include: named_still
           ) as is_void
    from (select * from unnest($2::uuid[]) as asked (id) limit cardinality($2::uuid[])) asked
    join events e on e.id = asked.id
),
-- include: voided
,
used as materialized (
    -- the imported texts that other users have, as a map: an event may have one for each of many users
    select jsonb_object_agg(o.id::text || i.language, true) as texts
    from event o
    cross join lateral (
        select true from contents where event_id = o.id and language like 'imported-%' limit 1
    ) imported
    cross join lateral (select user_ids from recipients where event_id = o.id offset 0) r
    cross join unnest(r.user_ids) as reached (user_id)
    cross join lateral (select language from inbox where user_id = reached.user_id and event_id = o.id offset 0) i
),
words as (
    delete from contents c using event
    where c.event_id = event.id
      and (
          event.is_void
          or c.language like 'imported-%' and ((select texts from used) ? (c.event_id::text || c.language)) is not true
      )
)
update events e
set users = case when event.has_failed then e.users else array_remove(e.users, $1) end,
    excepted = array_remove(e.excepted, $1),
-- include: emptied
from event
where e.id = event.id

-- name: end_erasure
delete from erasures where id = $1 returning user_id, event_ids
