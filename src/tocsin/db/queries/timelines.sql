-- Timelines of the server: each promotion, and each restore to a point in time, begins one.

-- name: note_timeline
-- Each new session of the service runs this before it reads or writes. The commit does not wait for a standby: reads work while
-- there is none, and a standby that is promoted without this row begins a timeline of its own.
with present as materialized (
    select ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int as timeline
)
update timelines t
set timeline = (select timeline from present), noted_at = clock_timestamp(), previous_salt = case when t.timeline is not null then t.salt end,
    salt = case when t.timeline is null then t.salt else new_salt() end
where t.id = 1 and t.timeline is distinct from (select timeline from present)
returning set_config('synchronous_commit', 'local', true)
