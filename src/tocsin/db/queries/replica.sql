-- Replicas: how far their data is, as positions in the write-ahead log.

-- name: written
-- What the primary has on its disk. A standby gets no more.
select pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint

-- name: replayed
-- What a standby shows; null if the server is none.
select case when pg_is_in_recovery() then pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint end
