-- Delete the entries of `record`, whose heads are locked, and record a change for those that were visible. Returns the number
-- of records. The arrays show the planner that they are few, so that it looks up each of them, however large the tables are.
pair as materialized (
    select entry.user_id, entry.event_id
    from (
        select array_agg(person.user_id order by person.user_id) as user_ids,
               array_agg(record.event_id order by person.user_id) as event_ids
        from record
        cross join unnest(record.user_ids) as person (user_id)
    ) listed
    cross join lateral unnest(listed.user_ids, listed.event_ids) as entry (user_id, event_id)
),
gone as (
    delete from inbox i using pair p
    where i.user_id = p.user_id and i.event_id = p.event_id
    returning i.user_id, i.event_id, i.deleted_at is null as shown, i.deleted_at is null and i.read_at is null as unread
),
person as materialized (
    select user_id, count(*)::int as n, count(*) filter (where unread)::int as unread, array_agg(event_id) as event_ids
    from gone
    where shown
    group by user_id
),
head as (
    update heads h
    set position = h.position + 1, total = h.total - p.n, unread = h.unread - p.unread
    from person p
    where h.user_id = p.user_id
    returning h.user_id, h.position, p.event_ids
),
change as (
    insert into changes (user_id, position, change, event_ids)
    select user_id, position, 'deleted', event_ids from head
)
select count(*) from record
