-- The head of the user $1, locked, with a clear queued for the user's phones. A change of the inbox that tests whether `own`
-- exists is made after the lock is held, and PostgreSQL then tests the latest version of its row.
own as materialized (
    select h.user_id, h.position
    from heads h
    where h.user_id = $1
    for update
),
noted as (
    insert into clears (user_id, since)
    select own.user_id, own.position
    from own
    where exists (select from devices d where d.user_id = $1 and is_phone(d.type))
    on conflict do nothing
)
