-- The audit log: entries are only inserted, and deleted by retention.

-- name: record
-- The name of a user is that at this time.
insert into audit_entries (id, action, caller, name, company_id, request_id, subject, details)
values (
    $1, $2, $3, coalesce($4, (select concat_ws(' ', u.first_name, u.last_name) from users u where u.id = $5::int)), $6, $7,
    $8, $9
)

-- name: page
-- Entries from before another one, the latest first, of all companies or of one. Each of the two lists has its index, and
-- only one is read. At most $8 entries are examined; if there may be more, the last row is that of the last examined one.
with examined as materialized (
    (
-- include: audit_list(of=$1::int is null)
    )
    union all
    (
-- include: audit_list(of=company_id = $1)
    )
),
found as (
    select * from examined
    where ($5::text is null or caller = $5) and ($6::text is null or action = $6)
    order by happened_at desc, id desc
    limit $7
),
last as (
    select * from examined where (select count(*) from examined) = $8 order by happened_at, id limit 1
)
select false as is_last, * from found
union all
select true, * from last
order by is_last, happened_at desc, id desc

-- name: expire
-- Delete entries older than $2 days. The trigger of the table allows it in this transaction.
with allowed as materialized (
    select set_config('tocsin.audit_retention', 'on', true) as is_on
),
old as materialized (
    select a.id from allowed
    cross join lateral (
        select id from audit_entries
        where happened_at < now() - make_interval(days => $2) and allowed.is_on = 'on'
        order by happened_at, id
        limit $1
    ) a
),
gone as (
    delete from audit_entries a using old where a.id = old.id
)
select count(*) from old
