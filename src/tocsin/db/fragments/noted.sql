-- A clear is queued for the phones of the users `own`, whose heads are locked.
noted as (
    insert into clears (user_id, since)
    select own.user_id, own.position
    from own
    where exists (select from devices d where d.user_id = own.user_id and is_phone(d.type))
    on conflict do nothing
)
