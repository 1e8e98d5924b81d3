-- Jobs: claimed under a lease, then finished, delayed, or moved to dead letters.

-- name: claim
-- Together the jobs cost at most $4, or one job is claimed alone.
with
-- include: free(of=lane = $2, limit=$3)
,
counted as (
    select id, cost, sum(cost) over (order by due_at, id) as up_to_it from free
)
update jobs
set worker_id = $1, attempts = attempts + 1
where id = any(array(select id from counted where up_to_it <= $4 or up_to_it = cost))
returning id, task, lane as queue, due_at, wanted_at, attempts, progress, batch

-- name: until_due
-- Seconds until the next job of a queue is due. One that became due while it was looked for is found, too.
select extract(epoch from due_at - clock_timestamp())::double precision
from jobs
where lane = $1 and worker_id is null and due_at > now() - make_interval(secs => $2)
order by due_at, id
limit 1

-- name: next_company
-- The first company after $1 with a due job in the bulk queue; without one, the first of all.
select coalesce(
    (
        select company_id from jobs
        where lane = 'bulk' and worker_id is null and company_id > $1 and due_at <= now()
        order by company_id, sender, due_at, id
        limit 1
    ),
    (
        select company_id from jobs
        where lane = 'bulk' and worker_id is null and due_at <= now()
        order by company_id, sender, due_at, id
        limit 1
    )
)

-- name: next_sender
-- The same for the senders of company $1, after sender $2.
select coalesce(
    (
        select sender from jobs
        where lane = 'bulk' and worker_id is null and company_id = $1 and sender > $2 and due_at <= now()
        order by sender, due_at, id
        limit 1
    ),
    (
        select sender from jobs
        where lane = 'bulk' and worker_id is null and company_id = $1 and due_at <= now()
        order by sender, due_at, id
        limit 1
    )
)

-- name: claim_of_sender
-- The oldest job of a sender in the bulk queue.
with
-- include: free(of=lane = 'bulk' and company_id = $2 and sender = $3, limit=1)
update jobs
set worker_id = $1, attempts = attempts + 1
where id = any(array(select id from free))
returning id, task, lane as queue, due_at, wanted_at, attempts, progress, batch

-- name: hold
-- Lock leased jobs in the order of their ids, as others do who cancel or replace several events.
select id from jobs where id = any($2::uuid[]) and worker_id = $1 order by id for update

-- name: finish
delete from jobs where id = any($2::uuid[]) and worker_id = $1

-- name: save_progress
-- Return the rest of a job to the end of the bulk queue. The company of an event that a service posted for any company is that
-- of its actor, or of its first user or team.
update jobs j
set worker_id = null, attempts = 0, lane = 'bulk', due_at = clock_timestamp(), progress = step.progress,
    company_id = coalesce(
        e.company_id,
        (select company_id from users where id = e.actor),
        (select company_id from users where id = e.users[1]),
        (select company_id from teams where id = e.teams[1]),
        j.company_id
    ),
    sender = case when e.id is null then j.sender else concat(coalesce(e.service, 'user'), ':', e.actor) end
from unnest($2::uuid[], $3::bigint[]) as step (id, progress)
left join events e on e.id = step.id
where j.id = step.id and j.worker_id = $1

-- name: first_others
-- The first job of each batch that is not among these: the jobs after it must wait for it. One in the bulk queue comes
-- before all, so that it is dated 1970: clients cannot compare '-infinity'.
select b.batch, other.due_at, other.id
from (select * from unnest($1::uuid[]) as b (batch) limit cardinality($1::uuid[])) b
cross join lateral (
    (
        select to_timestamp(0) as due_at, id
        from jobs
        where batch = b.batch and lane = 'bulk' and id <> all((select $2::uuid[])::uuid[])
        limit 1
    )
    union all
    (select due_at, id from jobs where batch = b.batch and id <> all((select $2::uuid[])::uuid[]) order by due_at, id limit 1)
    order by due_at, id
    limit 1
) other

-- name: hand_back
update jobs
set worker_id = null, attempts = greatest(attempts - 1, 0),
    due_at = case when $3::double precision > 0 then clock_timestamp() + make_interval(secs => $3) else due_at end
where id = any($2::uuid[]) and worker_id = $1

-- name: hand_back_behind_lock
-- As if it had never been claimed, but due in $3 seconds. The jobs after it in its batch keep their order.
with met as materialized (
    select id, lane, batch, due_at, now() + make_interval(secs => $3::double precision) - due_at as shift
    from jobs
    where id = $2 and worker_id = $1
),
moved as materialized (
    select id, shift from met
    union all
    select follower.id, met.shift
    from met
    cross join lateral (
        select id
        from jobs
        where batch = met.batch and (due_at, id) > (met.due_at, met.id) and due_at <= now()
          and (worker_id is null or (worker_id = $1 and lane = met.lane))
        offset 0
    ) follower
)
update jobs j
set worker_id = null, attempts = greatest(j.attempts - (j.worker_id is not null)::int, 0), due_at = j.due_at + moved.shift
from moved
where j.id = moved.id
returning j.id

-- name: put_off
update jobs
set worker_id = null, due_at = clock_timestamp() + make_interval(secs => $3::double precision)
where id = $2 and worker_id = $1

-- name: put_off_in_turn
-- The same, and the jobs after it in its batch are due after it, in their order.
with failed as materialized (
    select id, batch, due_at, clock_timestamp() + make_interval(secs => $3::double precision) - due_at as shift
    from jobs
    where id = $2 and worker_id = $1
),
moved as materialized (
    select id, id as failed_id, shift from failed
    union all
    select follower.id, failed.id, failed.shift
    from failed
    cross join lateral (
        select id from jobs where batch = failed.batch and (due_at, id) > (failed.due_at, failed.id) offset 0
    ) follower
)
update jobs j
set worker_id = case when j.id <> moved.failed_id then j.worker_id end, due_at = j.due_at + moved.shift
from moved
where j.id = moved.id

-- name: move_to_dead_letters
with dead as (
    delete from jobs where id = $2 and worker_id = $1 returning id, task, lane, attempts, progress, cost
)
insert into dead_letters (id, task, lane, attempts, progress, cost, reason)
select id, task, lane, attempts, progress, cost, $3 from dead
on conflict (id) do update
set attempts = excluded.attempts, progress = excluded.progress, reason = excluded.reason, died_at = now()
returning id

-- name: clock
-- The time of the database, which is that of dead letters: the clock of the process may differ.
select clock_timestamp()

-- name: dead_letters
-- The latest dead letters, or those before a time, with their tasks; of one company, those among the last 10,000.
select 'job' as what, task, coalesce((select p.event_id from posted p where p.id = d.id), id) as event_id,
       null::int as user_id, lane, attempts, reason, died_at as at
from (
    select *
    from dead_letters
    where died_at < coalesce($1::timestamptz, 'infinity')
    order by died_at desc
    limit case when $3::int is null then $2::bigint else 10000 end
) d
where
-- include: letter_of(company=$3)
order by died_at desc
limit $2

-- name: requeue
-- Requeue dead letters: of these events, or the first $5 between two times; or only those of one company. Other companies may
-- have any number before its first.
with chosen as materialized (
    select id from unnest($1::uuid[]) as asked (id)
    union
    select p.id from unnest($1::uuid[]) as asked (id) join posted p on p.event_id = asked.id
    union
    (
        select id from dead_letters d
        where $1::uuid[] is null and died_at >= $2 and died_at < coalesce($4::timestamptz, 'infinity') and
-- include: letter_of(company=$3)
        order by died_at
        limit $5
    )
),
requeued as (
    delete from dead_letters d
    using chosen
    where d.id = chosen.id and
-- include: letter_of(company=$3)
    returning d.id, d.task, d.lane, d.progress, d.cost
)
insert into jobs (id, task, lane, progress, cost, company_id, sender)
select r.id, r.task, r.lane, r.progress, r.cost, coalesce(e.company_id, 0),
       case when e.id is null then '' else concat(coalesce(e.service, 'user'), ':', e.actor) end
from requeued r
left join events e on e.id = r.id
returning id

-- name: release
update jobs set worker_id = null, attempts = greatest(attempts - 1, 0) where worker_id = $1 and lane = $2

-- name: enrol
-- It may be repeated, if the answer to the first time was lost.
insert into workers (id, name, lanes) values ($1, $2, $3)
on conflict (id) do update set seen_at = clock_timestamp()
returning seen_at

-- name: is_there
select exists (select from jobs where id = $1)

-- name: beat
update workers set seen_at = clock_timestamp(), problem = $2 where id = $1 returning seen_at

-- name: reap
-- Release the leases of workers without heartbeat since $1, or of unregistered workers. Locked rows are skipped, such as
-- those of a process that hangs within a transaction. A worker whose last heartbeat is still to come was lost before the clock was
-- set back: others have sent one since, as far as $1 was taken since. Until then, no worker is lost.
with gone as (
    delete from workers
    where $1::timestamptz is not null
      and seen_at not between least($1::timestamptz, clock_timestamp() - interval '15 seconds')
          and greatest($1::timestamptz + interval '30 seconds', clock_timestamp() + interval '15 seconds')
    returning id
)
update jobs
set worker_id = null
where id = any(array(
    select j.id
    from jobs j
    where j.worker_id is not null
      and (j.worker_id in (select id from gone) or not exists (select from workers w where w.id = j.worker_id))
    for update skip locked
))

-- name: reap_deliveries
-- The same for deliveries.
update deliveries d
set worker_id = null
where (event_id, device_id) in (
    select o.event_id, o.device_id
    from deliveries o
    where o.worker_id is not null and not exists (select from workers w where w.id = o.worker_id)
    for update skip locked
)

-- name: end_hanging
-- End sessions of this program that prepared a statement and have not run it for $1 seconds: their processes hang. No timeout of
-- the server applies in between, and the locks of the transaction stay. COPY waits for its rows in the same state.
select count(pg_terminate_backend(pid))
from pg_stat_activity
where usename = session_user and datname = current_database()
  and application_name = current_setting('application_name')
  and state = 'active' and wait_event = 'ClientRead' and query_start < now() - make_interval(secs => $1)
  and query !~* '^\s*copy'

-- name: leave
with me as (
    delete from workers where id = $1
)
update jobs set worker_id = null, attempts = greatest(attempts - 1, 0) where worker_id = $1

-- name: workers
select id, name from workers

-- name: lanes_of_workers
-- The lanes of all running workers together; null if none is running, or one has not said.
select case when bool_and(w.lanes is not null) then array_remove(array_agg(distinct l.lane), null) end
from workers w
left join lateral unnest(w.lanes) as l (lane) on true
where w.seen_at > clock_timestamp() - make_interval(secs => $1::double precision)

-- name: forget_workers
delete from workers where id = any($1::uuid[])

-- name: depth
-- The due jobs of each queue, counted up to $1, and the longest wait. Held jobs do not count.
select l.lane as queue, free.n + leased.n as depth,
       coalesce(extract(epoch from now() - least(free.since, leased.since)), 0)::double precision as age
from unnest(array['direct', 'bulk']) as l (lane)
cross join lateral (
    select count(*) as n, min(due_at) as since
    from (
        select due_at from jobs
        where lane = l.lane and worker_id is null and due_at <= now()
        order by due_at, id
        limit $1::bigint
    ) due
) free
cross join lateral (
    select count(*) as n, min(due_at) as since
    from (select due_at from jobs where lane = l.lane and worker_id is not null limit $1::bigint) under_way
) leased
