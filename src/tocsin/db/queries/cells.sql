-- Cells: what is in them.

-- name: counts
select
    count(distinct company_id) as companies,
    count(*) as users,
    (select count(*) from workers where seen_at > clock_timestamp() - make_interval(secs => $1::double precision)) as workers
from users
