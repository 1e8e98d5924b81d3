-- Whether a running worker has the keys of the lane @lane; true while none runs, or one has not said.
coalesce(
    (
        select bool_or(w.lanes is null or @lane = any(w.lanes))
        from workers w
        where w.seen_at > clock_timestamp() - interval '15 seconds'
    ),
    true
)
