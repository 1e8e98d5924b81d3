-- Cell leases: which worker processes work this cell.

-- name: look
-- Note that process $1, named $2, is there. Return how many were there before it and how many there are, and how many workers
-- beside $3 run here. Processes are lost after $4 seconds, and workers after $5, as those are that were here before the clock was
-- set back: those that run have said so again.
with me as (
    insert into worker_processes (id, name) values ($1, $2)
    on conflict (id) do update set seen_at = clock_timestamp()
), gone as (
    delete from worker_processes
    where id = any(array(
        select id from worker_processes
        where (seen_at < clock_timestamp() - interval '1 minute' or seen_at > clock_timestamp() + interval '1 minute')
          and id <> $1
        for update skip locked
    ))
), others as (
    select id from worker_processes
    where id <> $1 and seen_at > clock_timestamp() - make_interval(secs => $4::double precision)
      and seen_at < clock_timestamp() + make_interval(secs => $4::double precision)
)
select
    (select count(*) from others where id < $1)::int as place,
    (select count(*) from others)::int + 1 as processes,
    (
        select count(*) from workers
        where id is distinct from $3::uuid and seen_at > clock_timestamp() - make_interval(secs => $5::double precision)
          and seen_at < clock_timestamp() + make_interval(secs => $5::double precision)
    )::int as workers

-- name: leave
delete from worker_processes where id = $1

-- name: processes
select count(*)::int from worker_processes where seen_at > clock_timestamp() - make_interval(secs => $1::double precision)
