-- Idempotency keys: the answers to POST requests, kept for a day.

-- name: begin
-- Take a key. If another transaction has just taken it, this waits for its end. A key that is a day old is free, and so is
-- that of a failed import.
insert into idempotency_keys as k (caller, method, path, key, digest, status, body)
values ($1, $2, $3, $4, $5, 0, '')
on conflict (caller, method, path, key) do update
set digest = excluded.digest, status = 0, body = '', import_id = null, kept_at = now()
where k.kept_at < now() - interval '24 hours'
   or exists (select from dead_letters d where d.id = k.import_id)
returning true

-- name: answer
select digest, status, body, import_id from idempotency_keys where caller = $1 and method = $2 and path = $3 and key = $4

-- name: keep
update idempotency_keys set status = $5, body = $6, import_id = $7 where caller = $1 and method = $2 and path = $3 and key = $4
