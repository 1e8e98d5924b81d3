-- Test pushes to a user's own device, with a rate limit.

-- name: take
-- No row if the limit was reached within the last minute.
insert into trials as t (user_id, sent_at)
select id, array[clock_timestamp()] from users where id = $1 for key share
on conflict (user_id) do update
set sent_at = array(select at from unnest(t.sent_at) at where at > clock_timestamp() - interval '1 minute')
    || excluded.sent_at
where (select count(*) < $2::int from unnest(t.sent_at) at where at > clock_timestamp() - interval '1 minute')
returning true

-- name: free_in
-- Seconds until the next one is allowed.
select extract(epoch from min(at) + interval '1 minute' - clock_timestamp())::float8
from trials, unnest(sent_at) at
where user_id = $1 and at > clock_timestamp() - interval '1 minute'

-- name: device
-- APNs tokens are not case-sensitive.
select d.id, d.lane, coalesce(d.whole_token, d.token) as token, d.type, d.environment, d.app, d.registered_at, d.p256dh,
       d.auth, d.server_key, h.unread, h.locale
from devices d
join heads h using (user_id)
where d.user_id = $1 and (d.token = device_key($2) or (d.token = lower($2) and d.provider = 'apns'))
