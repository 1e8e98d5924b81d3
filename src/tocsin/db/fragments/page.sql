join heads h on h.user_id = a.user_id and h.active
cross join lateral (
    select count(*) > a.size as more, (array_agg(position))[least(count(*), a.size)] as last,
           array_to_string((array_agg(notification(body, read_at, created_at)))[1 : a.size], ',') as data
    from (
        select entry.position, entry.read_at, entry.created_at, c.body
        from (
            select position, event_id, language, read_at, created_at
            from (
                (
                    select position, event_id, language, read_at, created_at
                    from inbox
                    where user_id = a.user_id and deleted_at is null and read_at is null and position < a.before
                    order by position desc
                    limit 101
                )
                union all
                (
                    select position, event_id, language, read_at, created_at
                    from inbox
                    where user_id = a.user_id and deleted_at is null and read_at is not null and position < a.before
                      and not a.unread
                    order by position desc
                    limit 101
                )
            ) merged
            order by position desc
            limit a.size + 1
        ) entry
        join contents c on c.event_id = entry.event_id and c.language = entry.language
        order by entry.position desc
    ) shown
) found
