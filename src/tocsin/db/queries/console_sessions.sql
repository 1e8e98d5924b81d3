-- Sessions of people in the console.

-- name: begin
-- The oldest sessions of the same person end, if there would be more than $8.
with ended as (
    delete from console_sessions where id in (
        select id from console_sessions where subject = $3 order by started_at desc, id desc offset $8 - 1
    )
)
insert into console_sessions (id, secret_hash, subject, name, role, company_id, ends_at)
values ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7))

-- name: renew
-- Store the hash of the current token, and keep the one before: other tabs may still use it.
update console_sessions
set renewed_at = now(),
    token_hashes = case when token_hashes[1] = $3 then token_hashes else $3::bytea || token_hashes[1:1] end
where id = $1 and secret_hash = $2 and ends_at > now() and renewed_at > now() - make_interval(secs => $4)
returning subject, name, role, company_id, extract(epoch from ends_at)::float8 as ends_at

-- name: of_token
select subject, name, role, company_id, extract(epoch from ends_at)::float8 as ends_at
from console_sessions
where id = $1 and $2 = any(token_hashes) and ends_at > now() and renewed_at > now() - make_interval(secs => $3)

-- name: finish
delete from console_sessions where id = $1 and secret_hash = $2
returning subject, name, role, company_id, ends_at > now() as was_open

-- name: finish_all
-- End the sessions of one person, or of all.
delete from console_sessions where ends_at > now() and ($1::text is null or subject = $1) returning id
