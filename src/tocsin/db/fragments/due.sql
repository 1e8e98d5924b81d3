-- The delayed deliveries `@of` are due. Each is looked up and locked by its key, whatever the statistics of the table say.
due as (
    update deliveries
    set due_at = now()
    where ctid = any(array(
        select d.place
        from @of w
        cross join lateral (
            select ctid as place, state, worker_id from deliveries
            where event_id = w.event_id and device_id = w.device_id
            offset 0
            for update
        ) d
        where d.state = 'later' and d.worker_id is null
    ))
)
