-- What operators look at, each by an index of its own, and from when on the wait for a delivery counts.
create index deliveries_dead on deliveries (settled_at) where state = 'dead';
create index devices_by_ending on devices (right(token, 6));
create index events_custom on events (accepted_at) where kind = 'custom';
create index events_custom_by_company on events (company_id, accepted_at) where kind = 'custom';
create index inbox_deleted on inbox (user_id, position) where deleted_at is not null;

alter table jobs
    add column wanted_at timestamptz not null default now(); -- the moment it was accepted, or is held until
