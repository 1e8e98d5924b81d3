-- Content is read and rendered after the list is cut: its size is known without reading it.
join heads h on h.user_id = a.user_id and h.active
left join lateral (
    select position, event, coalesce(data, notification(body, read_at, created_at)) as data, last
    from (
        select happened.*, max(position) over () as last, rank() over upto as place, count(*) over upto as number,
               sum(octet_length(coalesce(data, body))) over upto as size
        from (
            (
                select come.position, 'notification' as event, null as data, c.body, come.read_at, come.created_at
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
                limit (select $3::int)
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
                           when n.change = 'rewritten' then null
                           when cardinality(n.event_ids) = 1 then '{"id":"' || n.event_ids[1] || '"}'
                           else '{"ids":' || to_json(n.event_ids) || '}'
                       end,
                       r.body, r.read_at, r.created_at
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
                    limit (select $3::int)
                ) n
                left join lateral (
                    select c.body, i.read_at, i.created_at
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
                order by n.position
                fetch first (select $3::int) rows with ties
            )
        ) happened
        window upto as (order by position)
    ) counted
    where place = 1 or (number <= (select $3::int) and size <= (select $4::bigint))
) told on true
order by a.user_id, told.position
