-- When a user came from another company: what was told to them before is not of this one. The release before does not
-- write it; users who moved under it count as having been in their company always.
alter table users add column moved_at timestamptz;
