-- A clear is queued for the phones of the users `own`, whose heads are locked. One that is queued already is locked, so that it
-- is not claimed before this change is committed: it would not be cleared.
noted as (
    insert into clears (user_id, since)
    select own.user_id, own.position
    from own
    where exists (select from devices d where d.user_id = own.user_id and is_phone(d.type))
    on conflict (user_id) do update set since = clears.since
)
