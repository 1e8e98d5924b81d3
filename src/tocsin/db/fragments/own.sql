-- The head of the user $1, locked, with a clear queued for the user's phones, if the user is active and a token that was issued
-- at $2 (seconds since 1970, or null) is for this inbox, not for that of an erased user: `inbox._admits` is the same rule. A
-- change of the inbox that tests whether `own` exists is made after the lock is held, and PostgreSQL then tests the latest
-- version of its row.
own as materialized (
    select h.user_id, h.position
    from heads h
    where h.user_id = $1 and h.active
      and case
          when h.tokens_from is not null then $2::float8 >= extract(epoch from h.tokens_from)::float8
          else $2::float8 is null or $2::float8 >= extract(epoch from h.made_at)::float8 - 30
              or h.made_at - interval '30 seconds' > clock_timestamp()
      end
    for update
),
noted as (
    insert into clears (user_id, since)
    select own.user_id, own.position
    from own
    where exists (select from devices d where d.user_id = $1 and is_phone(d.type))
    on conflict do nothing
)
