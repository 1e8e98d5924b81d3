-- Cells: what is in them.

-- name: counts
select count(distinct company_id) as companies, count(*) as users from users
