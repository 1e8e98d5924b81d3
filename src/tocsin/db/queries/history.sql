-- The history of metrics.

-- name: record
-- The row of the minute that has ended. Two rows of a process in one minute, which differing clocks can cause, are added up.
insert into metric_minutes as m (
    minute, process_id, seconds, events, pushes, requests, api_errors, rate_limited, providers, push_errors,
    inbox_buckets, push_buckets, direct_due, bulk_due, pushes_due, direct_oldest, bulk_oldest
)
values (
    date_trunc('minute', now() - interval '30 seconds'), $1, $2::float8,
    ($3::bigint[])[1], ($3::bigint[])[2], ($3::bigint[])[3], ($3::bigint[])[4], ($3::bigint[])[5], $4::text[], $5::bigint[],
    $6::bigint[], $7::bigint[], ($8::bigint[])[1], ($8::bigint[])[2], ($8::bigint[])[3], ($9::float8[])[1], ($9::float8[])[2]
)
on conflict (minute, process_id) do update
set seconds = m.seconds + excluded.seconds, events = m.events + excluded.events, pushes = m.pushes + excluded.pushes,
    requests = m.requests + excluded.requests, api_errors = m.api_errors + excluded.api_errors,
    rate_limited = m.rate_limited + excluded.rate_limited,
    providers = m.providers || excluded.providers, push_errors = m.push_errors || excluded.push_errors,
    direct_due = excluded.direct_due, bulk_due = excluded.bulk_due, pushes_due = excluded.pushes_due,
    direct_oldest = excluded.direct_oldest, bulk_oldest = excluded.bulk_oldest

-- name: minutes
-- What waits is that of the database, so every process has measured the same. Histograms of other bounds, of another
-- release, are left out, and so are minutes of a clock that was ahead.
with recent as materialized (
    select * from metric_minutes
    where minute >= date_trunc('minute', now()) - make_interval(mins => $1) and minute <= now()
),
buckets as (
    select minute, array_agg(inbox order by nth) as inbox_buckets, array_agg(push order by nth) as push_buckets
    from (
        select r.minute, u.nth, sum(u.inbox)::bigint as inbox, sum(u.push)::bigint as push
        from recent r
        cross join lateral unnest(r.inbox_buckets, r.push_buckets) with ordinality as u (inbox, push, nth)
        where cardinality(r.inbox_buckets) = $2 and cardinality(r.push_buckets) = $2
        group by r.minute, u.nth
    ) counted
    group by minute
),
errors as (
    select minute, array_agg(provider order by provider) as providers, array_agg(errors order by provider) as errors
    from (
        select r.minute, u.provider, sum(u.errors)::bigint as errors
        from recent r
        cross join lateral unnest(r.providers, r.push_errors) as u (provider, errors)
        group by r.minute, u.provider
    ) counted
    group by minute
)
select r.minute, count(*) as processes,
       sum(r.events / r.seconds)::float8 as events, sum(r.pushes / r.seconds)::float8 as pushes,
       sum(r.requests / r.seconds)::float8 as requests, sum(r.api_errors)::bigint as api_errors,
       sum(r.rate_limited)::bigint as rate_limited, max(r.direct_due) as direct_due, max(r.bulk_due) as bulk_due,
       max(r.pushes_due) as pushes_due, max(r.direct_oldest) as direct_oldest, max(r.bulk_oldest) as bulk_oldest,
       b.inbox_buckets, b.push_buckets, e.providers, e.errors
from recent r
left join buckets b on b.minute = r.minute
left join errors e on e.minute = r.minute
group by r.minute, b.inbox_buckets, b.push_buckets, e.providers, e.errors
order by r.minute
