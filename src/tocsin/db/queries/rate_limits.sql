-- Rate limits: processes take units in advance.

-- name: take
-- For each limit and key: count the units that were used without asking ($5; negative: units are returned), and take at least
-- $6 and up to $7 units, or none. In advance, a process gets at most half of what is left, so that the processes share the
-- last units. A window begins with its first unit. One that would end later than a window that begins now has ended, too: the clock
-- was ahead, or the limit was for a longer time. A key whose row another session inserts at the same time is left out.
--
-- The limit is the number of keys. It shows the planner that they are few, so that it keeps its plan.
with asked as materialized (
    select *
    from unnest($1::text[], $2::text[], $3::int[], $4::int[], $5::int[], $6::int[], $7::int[])
        as a (name, key, quota, seconds, spent, wanted, most)
    order by name, key
    limit $8::bigint
),
counted as materialized (
    select a.*, r.used is not null as is_there,
           case when w.is_open then r.ends_at else clock_timestamp() + make_interval(secs => a.seconds) end as ends_at,
           least(greatest(case when w.is_open then r.used else 0 end + a.spent, 0), a.quota) as used
    from asked a
    left join lateral (
        select ends_at, used from rate_limits where name = a.name and key = a.key for no key update
    ) r on true
    cross join lateral (  -- by the clock after the wait for the row
        select r.ends_at > clock_timestamp()
               and r.ends_at <= clock_timestamp() + make_interval(secs => a.seconds) as is_open
    ) w
),
granted as materialized (
    select name, key, is_there, ends_at, quota, used,
           case when quota - used >= wanted then least(most, greatest(wanted, (quota - used) / 2)) else 0 end as units
    from counted
),
updated as (
    update rate_limits r
    set ends_at = g.ends_at, used = g.used + g.units
    from granted g
    where g.is_there and r.name = g.name and r.key = g.key
),
inserted as (
    insert into rate_limits (name, key, ends_at, used)
    select name, key, ends_at, used + units from granted where not is_there
    on conflict (name, key) do nothing
    returning name, key
)
select g.name, g.key, g.units, g.quota - g.used - g.units as left,
       extract(epoch from g.ends_at - clock_timestamp())::double precision as seconds
from granted g
left join inserted i on i.name = g.name and i.key = g.key
where g.is_there or i.name is not null
