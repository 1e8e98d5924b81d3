-- Pushes: one delivery for each notification and device, and what phones are told to clear.

-- A browser's subscription is a device too: its endpoint is the token. `id` is another one for each owner, so that what is
-- queued for a former owner finds nobody.
alter table devices
    add column id uuid not null default gen_random_uuid(),
    add column p256dh text,       -- the keys of a browser's subscription
    add column auth text,
    add column told_up_to bigint, -- a browser: the position up to which it was told what to close
    add column lane text not null generated always as (
        provider || '/' || app || case when environment = 'sandbox' then '/sandbox' else '' end
    ) stored;
create unique index devices_by_id on devices (id);
create index devices_by_use on devices (greatest(registered_at, last_delivered_at));
alter table devices drop constraint devices_type_check;
alter table devices add constraint devices_type_check check (type in ('iOS', 'Android', 'Web'));
alter table devices drop constraint devices_provider_check;
alter table devices add constraint devices_provider_check check (provider in ('apns', 'fcm', 'web'));

-- Leased and freed like jobs; one under way for each device.
create table deliveries (
    event_id uuid not null,
    device_id uuid not null,
    user_id int not null,
    lane text not null,           -- of the device when this was made: which provider, app and environment
    is_bulk boolean not null,     -- it gives way
    state text not null default 'queued' check (
        state in ('queued', 'later', 'held', 'delivered', 'gone', 'refused', 'dead', 'muted', 'skipped')
    ),
    attempts int not null default 0,
    worker_id uuid,
    due_at timestamptz not null default now(),
    made_at timestamptz not null default now(),
    settled_at timestamptz,
    reason text,                  -- in words
    type text not null,           -- of the device, for those who ask when it is gone
    token_ending text not null,
    primary key (event_id, device_id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
create index deliveries_due on deliveries (lane, is_bulk, due_at, event_id)
where worker_id is null and state in ('queued', 'later', 'held');
create index deliveries_leased on deliveries (worker_id) where worker_id is not null;
create index deliveries_under_way on deliveries (device_id) where worker_id is not null;
create index deliveries_held on deliveries (device_id) where state = 'held';
create index deliveries_by_user on deliveries (user_id, made_at);
create index deliveries_settled on deliveries (settled_at) where settled_at is not null;

-- What is known of a lane beside its settings. `configuration` is a digest of them: another one begins anew.
create table lanes (
    name text primary key,
    configuration text not null,
    delivered_at timestamptz,     -- the last time, with this configuration
    stopped_at timestamptz,
    reason text
);

-- Users whose phones are to be told what was read or deleted since a position. A row goes when that is done.
create table clears (
    user_id int primary key,
    since bigint not null,
    due_at timestamptz not null default now() + interval '2 seconds'
);
create index clears_due on clears (due_at);
