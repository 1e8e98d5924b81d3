-- Imports: lines are staged until all are checked, and then applied in steps. Applied lines are deleted.

-- name: begin
insert into imports (id, state, company_id) values ($1, 'checking', $2)

-- name: touch
update imports set touched_at = clock_timestamp() where id = $1

-- name: abandon
-- Delete some lines of an import, and then the import, unless it was accepted: that may be so if the answer to its commit
-- was lost. Returns the number of lines.
with abandoned as materialized (
    select id from imports where id = $1 and state = 'checking' for update
),
line as (
    delete from import_lines
    where ctid = any(array(
        select ctid from import_lines where import_id = any(array(select id from abandoned)) limit $2
    ))
    returning number
),
gone as (
    delete from imports where id = any(array(select id from abandoned)) and (select count(*) from line) < $2
)
select count(*) from line

-- name: discard
-- Delete an applied import. The next ones, which waited for it, are due now.
with line as (
    delete from import_lines where import_id = $1
),
applied as (
    delete from imports where id = $1 returning company_id
),
next as materialized (
    select j.id
    from applied a
    cross join lateral (
        select distinct on (company_id) id
        from imports
        where id > $1 and state = 'applying' and (company_id = a.company_id) is not false
        order by company_id, id
    ) i
    cross join lateral (select id from jobs where id = i.id and worker_id is null for update skip locked) j
)
update jobs set due_at = least(due_at, clock_timestamp()) where id = any(array(select id from next))

-- name: unknown
-- Of the lines with numbers from $4 to $5, those that name a user who is neither in the directory nor in the import, or is
-- of another company, or an event of another company than that of the caller.
-- The body of a team is read once, and each member is looked up by key. At most $3 are returned, each with the number of all.
with line as materialized (
    select number, part, user_id, event_id
    from import_lines
    where import_id = $1 and number between $4 and $5
),
team as materialized (
    select number, (body::json ->> 'id')::int as id, (body::json ->> 'company_id')::int as company_id,
           body::json -> 'users' as members
    from import_lines
    where import_id = $1 and number between $4 and $5 and part = 'team'
),
named as (
    select null::bigint as number, null::bigint as ordinal, user_id as id, null::int as team_company_id
    from line
    where part in ('device', 'notification')
    group by user_id
    union all
    select team.number, member.ordinal, member.id::int, team.company_id
    from team
    cross join json_array_elements_text(team.members) with ordinality as member (id, ordinal)
),
person as materialized (
    select named.*, coalesce(
        (
            select (l.body::json ->> 'company_id')::int
            from import_lines l
            where l.import_id = $1 and l.part = 'user' and l.user_id = named.id
            order by l.happened_at desc, l.number desc
            limit 1
        ),
        (select u.company_id from users u where u.id = named.id)
    ) as company_id
    from named
),
fault as (
    select line.number, 0::bigint as ordinal, '.user.id' as path
    from line
    where line.part = 'user' and (select u.company_id <> $2 from users u where u.id = line.user_id)
    union all
    select team.number, 0, '.team.id'
    from team
    join teams t on t.id = team.id
    where t.company_id <> $2
    union all
    select number, ordinal, '.team.users.' || ordinal - 1
    from person
    where number is not null and company_id is distinct from team_company_id
    union all
    select number, 0, '.' || part || '.user_id'
    from line
    where part in ('device', 'notification')
      and (user_id in (select id from person where number is null and (company_id is null or company_id <> $2))) is true
    union all
    -- existing notifications are not changed
    select line.number, 0, '.notification.id'
    from line
    where $2::int is not null and line.part = 'notification'
      and (select e.company_id is distinct from $2 from events e where e.id = line.event_id)
      and (select i.user_id from inbox i where i.user_id = line.user_id and i.event_id = line.event_id) is null
)
select number, path, count(*) over () as total from fault order by number, ordinal, path limit $3

-- name: entries
-- The users and teams in the lines with numbers from $2 to $3.
select number, part, case part when 'user' then user_id else (body::json ->> 'id')::int end as id
from import_lines
where import_id = $1 and number between $2 and $3 and part in ('user', 'team')
order by number

-- name: accept
with accepted as (
    update imports set state = 'applying' where id = $1
)
insert into jobs (id, task, lane, company_id, sender)
values ($1, 'import', 'bulk', coalesce((select company_id from imports where id = $1), 0), 'import')

-- name: progress
-- The number of applied lines, and whether the import is a dead letter.
select applied, exists (select from dead_letters d where d.id = i.id) as dead from imports i where id = $1

-- name: users
-- Take the lines of some users, in the order of ids; return the last line of each as a JSON array, and the number of lines.
with next as materialized (
    select distinct on (user_id) user_id, body
    from import_lines
    where import_id = $1 and part = 'user' and user_id >= $2
    order by user_id, number desc
    limit $3
),
line as (
    delete from import_lines
    where ctid = any(array(
        select l.place
        from next n
        cross join lateral (
            select ctid as place from import_lines where import_id = $1 and part = 'user' and user_id = n.user_id offset 0
        ) l
    ))
    returning number
)
select (select count(*) from line) as count, max(user_id) as last, json_agg(body::json)::text as users from next

-- name: team
-- Take the next team.
delete from import_lines
where ctid = any(array(
    select ctid from import_lines
    where import_id = $1 and part = 'team' and user_id is null and happened_at is null and number >= $2
    order by number
    limit 1
))
returning number, body

-- name: devices
-- A token that was registered since, or is of another company, is not changed. `rerouted` are devices that have another lane now.
-- A time in the future is not taken: it would be later than all registrations in other databases.
with next as materialized (
    select ctid as place, number, user_id, body
    from import_lines
    where import_id = $1 and part = 'device' and user_id >= $4
    order by user_id, happened_at desc, number desc
    limit $3
),
line as (
    delete from import_lines where ctid = any(array(select place from next)) returning number
),
owner as materialized (
    -- users are locked before devices, as by an erasure
    select id
    from users
    where id = any(array(select user_id from next)) and ($2::int is null or company_id = $2)
    order by id
    for key share
),
device as materialized (
    select distinct on (d.token) d.*, next.user_id
    from next
    cross join lateral json_to_record(next.body::json) as d (
        token text, type text, provider text, environment text, app text, registered_at timestamptz,
        last_delivered_at timestamptz
    )
    where coalesce(next.user_id in (select id from owner), false)
    order by d.token, next.number desc
),
put as (
    insert into devices (token, whole_token, user_id, type, provider, environment, app, registered_at, last_delivered_at)
    select device_key(token), nullif(token, device_key(token)), user_id, type, provider, environment, app,
           least(registered_at, now()), last_delivered_at
    from device
    order by device_key(token) collate "C"
    on conflict (token) do update
    set user_id = excluded.user_id,
        id = case when devices.user_id = excluded.user_id then devices.id else gen_random_uuid() end, type = excluded.type, provider = excluded.provider,
        environment = excluded.environment, app = excluded.app, registered_at = excluded.registered_at,
        last_delivered_at = excluded.last_delivered_at
    where devices.registered_at < excluded.registered_at
      and ($2::int is null or (select u.company_id from users u where u.id = devices.user_id) = $2)
    returning id, user_id, lane
)
select count(*) as count, (select max(user_id) from next) as last, array(select distinct user_id from put) as owners,
       array(select put.id from put where (select was.lane <> put.lane from devices was where was.id = put.id)) as rerouted
from line

-- name: concerned
-- The user of each of the next notifications, and of the one after them.
select array(
    select user_id
    from import_lines
    where import_id = $1 and part = 'notification' and user_id >= $2
    order by user_id, happened_at desc, number desc
    limit $3::bigint + 1
)

-- name: hold
-- Lock the events of the next notifications, so that retention deletes none to which a user is added, after the records of
-- recipients that begin with their users.
with named as materialized (
    select user_id, event_id
    from import_lines
    where import_id = $1 and part = 'notification' and user_id >= $2
    order by user_id, happened_at desc, number desc
    limit $3
),
record as materialized (
    select r.after_user
    from (select distinct event_id, user_id from named order by event_id, user_id) n
    cross join lateral (
        select after_user from recipients where event_id = n.event_id and after_user = n.user_id - 1 for update
    ) r
)
select count(e.id), (select count(*) from record)
from (select distinct event_id from named where (select count(*) from record) >= 0 order by event_id) n
cross join lateral (select id from events where id = n.event_id for key share) e

-- name: notifications
-- Some notifications, by user, the newest first: they are placed below the existing ones. Existing notifications are not
-- changed, nor inboxes that are not locked ($5). Each event is looked up separately, which costs half as much as
-- `on conflict`; if another transaction inserts the same at the same time, this step fails and is repeated. An event that
-- does not exist has no entries, content, subjects or recipients, so that those of existing ones only are looked up.
with next as materialized (
    select ctid as place, number, user_id, event_id as id, kind, data, body, language, read_at,
           happened_at as created_at, subjects
    from import_lines
    where import_id = $1 and part = 'notification' and user_id >= $4
    order by user_id, happened_at desc, number desc
    limit $3
),
line as (
    delete from import_lines where ctid = any(array(select place from next)) returning number
),
lowest as materialized (
    select h.user_id,
           least(
               1,
               (
                   select position from inbox
                   where user_id = h.user_id and deleted_at is null and read_at is null
                   order by position limit 1
               ),
               (
                   select position from inbox
                   where user_id = h.user_id and deleted_at is null and read_at is not null
                   order by position limit 1
               )
           ) as position
    from unnest($5::int[]) as h (user_id)
),
below as materialized (
    select jsonb_object_agg(user_id, position) as positions from lowest
),
told as materialized (
    select distinct on (next.user_id, next.id) next.*, u.company_id, e.id is null as is_new
    from next
    join users u on u.id = next.user_id and ($2::int is null or u.company_id = $2)
    left join lateral (select id, company_id from events where id = next.id offset 0) e on true
    where (select positions from below) ? next.user_id::text
      and (
          e.id is null
          or (select i.user_id from inbox i where i.user_id = next.user_id and i.event_id = next.id) is null
             and (select j.id from jobs j where j.id = next.id) is null
             and (select d.id from dead_letters d where d.id = next.id) is null
             and ($2::int is null or coalesce(e.company_id = $2, true))
      )
    order by next.user_id, next.id, next.number desc
),
entry as (
    insert into inbox (position, created_at, read_at, event_id, user_id, language)
    select ((select positions from below) ->> user_id::text)::bigint
           - row_number() over (partition by user_id order by created_at desc, number desc),
           created_at, read_at, id, user_id, language
    from told
),
content as (
    insert into contents (event_id, language, body)
    select distinct on (id, language) id, language, body
    from told
    where is_new or (select c.event_id from contents c where c.event_id = told.id and c.language = told.language) is null
),
event as (
    -- the generation is given, because its default would be evaluated for each row
    insert into events (id, service, company_id, kind, data, params, users, teams, subjects, accepted_at, generation)
    select id, null, company_id, kind, data, '{}', '{}'::int[], '{}'::int[],
           case
               when fewest = most then subjects
               else array(
                   select distinct of.subject
                   from jsonb_array_elements(every) as list, jsonb_array_elements_text(list) as of (subject)
               )
           end,
           created_at, (select generation())
    from (
        select distinct on (id) id, company_id, kind, data, created_at, subjects, min(subjects) over event as fewest,
               max(subjects) over event as most, jsonb_agg(subjects) over event as every
        from told
        where is_new
        window event as (partition by id)
    ) first
),
further as (
    -- An event has the subjects of all its lines, also of those in later imports: retention deletes what it names.
    update events e
    set subjects = array(select distinct unnest(e.subjects || named.subjects))
    from (
        select told.id, array_agg(distinct of.subject) as subjects
        from told
        cross join unnest(told.subjects) as of (subject)
        where not told.is_new
        group by told.id
    ) named
    where e.id = named.id and not named.subjects <@ e.subjects
),
about as (
    insert into subjects (subject, event_id)
    select distinct of.subject, told.id
    from told
    cross join unnest(told.subjects) as of (subject)
    where told.is_new
       or (select s.event_id from subjects s where s.subject = of.subject and s.event_id = told.id) is null
),
noted as (
    insert into recipients (event_id, after_user, user_ids, team_ids, reached, dropped, delivered_at)
    select id, user_id - 1, array[user_id], array[0], 1, 0, created_at
    from told
    where is_new
       or (select r.event_id from recipients r where r.event_id = told.id and r.after_user = told.user_id - 1) is null
    order by id
),
joined as (
    -- a record of the recipients from this user on, whom the event had not reached
    update recipients r
    set user_ids = told.user_id || r.user_ids, team_ids = 0 || r.team_ids, reached = r.reached + 1
    from told
    where not told.is_new and r.event_id = told.id and r.after_user = told.user_id - 1
),
person as materialized (
    select array_agg(user_id) as user_ids, array_agg(n) as totals, array_agg(unread) as unreads,
           array_agg(newest) as newest
    from (
        select user_id, count(*)::int as n, count(*) filter (where read_at is null)::int as unread,
               max(created_at) as newest
        from told
        group by user_id
    ) counted
)
select (select count(*) from line) as count, (select max(user_id) from next) as last,
       array(select user_id from lowest where position < 1) as with_more, user_ids, totals, unreads, newest
from person

-- name: sort
-- Sort the imported notifications of these users by time.
with sorted as materialized (
    select i.user_id, i.event_id, i.position,
           1 - row_number() over (partition by i.user_id order by i.created_at desc, i.position desc) as due
    from inbox i
    where i.user_id = any($1::int[]) and i.position <= 0
)
update inbox i
set position = sorted.due
from sorted
where i.user_id = sorted.user_id and i.event_id = sorted.event_id and i.position <> sorted.due

-- name: unsorted
-- Of these users, those whose imported notifications are not sorted by time.
select distinct pair.user_id
from (
    select i.user_id, i.created_at, lag(i.created_at) over (partition by i.user_id order by i.position) as before
    from inbox i
    where i.user_id = any($1::int[]) and i.position <= 0
) pair
where pair.before > pair.created_at

-- name: advance
update imports set applied = applied + $2, step = $3, reached = $4, touched_at = clock_timestamp() where id = $1

-- name: reached
-- How far an import is, and whether an earlier one, which may concern the same company, is not applied yet.
select i.company_id, i.step, i.reached, exists (
    select
    from imports o
    join jobs j on j.id = o.id
    where o.id < i.id and o.state = 'applying' and (o.company_id = i.company_id) is not false
) as waits
from imports i
where i.id = $1
