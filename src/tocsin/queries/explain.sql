-- Explaining one person's notifications: what came, what did not, and why.

-- name: person
select u.first_name, u.last_name, h.active, h.total, h.unread, u.time_zone
from users u
join heads h on h.user_id = u.id
where u.id = $1

-- name: devices
select type, lane, right(token, 6) as token_ending, registered_at, last_delivered_at
from devices
where user_id = $1
order by registered_at desc

-- name: events
-- Events since a moment that concern a person: named, left out, or by a team that they are in now.
select e.id, e.kind, e.accepted_at
from events e
where e.accepted_at >= $2
  and (
      $1 = any(e.users) or $1 = any(e.excepted)
      or exists (select from members m where m.user_id = $1 and m.team_id = any(e.teams))
      or exists (select from inbox i where i.user_id = $1 and i.event_id = e.id)
  )
order by e.accepted_at
limit 200
