-- Cells: what is in them.

-- name: counts
select
    count(distinct company_id) as companies,
    count(*) as users,
    (select count(*) from workers where seen_at > clock_timestamp() - make_interval(secs => $1::double precision)) as workers,
    (
        select string_agg(format('%s to %s', company_id, other), ', ' order by company_id)
        from (
            select company_id, other
            from moves
            where state = 'moved' and received_turn < turn
            order by company_id
            limit $2::int
        ) gone
    ) as moved
from users
