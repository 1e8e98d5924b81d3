-- Delete the keys and subjects of those of the events `event` that are void: no user has them, or may still get them.
old as materialized (
    select * from event where is_void
),
-- include: keyed
,
about as (
    delete from subjects s using old where s.event_id = old.id and s.subject = any(old.subjects)
)
