-- Inboxes: pages, changes, marks and deliveries. The only statements that write the order and the counts of heads.
--
-- `(select $1::int)` is a parameter that the planner cannot use to choose a partition: the plan for any user then costs as
-- little as one for this user, and is kept. The partition is chosen at the execution.

-- name: pages
-- Pages of several inboxes: the user, the position above the page, its size, and whether it has only unread entries. Select
-- the ids in a sub-select, and then their content, so that each page costs the same. Two indexes hold an inbox, unread and
-- read; they are merged. The constant limits, one more than the largest page, and the number of pages as the limit of the
-- list show the planner that the rows are few.
select a.number, h.position as at, h.made_at, h.tokens_from, case when a.unread then h.unread else h.total end as total,
       h.unread, found.more, found.last, coalesce(found.data, '') as data,
-- include: salt
from (
    select *
    from unnest($1::int[], $2::bigint[], $3::int[], $4::bool[]) with ordinality as page (user_id, before, size, unread, number)
    limit cardinality($1::int[])
) a
-- include: page

-- name: page
-- One page, as `pages` gives it. The planner does not evaluate a comparison of rows, so that it does not know the user: the
-- plan for any user costs as little as one for this user, and is kept. The execution opens only the partition of the user.
select a.number, h.position as at, h.made_at, h.tokens_from, case when a.unread then h.unread else h.total end as total,
       h.unread, found.more, found.last, coalesce(found.data, '') as data,
-- include: salt
from (
    select case when (0, 0) <= (0, 0) then $1::int end as user_id, (select $2::bigint) as before, (select $3::int) as size,
           (select $4::bool) as unread, 1::bigint as number
) a
-- include: page

-- name: skip
-- The position of the entry before a page by number; no row if the inbox ends before it.
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
where user_id = (select $1::int) and deleted_at is null and read_at is null
order by position desc
offset (select $2::bigint - 1)
limit 1

-- name: put_heads
-- Create the heads of users, or change their locale and whether they are active, in the order of ids. Returns who was
-- deactivated, and for how many seconds new tokens are not valid yet: tokens contain whole seconds, and an id may have been
-- erased in the current second. The 30 s are the allowed difference of clocks.
with given as materialized (
    select * from unnest($1::int[], $2::text[], $3::bool[]) as head (user_id, locale, active)
),
retired as materialized (
    select user_id
    from given
    where not active and (select h.active from heads h where h.user_id = given.user_id)
),
head as (
    -- the generation is given, because its default would be evaluated for each row
    insert into heads (user_id, locale, active, generation, tokens_from)
    select user_id, locale, active, (select generation()), (
        select greatest(now() - interval '30 s', date_trunc('second', erased_at) + interval '1 s')
        from erased_ids
        where digest = sha256(convert_to(given.user_id::text, 'UTF8'))
    )
    from given
    order by user_id
    on conflict (user_id) do update set locale = excluded.locale, active = excluded.active
    returning tokens_from
)
select array(select user_id from retired) as retired,
       (select greatest(extract(epoch from max(tokens_from) - clock_timestamp()), 0)::float from head) as wait

-- name: heads
select user_id, position as at, made_at, tokens_from, unread,
-- include: salt
from heads
where user_id = any($1::int[]) and active

-- name: one
select h.made_at, h.tokens_from, i.deleted_at is not null as is_deleted,
       case when i.user_id is not null then notification(c.body, i.read_at, i.created_at) end as data
from heads h
left join inbox i on i.user_id = h.user_id and i.event_id = (select $2::uuid)
left join contents c on c.event_id = i.event_id and c.language = i.language
where h.user_id = (select $1::int) and h.active

-- name: links
-- The values for the links of these notifications of a caller, without deleted ones.
select i.event_id, e.kind, e.params, c.body
from inbox i
join events e on e.id = i.event_id
join contents c on c.event_id = i.event_id and c.language = i.language
where i.user_id = (select $1::int) and i.event_id = any((select $2::uuid[])::uuid[]) and i.deleted_at is null

-- name: caller
select u.id, u.company_id, h.locale, h.made_at, h.tokens_from
from heads h
join users u on u.id = h.user_id
where h.user_id = $1 and h.active

-- name: standing
-- Whether a user exists and is active.
select active from heads where user_id = $1

-- name: lock
-- Lock the heads of these users, or of those in one company, in the order of their ids, so that sessions never deadlock.
-- The first statement of a transaction that changes several inboxes.
select h.user_id
from heads h
where h.user_id = any($1::int[])
  and ($2::int is null or (select u.company_id = $2 from users u where u.id = h.user_id))
order by h.user_id
for update

-- name: lock_own
-- The first statement of a transaction that changes entries of one inbox: locks the head of the user $1, with a clear queued
-- for the user's phones, if the user is active and a token that was issued at $2 (seconds since 1970, or null) is for this
-- inbox. `began` is the position before the statement waited for the lock.
with own as materialized (
    select h.user_id, h.position, h.unread
    from heads h
    where h.user_id = $1
-- include: admitted(issued=$2)
    for update
),
-- include: noted
select (select b.position from heads b where b.user_id = $1) as began, unread from own

-- name: marks
-- Mark one notification each of several users as `read`, `unread` or `deleted`. A head that another session locks is passed
-- over, so that no user waits for another one. Returns the users whose heads are locked now and admit a token that was issued
-- at $2, and whether their notifications were deleted already. The limit is the number of marks. It shows the planner that
-- they are few, so that it keeps its plan.
with asked as materialized (
    select * from unnest($1::int[], $2::float8[], $3::uuid[], $4::text[]) as mark (user_id, issued, event_id, change)
    limit cardinality($1::int[])
),
own as materialized (
    select h.user_id, h.position, a.event_id, a.change
    from (select * from asked order by user_id) a
    join heads h on h.user_id = a.user_id
-- include: admitted(issued=a.issued)
    for update of h skip locked
),
-- include: noted
,
-- A row that was changed before the lock is tested by its latest version.
marked as (
    update inbox i
    set read_at = case own.change when 'read' then clock_timestamp() when 'deleted' then i.read_at end,
        deleted_at = case when own.change = 'deleted' then clock_timestamp() end
    from own
    where i.user_id = own.user_id and i.event_id = own.event_id and i.deleted_at is null
      and (own.change = 'deleted' or (i.read_at is null) = (own.change = 'read'))
    returning i.user_id, i.event_id, own.change,
              case own.change when 'read' then -1 when 'unread' then 1 else - (i.read_at is null)::int end as unread
),
head as (
    update heads h
    set position = h.position + 1, unread = h.unread + m.unread, total = h.total - (m.change = 'deleted')::int
    from marked m
    where h.user_id = m.user_id
    returning h.user_id, h.position, m.change, m.event_id
),
change as (
    insert into changes (user_id, position, change, event_ids)
    select user_id, position, change, array[event_id] from head
)
select own.user_id, (
           select i.deleted_at is not null from inbox i where i.user_id = own.user_id and i.event_id = own.event_id
       ) as is_deleted
from own

-- name: read_all
-- Run after `lock_own`, so that it sees all changes before the lock: clients replay it in its place among them.
with marked as (
    update inbox set read_at = clock_timestamp()
    where user_id = (select $1::int) and deleted_at is null and read_at is null and position <= (select $2::bigint)
    returning event_id
),
head as (
    update heads set position = position + 1, unread = unread - (select count(*) from marked)
    where user_id = $1 and exists (select from marked)
    returning position
)
insert into changes (user_id, position, change, up_to)
select $1, head.position, 'all_read', $2 from head

-- name: mark
-- Mark entries of any number of inboxes as read, deleted or rewritten. Entries that are marked already do not change.
-- The limit is the number of entries. It shows the planner that they are few, so that it keeps its plan.
with pair as materialized (
    select * from unnest($1::uuid[], $2::int[]) as p (event_id, user_id) limit $4::bigint
),
marked as (
    update inbox i
    set read_at = case when $3 = 'read' then clock_timestamp() else i.read_at end,
        deleted_at = case when $3 = 'deleted' then clock_timestamp() end
    from pair p
    where i.user_id = p.user_id and i.event_id = p.event_id and i.deleted_at is null
      and ($3 <> 'read' or i.read_at is null)
    returning i.user_id, i.event_id, case when $3 = 'deleted' then (i.read_at is null)::int else ($3 = 'read')::int end as unread
),
person as materialized (
    select user_id, count(*)::int as n, sum(unread)::int as unread, array_agg(event_id) as event_ids
    from marked
    group by user_id
),
head as (
    update heads h
    set position = h.position + 1, unread = h.unread - p.unread,
        total = h.total - case when $3 = 'deleted' then p.n else 0 end
    from person p
    where h.user_id = p.user_id
    returning h.user_id, h.position, p.event_ids
),
noted as (
    insert into clears (user_id, since)
    select head.user_id, head.position - 1
    from head
    where exists (select from devices d where d.user_id = head.user_id and is_phone(d.type))
    order by head.user_id
    on conflict (user_id) do update set since = clears.since
)
insert into changes (user_id, position, change, event_ids)
select user_id, position, $3, event_ids from head

-- name: lock_expired
-- Lock the heads of the users in the next records of recipients that are older than $4, from ($1, $2) to the events before $3:
-- several records with few users each, or one with many. Returns the record after them, if there is one, and the users whose
-- heads others hold.
with record as materialized (
    select event_id, after_user, user_ids,
           sum(cardinality(user_ids)) over (order by event_id, after_user) - cardinality(user_ids) as before,
           row_number() over (order by event_id, after_user) as nth
    from (
        select event_id, after_user, user_ids
        from recipients
        where (event_id, after_user) >= ($1, $2) and event_id >= $1 and event_id < $3 and delivered_at < $4
        order by event_id, after_user
        limit $5::int + 1
    ) next
),
-- include: free_heads(size=$5)
select next.event_id, next.after_user, array(select user_id from busy) as busy
from (select) always
left join (
    select event_id, after_user from record where before >= $5 or nth > $5 order by event_id, after_user limit 1
) next on true

-- name: lock_oldest
-- Lock the heads of the users in the oldest records of recipients, like `lock_expired`. Returns these records, and the users
-- whose heads others hold.
with record as materialized (
    select event_id, after_user, user_ids,
           sum(cardinality(user_ids)) over (order by delivered_at, event_id, after_user) - cardinality(user_ids) as before,
           1 as nth
    from (
        select event_id, after_user, user_ids, delivered_at
        from recipients
        where delivered_at < $1
        order by delivered_at, event_id, after_user
        limit $2
    ) oldest
),
-- include: free_heads(size=$2)
select array_agg(event_id) as event_ids, array_agg(after_user) as after_users, array(select user_id from busy) as busy
from record
where before < $2

-- name: remove_range
-- Delete the records of recipients from ($1, $2) to those before ($3, $4) that are older than $5 and have none of the
-- users $6, with their entries.
with record as (
    delete from recipients
    where (event_id, after_user) >= ($1, $2) and (event_id, after_user) < ($3, $4) and event_id >= $1 and event_id <= $3
      and delivered_at < $5 and not user_ids && $6::int[]
    returning event_id, user_ids
),
-- include: removed

-- name: remove_records
-- Delete these records of recipients, but for those that have one of the users $3, with their entries.
with record as (
    delete from recipients r
    using unnest($1::uuid[], $2::int[]) as o (event_id, after_user)
    where r.event_id = o.event_id and r.after_user = o.after_user and not r.user_ids && $3::int[]
    returning r.event_id, r.user_ids
),
-- include: removed

-- name: position
select position from inbox where user_id = $1 and event_id = $2

-- name: changes
-- The notifications and changes of each of these inboxes since a position, in the order of positions, at most $3 with $4 bytes of
-- content, but at least those of one position; `last` is the position of the last one that was found. Imported history, at
-- position 0 and below, is left out. An inbox without changes is one row without an event. The limit of the list is its length.
-- It shows the planner that they are few.
select a.user_id, h.position as at, h.made_at, h.tokens_from, h.unread, h.forgotten, told.position, told.event, told.data, told.last,
-- include: salt
from (
    select * from unnest($1::int[], $2::bigint[]) as given (user_id, since) limit cardinality($1::int[])
) a
-- include: changes

-- name: changes_of_one
-- The same of one inbox. The execution opens only the partition of its user, as in `page`.
select a.user_id, h.position as at, h.made_at, h.tokens_from, h.unread, h.forgotten, told.position, told.event, told.data, told.last,
-- include: salt
from (select case when (0, 0) <= (0, 0) then $1::int end as user_id, (select $2::bigint) as since) a
-- include: changes

-- name: forget_changes
-- Delete changes that are older than a week. A client with an older cursor has to load the list.
with old as materialized (
    select user_id, position
    from changes
    where changed_at < now() - make_interval(days => 7)
    order by changed_at
    limit $1
),
head as (
    update heads h
    set forgotten = greatest(h.forgotten, o.position)
    from (select user_id, max(position) as position from old group by user_id order by user_id) o
    where h.user_id = o.user_id
),
gone as (
    delete from changes c using old o where c.user_id = o.user_id and c.position = o.position
)
select count(*) from old

-- name: enter
-- Enter one chunk of each of these events, in order, into the inboxes of its recipients. Heads are updated and locked in
-- the order of user ids, so that two deliveries never deadlock: every plan reads them by their only index or by the sorted
-- list, because sessions disable sequential and bitmap scans. The words of the events are read here, under the locks of
-- their jobs, so that words that are erased at the same time are not rendered.
--
-- Each list of users is read once, and joined only by an index: the planner expects every list to be short, and would
-- compare each row of one list with each row of another.
with
-- include: chunks
-- include: found(into=recipient)
-- include: head
speaker as (select locale from head),
-- include: spoken(languages=$4)
piece as (select * from candidate),
-- include: entries(lanes=$5)
select e.id, e.kind, e.data, e.params, e.erased, result.languages, result.user_ids,
       exists (select from pushed) as pushed
from result
join events e on e.id = result.event_id
where result.languages is not null

-- name: enter_many
-- The same for a large chunk of one event, whose users get one entry each: the index of the heads, and that of the devices,
-- is read once, in its order.
with
-- include: chunks
-- include: found(into=recipient)
head as (
    update heads h
    set position = h.position + 1, total = h.total + 1, unread = h.unread + 1,
        last_at = greatest(h.last_at, clock_timestamp())
    where h.user_id = any(array(select user_id from recipient order by user_id)) and h.active
    returning h.user_id, h.position, h.last_at, h.locale
),
speaker as (select locale from head),
-- include: spoken(languages=$4)
delivered as (
    insert into inbox (position, created_at, event_id, user_id, language)
    select position, last_at, ($1::uuid[])[1], user_id, (select languages from spoken) ->> locale
    from head
),
pushed as (
    insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending)
    select ($1::uuid[])[1], d.id, d.user_id, d.lane, true, d.type, right(d.token, 6)
    from devices d
    where cardinality((select $5::text[])) > 0 and d.user_id = any(array(select user_id from head))
      and d.lane = any($5::text[])
    returning true
),
meant as materialized (
    select count(*)::int as n, min(team_id) as first_team, max(team_id) as last_team from recipient
),
got as materialized (
    select count(*)::int as n, coalesce(array_agg(user_id order by user_id), '{}') as user_ids from head
),
noted as (
    insert into recipients (event_id, after_user, user_ids, team_ids, reached, dropped)
    select ($1::uuid[])[1], ($2::int[])[1], user_ids,
           case
               when (select first_team = last_team from meant) then array_fill((select first_team from meant), array[n])
               else array(
                   select r.team_id
                   from recipient r
                   full join head using (user_id)
                   where head.position is not null
                   order by user_id
               )
           end,
           n, (select n from meant) - n
    from got
    where exists (select from candidate)
)
select e.id, e.kind, e.data, e.params, e.erased, (select user_ids from got) as user_ids,
       array(select distinct language from jsonb_each_text((select languages from spoken)) as of (locale, language)) as languages,
       exists (select from pushed) as pushed
from events e
where e.id = ($1::uuid[])[1] and (select n from got) > 0

-- name: count_history
-- Count imported notifications, whose positions are below all others, and those that were sorted ($5). Clients have to load the
-- list again.
update heads h
set position = h.position + 1, forgotten = h.position + 1, total = h.total + p.n, unread = h.unread + p.unread,
    last_at = greatest(h.last_at, p.newest)
from (
    select coalesce(counted.user_id, resorted.user_id) as user_id, coalesce(n, 0) as n, coalesce(unread, 0) as unread, newest
    from unnest($1::int[], $2::int[], $3::int[], $4::timestamptz[]) as counted (user_id, n, unread, newest)
    full join unnest($5::int[]) as resorted (user_id) on resorted.user_id = counted.user_id
) p
where h.user_id = p.user_id

-- name: outdate_cursors
-- After a restore, let all clients load their lists: what they saw last may be lost.
update timelines set salt = new_salt(), previous_salt = null where id = 1

-- name: continued
-- Which of these cursors (user, `made` and position) are of the timeline before, and at a change that this one contains: it was
-- made before this timeline was noted. Changes that are lost are made again, later, or are missing.
select c.user_id, c.made, c.position
from (
    select * from unnest($1::int[], $2::bigint[], $3::bigint[]) as given (user_id, made, position)
    limit cardinality($1::int[])
) c
join heads h on h.user_id = c.user_id
where c.made = (extract(epoch from h.made_at) * 1000000)::bigint + (select previous_salt from timelines where id = 1)
  and (c.position = 0 or (select noted_at from timelines where id = 1) > coalesce(
      (
          select i.created_at from inbox i
          where i.user_id = c.user_id and i.position = c.position and i.deleted_at is null and i.read_at is null
      ),
      (
          select i.created_at from inbox i
          where i.user_id = c.user_id and i.position = c.position and i.deleted_at is null and i.read_at is not null
      ),
      (select i.created_at from inbox i where i.user_id = c.user_id and i.position = c.position and i.deleted_at is not null),
      (select n.changed_at from changes n where n.user_id = c.user_id and n.position = c.position)
  ))

-- name: recount
-- Count the entries of locked inboxes again. Clients have to load the list again.
update heads h
set position = h.position + 1, forgotten = h.position + 1, total = counted.total, unread = counted.unread
from (
    select asked.user_id, count(i.event_id)::int as total,
           count(i.event_id) filter (where i.read_at is null)::int as unread
    from unnest($1::int[]) as asked (user_id)
    left join inbox i on i.user_id = asked.user_id and i.deleted_at is null
    group by asked.user_id
) counted
where h.user_id = counted.user_id
