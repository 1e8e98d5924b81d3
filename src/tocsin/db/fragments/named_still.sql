-- Whether the event `e` names a user who was not erased since. A new user
-- with the id of an erased one is not the user who was named.
exists (
    select
    from unnest(e.users) as named (user_id)
    where (
        select coalesce(h.generation <= e.generation, h.made_at <= e.accepted_at) from heads h where h.user_id = named.user_id
    )
)
