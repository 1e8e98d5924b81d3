-- The inbox of one user.

-- name: page
-- The ids first, in a sub-select, and then what they say: so every page costs the same. Two indexes hold the inbox, the
-- unread and the read; they are merged. The constant limits, one more than the largest page, cost nothing and tell the
-- planner how little this is: so it keeps its plan.
with entry as materialized (
    select position, event_id, language, read_at, created_at
    from (
        (
            select position, event_id, language, read_at, created_at
            from inbox
            where user_id = $1 and deleted_at is null and read_at is null and position < $2
            order by position desc
            limit 101
        )
        union all
        (
            select position, event_id, language, read_at, created_at
            from inbox
            where user_id = $1 and deleted_at is null and read_at is not null and position < $2
            order by position desc
            limit 101
        )
    ) merged
    order by position desc
    limit $3::int + 1
),
shown as materialized (
    select * from entry order by position desc limit $3
)
select h.position as at, h.made_at, h.tokens_from, h.total, h.unread,
       (select count(*) from entry) > $3 as more,
       (select min(position) from shown) as last,
       coalesce((
           select string_agg(notification(c.body, s.read_at, s.created_at), ',' order by s.position desc)
           from shown s
           join contents c on c.event_id = s.event_id and c.language = s.language
       ), '') as data
from heads h
where h.user_id = $1 and h.active

-- name: unread_page
with entry as materialized (
    select position, event_id, language, read_at, created_at
    from (
        select position, event_id, language, read_at, created_at
        from inbox
        where user_id = $1 and deleted_at is null and read_at is null and position < $2
        order by position desc
        limit 101
    ) few
    order by position desc
    limit $3::int + 1
),
shown as materialized (
    select * from entry order by position desc limit $3
)
select h.position as at, h.made_at, h.tokens_from, h.unread as total, h.unread,
       (select count(*) from entry) > $3 as more,
       (select min(position) from shown) as last,
       coalesce((
           select string_agg(notification(c.body, s.read_at, s.created_at), ',' order by s.position desc)
           from shown s
           join contents c on c.event_id = s.event_id and c.language = s.language
       ), '') as data
from heads h
where h.user_id = $1 and h.active

-- name: skip
-- The position of the entry below which a page by number begins; none where the inbox ends before it.
select position
from (
    (
        select position from inbox
        where user_id = $1 and deleted_at is null and read_at is null
        order by position desc
        limit $2::bigint
    )
    union all
    (
        select position from inbox
        where user_id = $1 and deleted_at is null and read_at is not null
        order by position desc
        limit $2::bigint
    )
) merged
order by position desc
offset $2::bigint - 1
limit 1

-- name: unread_skip
select position
from inbox
where user_id = $1 and deleted_at is null and read_at is null
order by position desc
offset $2::bigint - 1
limit 1

-- name: heads
select user_id, position as at, made_at, tokens_from, unread from heads where user_id = any($1::int[]) and active

-- name: one
select i.deleted_at is not null as deleted, notification(c.body, i.read_at, i.created_at) as data
from inbox i
left join contents c on c.event_id = i.event_id and c.language = i.language
where i.user_id = $1 and i.event_id = $2

-- name: links
-- What the links of these are made of; a caller's own alone, and none that is deleted.
select i.event_id, e.kind, e.params, c.body
from inbox i
join events e on e.id = i.event_id
join contents c on c.event_id = i.event_id and c.language = i.language
where i.user_id = $1 and i.event_id = any($2::uuid[]) and i.deleted_at is null

-- name: caller
select u.id, u.company_id, h.locale, h.made_at, h.tokens_from
from heads h
join users u on u.id = h.user_id
where h.user_id = $1 and h.active

-- name: standing
-- Why somebody is no caller.
select active from heads where user_id = $1

-- name: lock
-- The first statement of every change. `began` is what the inbox held when the request asked, not what came in
-- while it waited for the lock. Phones are told what was cleared, once for all that is done within a moment.
with noted as (
    insert into clears (user_id, since)
    select h.user_id, h.position
    from heads h
    where h.user_id = $1 and exists (select from devices d where d.user_id = $1 and d.type <> 'Web')
    on conflict do nothing
)
select h.position, (select b.position from heads b where b.user_id = $1) as began
from heads h
where h.user_id = $1
for update

-- name: read_one
with marked as (
    update inbox set read_at = clock_timestamp()
    where user_id = $1 and event_id = $2 and deleted_at is null and read_at is null
    returning event_id
),
head as (
    update heads set position = position + 1, unread = unread - 1
    where user_id = $1 and exists (select from marked)
    returning position
),
change as (
    insert into changes (user_id, position, change, event_ids)
    select $1, head.position, 'read', array[$2::uuid] from head
)
select deleted_at is not null as deleted from inbox where user_id = $1 and event_id = $2

-- name: read_all
with marked as (
    update inbox set read_at = clock_timestamp()
    where user_id = $1 and deleted_at is null and read_at is null and position <= $2
    returning event_id
),
head as (
    update heads set position = position + 1, unread = unread - (select count(*) from marked)
    where user_id = $1 and exists (select from marked)
    returning position
)
insert into changes (user_id, position, change, up_to)
select $1, head.position, 'all_read', $2 from head

-- name: read_ids
with marked as (
    update inbox i set read_at = clock_timestamp()
    from unnest($2::uuid[]) as given (id)
    where i.user_id = $1 and i.event_id = given.id and i.deleted_at is null and i.read_at is null
    returning i.event_id
),
head as (
    update heads set position = position + 1, unread = unread - (select count(*) from marked)
    where user_id = $1 and exists (select from marked)
    returning position
)
insert into changes (user_id, position, change, event_ids)
select $1, head.position, 'read', (select array_agg(event_id) from marked) from head

-- name: unread_one
with marked as (
    update inbox set read_at = null
    where user_id = $1 and event_id = $2 and deleted_at is null and read_at is not null
    returning event_id
),
head as (
    update heads set position = position + 1, unread = unread + 1
    where user_id = $1 and exists (select from marked)
    returning position
),
change as (
    insert into changes (user_id, position, change, event_ids)
    select $1, head.position, 'unread', array[$2::uuid] from head
)
select deleted_at is not null as deleted from inbox where user_id = $1 and event_id = $2

-- name: delete_one
with gone as (
    update inbox set deleted_at = clock_timestamp()
    where user_id = $1 and event_id = $2 and deleted_at is null
    returning (read_at is null)::int as unread
),
head as (
    update heads h set position = h.position + 1, total = h.total - 1, unread = h.unread - gone.unread
    from gone
    where h.user_id = $1
    returning h.position
),
change as (
    insert into changes (user_id, position, change, event_ids)
    select $1, head.position, 'deleted', array[$2::uuid] from head
)
select true from inbox where user_id = $1 and event_id = $2

-- name: position
select position from inbox where user_id = $1 and event_id = $2

-- name: changes
-- What came and what happened in each of these inboxes since a position, in the order of positions, at most $3 of it;
-- imported history, at 0 and below, never came. An inbox where nothing did is one row without an event.
select a.user_id, h.position as at, h.made_at, h.tokens_from, h.unread, h.forgotten, told.position, told.event, told.data
from unnest($1::int[], $2::bigint[]) as a (user_id, since)
join heads h on h.user_id = a.user_id and h.active
left join lateral (
    select position, event, data
    from (
        (
            select come.position, 'notification' as event, notification(c.body, come.read_at, come.created_at) as data
            from (
                (
                    select position, event_id, language, read_at, created_at
                    from inbox
                    where user_id = a.user_id and deleted_at is null and read_at is null
                      and position > greatest(a.since, 0)
                    order by position
                    limit 501
                )
                union all
                (
                    select position, event_id, language, read_at, created_at
                    from inbox
                    where user_id = a.user_id and deleted_at is null and read_at is not null
                      and position > greatest(a.since, 0)
                    order by position
                    limit 501
                )
            ) come
            join contents c on c.event_id = come.event_id and c.language = come.language
            order by come.position
            limit $3::int
        )
        union all
        (
            select n.position,
                   case n.change when 'all_read' then 'read' when 'rewritten' then 'notification' else n.change end,
                   case
                       when n.change = 'all_read' then
                           '{"all":true,"up_to":' || coalesce((
                               select '"' || i.event_id || '"'
                               from inbox i
                               where i.user_id = a.user_id and i.deleted_at is null and i.read_at is not null
                                 and i.position <= n.up_to
                               order by i.position desc
                               limit 1
                           ), 'null') || '}'
                       when n.change = 'rewritten' then r.data
                       when cardinality(n.event_ids) = 1 then '{"id":"' || n.event_ids[1] || '"}'
                       else '{"ids":' || to_json(n.event_ids) || '}'
                   end
            from (
                select c.position, c.change, c.event_ids, c.up_to
                from changes c
                where c.user_id = a.user_id and c.position > a.since
                  and (c.change <> 'rewritten' or exists (
                      select from unnest(c.event_ids) as changed (event_id)
                      where (
                          select i.deleted_at is null from inbox i
                          where i.user_id = a.user_id and i.event_id = changed.event_id
                      )
                  ))
                order by c.position
                limit $3::int
            ) n
            left join lateral (
                select notification(c.body, i.read_at, i.created_at) as data
                from unnest(n.event_ids) as changed (event_id)
                cross join lateral (
                    select position, language, read_at, created_at
                    from inbox
                    where user_id = a.user_id and event_id = changed.event_id and deleted_at is null
                    offset 0
                ) i
                join contents c on c.event_id = changed.event_id and c.language = i.language
                order by i.position
            ) r on n.change = 'rewritten'
        )
    ) happened
    order by position
    fetch first ($3::int) rows with ties -- what was rewritten together is told together
) told on true
order by a.user_id, told.position
