-- When a push service last refused us: one that was not asked for a day refuses nothing that anybody waits for.
alter table push_services add column last_refused_at timestamptz;
