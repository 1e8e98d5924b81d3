-- If there is a row in `@if_any`, the delayed deliveries of lane $1 among the next @size that wait, bulk or not, in the order of
-- keys. Others follow their schedule, so that the statement is bounded, however many wait or are kept.
waiting as materialized (
    select d.event_id, d.device_id
    from unnest(array[true, false]) as kind (is_bulk)
    cross join lateral (
        select event_id, device_id, state
        from deliveries
        where lane = $1 and is_bulk = kind.is_bulk and worker_id is null and state in ('queued', 'later', 'held')
          and due_at > now()
        order by due_at
        limit @size
    ) d
    where d.state = 'later' and exists (select from @if_any)
    order by d.event_id, d.device_id
),
