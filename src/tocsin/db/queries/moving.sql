-- Moves of companies between databases: rows are read as JSON, compared by a digest, and written as they were.

-- name: turn
-- One command at a time moves companies out of a database.
select pg_try_advisory_lock($1::bigint + hashtext(current_schema()) - hashtext('tocsin'))

-- name: end_turn
select pg_advisory_unlock($1::bigint + hashtext(current_schema()) - hashtext('tocsin'))

-- name: whereabouts
select company_id, turn, state, other, coalesce(closed_until > clock_timestamp(), false) as is_closed, is_leaving,
       state <> 'copying' and received_turn > turn as is_coming
from moves

-- name: has_company
select exists (select from users where company_id = $1) or exists (select from teams where company_id = $1)

-- name: standing
select turn, state, other, is_leaving, received_turn, received from moves where company_id = $1

-- name: begin
-- Begin a move, or continue it with a further turn, unless the row has changed since it was read ($4, $5).
insert into moves as m (company_id, turn, state, other) values ($1, $2, 'copying', $3)
on conflict (company_id) do update
set turn = excluded.turn, state = 'copying', other = excluded.other, closed_until = null
where m.turn = $4 and m.state = $5
returning turn

-- name: expect
-- At the target: which move brings the company here. This waits for what an earlier one still writes.
insert into moves (company_id, turn, state, other, received_turn, is_awaited) values ($1, 0, 'here', $3, $2, true)
on conflict (company_id) do update
set received_turn = excluded.received_turn, received = 0, is_awaited = true,
    other = case when moves.state = 'here' then excluded.other else moves.other end

-- name: expect_no_longer
-- At the target: the move is given up, and nothing of it is here.
update moves set received_turn = 0, is_awaited = false where company_id = $1 and received_turn = $2 and state <> 'copying'

-- name: close
update moves set closed_until = clock_timestamp() + make_interval(secs => $2) where company_id = $1 and state = 'copying'

-- name: stay_closed
update moves set closed_until = clock_timestamp() + make_interval(secs => $2)
where company_id = $1 and state = 'copying' and closed_until > clock_timestamp()

-- name: stay
update moves set state = 'here', closed_until = null where company_id = $1 and turn = $2 and state = 'copying'

-- name: reopen
update moves set closed_until = null where company_id = $1 and state = 'copying'

-- name: forget_rewritten
delete from rewritten_events

-- name: note_rewritten
-- Note the events that erasures are changing already. From now on, others note theirs themselves. After `hold_events`.
insert into rewritten_events
select unnest(event_ids) from erasures union select unnest(event_ids) from resolutions where how = 'erased'
on conflict do nothing

-- name: marks
-- The next users after $2 up to $3, each with a digest that changes with all that they have but pushes and keys: each change of
-- an inbox changes its head.
select u.id,
       hashtextextended(
           concat_ws(
               ' ', u::text,
               (select h::text from heads h where h.user_id = u.id),
               (select p::text from preferences p where p.user_id = u.id),
               (select string_agg(d::text, ' ' order by d.token collate "C") from devices d where d.user_id = u.id)
           ),
           0
       ) as mark
from users u
where u.id > $2 and u.id <= $3 and u.company_id = $1
order by u.id
limit $4

-- name: changed_events
-- Events that are not seen in the marks of users: those that erasures changed, that waited ($3), and that were accepted since $2 and
-- have no recipients.
select e.id, e.company_id is not distinct from $1::int as is_own
from (
    select event_id as id from rewritten_events
    union
    select id from unnest($3::uuid[]) as waited (id)
    union
    select n.id from events n
    where n.accepted_at >= $2 and n.company_id = $1 and not exists (select from recipients r where r.event_id = n.id)
) changed
cross join lateral (select id, company_id from events where id = changed.id offset 0) e
where not exists (select from jobs j where j.id = e.id)

-- name: known_events
select id from events where id = any($1::uuid[])

-- name: next_settled
-- The next results of pushes of the company since $2.
select settled_at, event_id, device_id, to_jsonb(d)::text as row
from deliveries d
where settled_at >= $2 and (settled_at, event_id, device_id) > ($2, $3, $4)
  and (select u.company_id = $1 from users u where u.id = d.user_id)
order by settled_at, event_id, device_id
limit $5

-- name: next_users
-- The next range of users: at most 200 users, or about $3 entries.
select coalesce(array_agg(id), '{}')
from (
    select id, sum(total) over (order by id) - total as before
    from (
        select u.id, (select h.total from heads h where h.user_id = u.id) as total
        from users u
        where u.id > $1 and u.company_id = $2
        order by u.id
        limit 200
    ) few
) counted
where before < $3

-- name: next_teams
select array(select id from teams where id > $1 and company_id = $2 order by id limit $3)

-- name: next_events
-- Events of the company after $1 without recipients and without a job.
select array(
    select id from events e
    where e.id > $1 and e.company_id = $2
      and not exists (select from recipients r where r.event_id = e.id)
      and not exists (select from jobs j where j.id = e.id)
    order by id
    limit $3
)

-- name: users_between
select id from users where id > $1 and id <= $2 and company_id = $3

-- name: teams_between
select id from teams where id > $1 and id <= $2 and company_id = $3

-- name: events_of_users
select array(
    select distinct i.event_id
    from (select id from users where id = any($2::int[]) and company_id = $1 offset 0) person
    cross join lateral (select event_id from inbox where user_id = person.id offset 0) i
)

-- name: large_events
-- Those of these events of the company with at least $3 recipients, each with a mark that changes with each record of them.
select named.id, r.mark
from unnest($2::uuid[]) as named (id)
cross join lateral (
    select sum(hashtextextended(concat_ws(' ', after_user, reached, dropped, delivered_at), 0))::text as mark
    from recipients
    where event_id = named.id
    having sum(reached) >= $3
) r
where (select e.company_id = $1 from events e where e.id = named.id)

-- name: since
-- A time after which all is that transactions write which end from now on.
select clock_timestamp() - interval '1 minute'

-- name: next_keys
-- The next keys of services of the company, of services of all companies in the last hour, and with $8 of users.
select kept_at, caller, method, path, key, to_jsonb(k)::text as row
from idempotency_keys k
where kept_at >= $2 and (kept_at, caller, method, path, key) > ($2, $3, $4, $5, $6)
  and case
          when caller like 'user %' then $8 and (
              select u.company_id = $1 from users u where u.id = substring(caller from '^user ([0-9]+)$')::int
          )
          else caller like '% of company ' || $1::int
              or caller not like '% of company %' and kept_at > now() - interval '1 hour'
      end
order by kept_at, caller, method, path, key
limit $7

-- name: digest_of_users
with
-- include: moving_users(company=$1, users=$2::int[])
-- include: moving_digest

-- name: rows_of_users
-- With the number of erasures, by which new events here are younger than the users that come.
with
-- include: moving_users(company=$1, users=$2::int[])
select table_name, row from row union all select 'generations', to_jsonb(g)::text from generations g where g.id = 1

-- name: digest_of_teams
with
-- include: moving_teams(company=$1, teams=$2::int[])
-- include: moving_digest

-- name: rows_of_teams
with
-- include: moving_teams(company=$1, teams=$2::int[])
select table_name, row from row

-- name: digest_of_events
-- The digests of each event.
with
-- include: moving_events(company=$1::int, events=$2::uuid[], theirs=$3::bool, whole=false)
select table_name, count(*) as n, sum(hashtextextended(row, 0))::text as mark, event_id
from row
where table_name <> 'other_keys'
group by table_name, event_id
order by table_name collate "C", event_id

-- name: rows_of_events
with
-- include: moving_events(company=$1::int, events=$2::uuid[], theirs=$3::bool, whole=true)
select table_name, row from row

-- name: taken_users
-- Ids of the other database that others have here.
select u.id
from json_populate_recordset(null::users, $1::json) as given
cross join lateral (select * from users where id = given.id offset 0) u
where u.company_id <> given.company_id
limit 10

-- name: taken_teams
select t.id
from json_populate_recordset(null::teams, $1::json) as given
cross join lateral (select * from teams where id = given.id offset 0) t
where t.company_id <> given.company_id
limit 10

-- name: taken_events
select e.id
from json_populate_recordset(null::events, $1::json) as given
cross join lateral (select * from events where id = given.id offset 0) e
where (e.service, e.company_id, e.digest) is distinct from (given.service, given.company_id, given.digest)
limit 10

-- name: divided_events
-- Those of these events of services of all companies whose parts cannot be put together: they wait in the other database ($2) and
-- have been delivered here, or the other way round.
select e.id
from unnest($1::uuid[]) as given (id)
cross join lateral (select * from events where id = given.id offset 0) e
where e.company_id is null
  and case
          when $2 then exists (select from recipients r where r.event_id = e.id)
          else exists (select from jobs j where j.id = e.id) or exists (select from dead_letters d where d.id = e.id)
      end
limit 10

-- name: receive
-- Whether the move $2 still brings the company here; no other one begins until the end of the transaction.
select set_config('tocsin.receiving', 'on', true), received_turn = $2 as is_expected from moves where company_id = $1 for share

-- name: discard_users
with person as materialized (
    select id from users where id = any($2::int[]) and company_id = $1
),
entry as (
    delete from inbox where user_id = any(array(select id from person))
),
change as (
    delete from changes where user_id = any(array(select id from person))
),
cleared as (
    delete from clears where user_id = any(array(select id from person))
),
push as (
    delete from deliveries d using person p where d.user_id = p.id and d.settled_at is not null
),
asked as (
    delete from idempotency_keys where caller = any(array(select 'user ' || id from person))
)
delete from users where id = any(array(select id from person))

-- name: discard_teams
delete from teams where id = any($2::int[]) and company_id = $1

-- name: discard_events
-- Delete those of these events that users of no other company here have, or wait for: events of the company, of services of all
-- companies, and of companies that have left.
with alone as materialized (
    select e.id, e.service, e.company_id, e.key, e.subjects
    from unnest($2::uuid[]) as given (id)
    cross join lateral (select * from events where id = given.id offset 0) e
    where case
              when e.company_id = $1 then true
              when e.company_id is null then not exists (select from dead_letters d where d.id = e.id)
              else (select m.state = 'moved' from moves m where m.company_id = e.company_id)
          end
      and not exists (select from jobs j where j.id = e.id)
      and not exists (
          select
          from recipients r
          cross join unnest(r.user_ids) as named (user_id)
          where r.event_id = e.id and (select u.company_id <> $1 from users u where u.id = named.user_id)
      )
),
content as (
    delete from contents where event_id = any(array(select id from alone))
),
subject as (
    delete from subjects s using alone a where s.event_id = a.id and s.subject = any(a.subjects)
),
recipient as (
    delete from recipients where event_id = any(array(select id from alone))
),
cancellation as (
    delete from cancellations where event_id = any(array(select id from alone))
),
dead as (
    delete from dead_letters where id = any(array(select id from alone))
),
key as (
    delete from event_keys k using alone a
    where a.key is not null and k.service = a.service and k.company_id = coalesce(a.company_id, 0) and k.key = a.key
      and k.event_id = a.id
)
delete from events where id = any(array(select id from alone))

-- name: put_users
insert into users select * from json_populate_recordset(null::users, $1::json)

-- name: put_heads
insert into heads select * from json_populate_recordset(null::heads, $1::json)

-- name: put_preferences
insert into preferences select * from json_populate_recordset(null::preferences, $1::json)

-- name: put_devices
-- A token that was registered here later stays as it is here, also if it has left.
insert into devices as d
    (
        token, user_id, type, provider, environment, app, registered_at, last_delivered_at, id, p256dh, auth, told_up_to,
        server_key, whole_token
    )
select token, user_id, type, provider, environment, app, registered_at, last_delivered_at, id, p256dh, auth, told_up_to,
       server_key, whole_token
from json_populate_recordset(null::devices, $1::json) as given
where not exists (
    select from registrations r where r.digest = md5(given.token) and r.registered_at > given.registered_at
)
order by token collate "C"
on conflict (token) do update
set user_id = excluded.user_id, type = excluded.type, provider = excluded.provider, environment = excluded.environment,
    app = excluded.app, registered_at = excluded.registered_at, last_delivered_at = excluded.last_delivered_at,
    id = excluded.id, p256dh = excluded.p256dh, auth = excluded.auth, told_up_to = excluded.told_up_to,
    server_key = excluded.server_key, whole_token = excluded.whole_token
where d.registered_at <= excluded.registered_at

-- name: put_inbox
insert into inbox select * from json_populate_recordset(null::inbox, $1::json)

-- name: put_changes
insert into changes select * from json_populate_recordset(null::changes, $1::json)

-- name: put_clears
insert into clears as c select * from json_populate_recordset(null::clears, $1::json)
on conflict (user_id) do update set since = least(c.since, excluded.since)

-- name: put_deliveries
-- Those that wait go through the lane that their device has now, and those that are held are decided again: since the company has
-- left, phones may have been registered and preferences changed here. Devices are locked as by the lookup of all that wait for one.
with given as materialized (
    select * from json_populate_recordset(null::deliveries, $1::json)
),
device as materialized (
    select id, lane from devices
    where id = any(array(select device_id from given where settled_at is null))
    order by token collate "C"
    for share
)
insert into deliveries
    (
        event_id, device_id, user_id, lane, is_bulk, state, attempts, worker_id, due_at, made_at, settled_at, reason, type,
        token_ending
    )
select event_id, device_id, user_id, coalesce(device.lane, given.lane), is_bulk, state, attempts, worker_id,
       case when state = 'held' then now() else due_at end, made_at, settled_at, reason, type, token_ending
from given
left join device on device.id = device_id and settled_at is null
on conflict (event_id, device_id) do update
set lane = excluded.lane, state = excluded.state, attempts = excluded.attempts, due_at = excluded.due_at,
    made_at = excluded.made_at, settled_at = excluded.settled_at, reason = excluded.reason

-- name: put_idempotency_keys
insert into idempotency_keys as k select * from json_populate_recordset(null::idempotency_keys, $1::json)
on conflict (caller, method, path, key) do update
set digest = excluded.digest, status = excluded.status, body = excluded.body, kept_at = excluded.kept_at,
    import_id = excluded.import_id
where k.kept_at < excluded.kept_at

-- name: put_teams
insert into teams select * from json_populate_recordset(null::teams, $1::json)

-- name: put_members
-- A user who came to the company since their range was copied is here later, and the team differs until then.
insert into members
select m.*
from json_populate_recordset(null::members, $1::json) m
join users u on u.id = m.user_id

-- name: put_events
-- An event of several companies that is here already gets the users and teams of this one ($2), too.
insert into events as e select * from json_populate_recordset(null::events, $1::json)
on conflict (id) do update
set users = array(
        select named.id from unnest(e.users) as named (id)
        where (select u.company_id <> $2::int from users u where u.id = named.id)
    ) || excluded.users,
    teams = array(
        select named.id from unnest(e.teams) as named (id)
        where (select t.company_id <> $2::int from teams t where t.id = named.id)
    ) || excluded.teams,
    excepted = array(
        select named.id from unnest(e.excepted) as named (id)
        where (select u.company_id <> $2::int from users u where u.id = named.id)
    ) || excluded.excepted,
    data = excluded.data, params = excluded.params, subjects = excluded.subjects, erased = excluded.erased

-- name: put_recipients
insert into recipients as r select * from json_populate_recordset(null::recipients, $1::json)
on conflict (event_id, after_user) do update
set user_ids = array(
        select pair.user_id from unnest(r.user_ids) with ordinality as pair (user_id, nth)
        where (select u.company_id <> $2::int from users u where u.id = pair.user_id)
        order by nth
    ) || excluded.user_ids,
    team_ids = array(
        select pair.team_id from unnest(r.user_ids, r.team_ids) with ordinality as pair (user_id, team_id, nth)
        where (select u.company_id <> $2::int from users u where u.id = pair.user_id)
        order by nth
    ) || excluded.team_ids,
    dropped = greatest(r.dropped, excluded.dropped), delivered_at = excluded.delivered_at,
    reached = excluded.reached + (
        select count(*) from unnest(r.user_ids) as named (user_id)
        where (select u.company_id <> $2::int from users u where u.id = named.user_id)
    )

-- name: put_contents
insert into contents select * from json_populate_recordset(null::contents, $1::json)
on conflict (event_id, language) do update set body = excluded.body

-- name: put_subjects
insert into subjects select * from json_populate_recordset(null::subjects, $1::json) on conflict do nothing

-- name: put_cancellations
insert into cancellations select * from json_populate_recordset(null::cancellations, $1::json) on conflict do nothing

-- name: put_dead_letters
insert into dead_letters
select * from json_populate_recordset(null::dead_letters, $1::json) as d
where not exists (select from jobs j where j.id = d.id)
on conflict do nothing

-- name: put_event_keys
insert into event_keys select * from json_populate_recordset(null::event_keys, $1::json)
on conflict (service, company_id, key) do update set event_id = excluded.event_id

-- name: put_other_keys
insert into event_keys select * from json_populate_recordset(null::event_keys, $1::json) on conflict do nothing

-- name: put_erased_ids
insert into erased_ids select * from json_populate_recordset(null::erased_ids, $1::json)
on conflict (digest) do update set erased_at = greatest(erased_ids.erased_at, excluded.erased_at)

-- name: put_generations
insert into generations as g select * from json_populate_recordset(null::generations, $1::json)
on conflict (id) do update set current = greatest(g.current, excluded.current)

-- name: put_jobs
-- An event that waits has not failed.
with job as (
    insert into jobs select * from json_populate_recordset(null::jobs, $1::json) on conflict do nothing returning id
)
delete from dead_letters where id = any(array(select id from job))

-- name: busy
-- What has to end before a company can leave: imports, erasures and resolutions that may concern it. An import that failed stays.
select (
        select count(*)
        from imports i
        where (company_id = $1 or company_id is null) and not exists (select from dead_letters d where d.id = i.id)
    )
    + (select count(*) from resolutions where company_id = $1 or company_id is null)
    + (select count(*) from erasures)

-- name: failed
-- Erasures and resolutions that may concern the company and have failed, so that they do not end by themselves.
select d.id, d.task, d.reason
from dead_letters d
where exists (select from erasures e where e.id = d.id)
   or exists (select from resolutions r where r.id = d.id and (r.company_id = $1 or r.company_id is null))
order by d.died_at
limit 10

-- name: pending
-- The events that wait or have failed and have users or teams of the company; and whether others have users or teams in them.
select e.id, w.is_dead, not (named.has_others and e.company_id is null) as is_own
from (
    select id, false as is_dead from jobs where task = 'deliver'
    union all
    select id, true from dead_letters where task = 'deliver'
) w
cross join lateral (select * from events where id = w.id offset 0) e
cross join lateral (
    select coalesce(bool_or(found.company_id = $1), false) as has_own, coalesce(bool_or(found.company_id <> $1), false) as has_others
    from (
        select coalesce(
                   (select u.company_id from users u where u.id = one.id),
                   (select m.company_id from moved_ids m where m.kind = 'user' and m.id = one.id)
               ) as company_id
        from unnest(e.users) as one (id)
        union all
        select coalesce(
                   (select t.company_id from teams t where t.id = one.id),
                   (select m.company_id from moved_ids m where m.kind = 'team' and m.id = one.id)
               )
        from unnest(e.teams) as one (id)
    ) found
    where e.company_id is null
) named
where e.company_id = $1 or e.company_id is null and named.has_own

-- name: lock_jobs
select id from jobs where id = any($1::uuid[]) and worker_id is null order by id for update skip locked

-- name: lock_deliveries
-- Lock the pushes of the company that wait; returns how many others are being sent.
with free as materialized (
    select d.event_id, d.device_id
    from (select id from users where company_id = $1 offset 0) person
    cross join lateral (
        select event_id, device_id from deliveries where user_id = person.id and settled_at is null and worker_id is null
        offset 0
    ) waiting
    join deliveries d on d.event_id = waiting.event_id and d.device_id = waiting.device_id
    where d.worker_id is null
    order by d.event_id, d.device_id
    for update of d skip locked
)
select count(*) - (select count(*) from free)
from (select id from users where company_id = $1 offset 0) person
cross join lateral (select from deliveries where user_id = person.id and settled_at is null offset 0) d

-- name: lock_users
select id from users where company_id = $1 order by id for update

-- name: lock_heads
select h.user_id
from users u
join heads h on h.user_id = u.id
where u.company_id = $1
order by h.user_id
for update of h

-- name: lock_teams
select id from teams where company_id = $1 order by id for update

-- name: stash_rest
-- Keep what is not compared, since it changes while the company is closed, for the target.
insert into moved_rows (company_id, table_name, row)
select $1, table_name, row
from (
    select 'erased_ids' as table_name, to_jsonb(e)::text as row from erased_ids e where e.erased_at > now() - interval '1 hour'
    union all
    select 'clears', to_jsonb(c)::text
    from (select id from users where company_id = $1 offset 0) person
    cross join lateral (select * from clears where user_id = person.id offset 0) c
    union all
    select 'deliveries', to_jsonb(d)::text
    from (select id from users where company_id = $1 offset 0) person
    cross join lateral (select * from deliveries where user_id = person.id and settled_at is null offset 0) d
) rest

-- name: stash_keys
-- Keep the keys of services and of users of the company who have left that were taken since $2.
insert into moved_rows (company_id, table_name, row)
select $1::int, 'idempotency_keys', to_jsonb(k)::text
from idempotency_keys k
where k.kept_at >= $2
  and case
          when k.caller like 'user %' then exists (
              select from moved_ids m
              where m.kind = 'user' and m.id = substring(k.caller from '^user ([0-9]+)$')::int and m.company_id = $1
          )
          else k.caller like '% of company ' || $1::int or k.caller not like '% of company %'
      end

-- name: stash_events
with
-- include: moving_events(company=$1::int, events=$2::uuid[], theirs=true, whole=true)
insert into moved_rows (company_id, table_name, row)
select $1, table_name, row
from row
where table_name <> 'dead_letters'
returning table_name, row

-- name: stash_jobs
-- Keep the jobs and dead letters of these events ($2) for the target, and delete some ($3).
with kept as (
    insert into moved_rows (company_id, table_name, row)
    select $1::int, 'jobs', (to_jsonb(j) || '{"worker_id": null}')::text from jobs j where j.id = any($2::uuid[])
    union all
    select $1, 'dead_letters', to_jsonb(d)::text from dead_letters d where d.id = any($2::uuid[])
),
dead as (
    delete from dead_letters where id = any($3::uuid[])
)
delete from jobs where id = any($3::uuid[])

-- name: stash_posts
-- Keep posted events that wait for the target: those of roles of the company, and those that name users or teams of it who have
-- left. They leave if they name no others and no worker has them; otherwise each cell accepts them for its own users.
with post as materialized (
    select p.id, named.has_others and p.company_id is null as has_others
    from jobs j
    join posted p on p.id = j.id
    cross join lateral (
        select coalesce(bool_or(m.id is not null), false) as has_left, coalesce(bool_or(m.id is null), false) as has_others
        from (values ('user', '{notify,users}'::text[]), ('team', '{notify,teams}')) path (kind, keys)
        cross join lateral jsonb_array_elements_text(p.body::jsonb #> path.keys) as one (id)
        left join moved_ids m on m.kind = path.kind and m.id = one.id::numeric::int and m.company_id = $1::int
    ) named
    where j.task = 'post' and (p.company_id = $1 or p.company_id is null and named.has_left)
),
kept as (
    insert into moved_rows (company_id, table_name, row)
    select $1, table_name, row
    from (
        select 'posted' as table_name, to_jsonb(p)::text as row from post join posted p on p.id = post.id
        union all
        select 'jobs', (to_jsonb(j) || '{"worker_id": null}')::text from post join jobs j on j.id = post.id
    ) both_rows
    order by table_name desc
),
free as materialized (
    select j.id
    from post
    join jobs j on j.id = post.id
    where j.worker_id is null and not post.has_others
    order by j.id
    for update of j skip locked
),
gone as (
    delete from posted where id = any(array(select id from free))
)
delete from jobs where id = any(array(select id from free))

-- name: put_posted
insert into posted (id, event_id, role, service, company_id, key, body, posted_at)
select id, event_id, role, service, company_id, key, body, posted_at
from json_populate_recordset(null::posted, $1::json)
on conflict (id) do nothing

-- name: release
-- The users and teams of the company leave.
with person as materialized (
    select id from users where company_id = $1
),
team as materialized (
    select id from teams where company_id = $1
),
noted as (
    insert into moved_ids (kind, id, company_id)
    select 'user', id, $1 from person union all select 'team', id, $1 from team
    on conflict (kind, id) do update set company_id = excluded.company_id
),
push as (
    delete from deliveries d using person p where d.user_id = p.id and d.settled_at is null
),
cleared as (
    delete from clears c using person p where c.user_id = p.id
),
phone as (
    delete from last_clears l using person p, devices d
    where d.user_id = p.id and l.token = coalesce(d.whole_token, d.token)
),
gone as (
    delete from teams t using team where t.id = team.id
)
delete from users u using person p where u.id = p.id

-- name: hold_events
-- Until the end of the transaction no event, import, erasure or resolution is accepted, and none is posted.
select hold_events()

-- name: switch
update moves set state = 'moved', is_leaving = true, closed_until = null
where company_id = $1 and turn = $2 and state = 'copying' and closed_until > clock_timestamp()

-- name: next_rows
select number, table_name, row from moved_rows where company_id = $1 and number > $2 order by number limit $3

-- name: received
-- Note which rows are here; no row if another command has brought them.
update moves set received = $2, state = 'here', other = $4, is_awaited = false
where company_id = $1 and received_turn = $3 and (received < $2 or $2 = 0)
returning received

-- name: forget_rows
delete from moved_rows where company_id = $1 and number <= $2

-- name: next_audit_entries
select happened_at, id, to_jsonb(a)::text as row
from audit_entries a
where company_id = $1 and (happened_at, id) > ($2, $3)
order by happened_at, id
limit $4

-- name: put_audit_entries
insert into audit_entries select * from json_populate_recordset(null::audit_entries, $1::json) on conflict do nothing

-- name: next_moved_users
select array(select id from moved_ids where kind = 'user' and company_id = $1 order by id limit $2)

-- name: forget_users
-- Delete what users had who have left; returns their events.
with entry as (
    delete from inbox where user_id = any($1::int[]) returning event_id
),
change as (
    delete from changes where user_id = any($1::int[])
),
push as (
    delete from deliveries where user_id = any($1::int[])
),
asked as (
    delete from idempotency_keys where caller = any(array(select 'user ' || id from unnest($1::int[]) as named (id)))
)
select array(select distinct event_id from entry)

-- name: shrink_recipients
-- Take the users who have left from the recipients of these events.
with left_over as materialized (
    select r.event_id, r.after_user, part.user_ids, part.team_ids
    from unnest($1::uuid[]) as given (event_id)
    cross join lateral (select * from recipients where event_id = given.event_id offset 0) r
    cross join lateral (
        select coalesce(array_agg(pair.user_id order by nth), '{}') as user_ids,
               coalesce(array_agg(pair.team_id order by nth), '{}') as team_ids
        from unnest(r.user_ids, r.team_ids) with ordinality as pair (user_id, team_id, nth)
        where not exists (select from moved_ids m where m.kind = 'user' and m.id = pair.user_id)
    ) part
    where part.user_ids <> r.user_ids
),
gone as (
    delete from recipients r using left_over l
    where l.user_ids = '{}' and r.event_id = l.event_id and r.after_user = l.after_user
)
update recipients r
set user_ids = l.user_ids, team_ids = l.team_ids, reached = cardinality(l.user_ids)
from left_over l
where l.user_ids <> '{}' and r.event_id = l.event_id and r.after_user = l.after_user

-- name: forget_ids
delete from moved_ids where kind = 'user' and id = any($1::int[])

-- name: forget_jobs
-- Delete the jobs that workers had at the switch: the target has them.
delete from jobs j
where j.task = 'deliver' and (select e.company_id = $1 from events e where e.id = j.id)

-- name: left_events
select array(select id from events where id > $1 and company_id = $2 order by id limit $3)

-- name: forget_rest
with team as (
    delete from moved_ids where kind = 'team' and company_id = $1
),
left_all as (
    update moves set is_leaving = false where company_id = $1
)
delete from idempotency_keys where caller like '% of company ' || $1::int
