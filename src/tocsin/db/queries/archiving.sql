-- Archiving: copies of the write-ahead log.

-- name: state
-- PostgreSQL archives segments in order and retries the oldest, so that the last failure is about the oldest one.
select failed_count, last_failed_wal, last_failed_time, last_archived_wal, last_archived_time, stats_reset,
       pg_walfile_name(pg_current_wal_lsn()) as current_wal
from pg_stat_archiver
where current_setting('archive_mode') <> 'off' and not pg_is_in_recovery()
