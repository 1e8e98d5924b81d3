-- Test pushes to a device of a user.

-- name: device
-- By its token or its id. APNs tokens are not case-sensitive.
select d.id, d.lane, coalesce(d.whole_token, d.token) as token, d.type, d.environment, d.app, d.registered_at, d.p256dh,
       d.auth, d.server_key, h.unread, h.locale, h.active
from devices d
join heads h using (user_id)
where d.user_id = $1
  and (d.id = $3::uuid or d.token = device_key($2) or (d.token = lower($2) and d.provider = 'apns'))
