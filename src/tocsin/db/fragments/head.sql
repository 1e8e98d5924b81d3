-- The heads of the users `recipient`, updated in the order of the ids.
head as (
    update heads h
    set position = h.position + a.n, total = h.total + a.n, unread = h.unread + a.n,
        last_at = greatest(h.last_at, clock_timestamp())
    from (
        -- a part is the ordinal and, in its lower 32 bits, the team
        select user_id, count(*)::int as n, array_agg(ordinal::bigint << 32 | team_id order by ordinal) as parts
        from recipient
        group by user_id
        order by user_id
    ) a
    where h.user_id = a.user_id and h.active
    returning h.user_id, h.position - a.n as before, h.last_at, h.locale, a.parts
),
