-- What the heads `head` get: the entries, the deliveries, and the record of the recipients of each event `piece`.
entry as materialized (
    select (part >> 32)::int as ordinal, ($1::uuid[])[part >> 32] as event_id, head.user_id,
           (part & x'7fffffff'::int)::int as team_id, head.before + nth as position, head.last_at,
           (select languages from spoken) ->> head.locale as language
    from head
    cross join unnest(head.parts) with ordinality as part_of (part, nth)
),
delivered as (
    insert into inbox (position, created_at, event_id, user_id, language)
    select position, last_at, event_id, user_id, language
    from entry
),
pushed as (
    -- A delivery for each device in one of the lanes. Without lanes, no device is looked up; the sub-select hides this
    -- from the planner, which would otherwise plan the statement for each execution.
    insert into deliveries (event_id, device_id, user_id, lane, is_bulk, type, token_ending)
    select entry.event_id, d.id, entry.user_id, d.lane, false, d.type, right(d.token, 6)
    from entry
    cross join lateral (
        select id, lane, type, token from devices where user_id = entry.user_id and lane = any(@lanes::text[]) offset 0
    ) d
    where cardinality((select @lanes::text[])) > 0 and exists (select from devices)
    returning true
),
meant as materialized (
    select ordinal, count(*) as n from recipient group by ordinal
),
got as materialized (
    select ordinal, array_agg(user_id) as user_ids, array_agg(team_id) as team_ids,
           array_agg(distinct language) as languages
    from entry
    group by ordinal
),
result as materialized (
    -- Full joins, because they are made by a hash or by sorting, and a left join would compare each with each.
    select ordinal, p.event_id, p.after_user, coalesce(got.user_ids, '{}') as user_ids, coalesce(got.team_ids, '{}') as team_ids,
           coalesce(meant.n, 0) as meant, got.languages
    from piece p
    full join meant using (ordinal)
    full join got using (ordinal)
),
noted as (
    insert into recipients (event_id, after_user, user_ids, team_ids, reached, dropped)
    select event_id, after_user, user_ids, team_ids, cardinality(user_ids), meant - cardinality(user_ids)
    from result
)
