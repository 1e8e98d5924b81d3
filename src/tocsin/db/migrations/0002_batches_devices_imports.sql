-- Batches, held, keyed and cancelled events; what is settled or erased afterwards; devices; imports; what is forgotten.

alter table events
    add column excepted int[] not null default '{}', -- users who are left out, named or not
    add column key text,                             -- the service's own name for it
    add column digest bytea,                         -- of what was posted under an id of the producer's
    add column skipped_users int[],                  -- nobody knew them when it was posted; null: it skips nobody
    add column skipped_teams int[],
    add column erased boolean not null default false; -- the words of whom it is about are gone from it
-- Later than all that the statement which accepts it has seen: whoever's head was made afterwards is not who was named.
alter table events alter column accepted_at set default clock_timestamp();
create index events_by_time on events (accepted_at);

-- Which event a service's key names now. Its row is locked while that changes.
create table event_keys (
    service text not null,
    company_id int not null,      -- the one company of the service's token; 0: any
    key text not null,
    event_id uuid not null,
    primary key (service, company_id, key)
);

-- Events that are not to be delivered, or no further than they were when this was said.
create table cancellations (
    event_id uuid primary key,
    replaced_by uuid,             -- by the event that took its key; null: cancelled
    cancelled_at timestamptz not null default now()
);

-- Jobs of one batch are done in the order of their `due_at`, whoever does them.
alter table jobs add column batch uuid;
create index jobs_of_batch on jobs (batch, due_at, id) where batch is not null;
create index jobs_of_batch_under_way on jobs (batch)
where batch is not null and (worker_id is not null or lane = 'bulk');

-- What is to be settled about a subject. A row goes when its job is done.
create table resolutions (
    id uuid primary key,
    how text not null check (how in ('read', 'gone', 'erased')),
    company_id int,               -- for people of this company; null: of any
    users int[],                  -- for these; null: for everyone
    event_ids uuid[] not null,    -- what there was about the subject, in the order of ids
    rewritten boolean not null,   -- nothing of it is left to be written anew
    again boolean not null default false, -- some of it was still on its way when this pass began
    after_event uuid not null default '00000000-0000-0000-0000-000000000000', -- how far this pass came
    after_user int not null default -1,
    accepted_at timestamptz not null default now()
);

-- Users who were erased, and the events that still name them. A row goes when its job is done.
create table erasures (
    id uuid primary key,
    user_id int not null,
    event_ids uuid[] not null,
    erased_at timestamptz not null default now()
);

-- Answers to POST requests with an Idempotency-Key, for a day.
create table idempotency_keys (
    caller text not null,
    method text not null,
    path text not null,
    key text not null,
    digest bytea not null,        -- of the body
    status int not null,
    body text not null,
    kept_at timestamptz not null default now(),
    primary key (caller, method, path, key)
);
create index idempotency_keys_by_time on idempotency_keys (kept_at);

-- Phones. A token belongs to one user at a time.
create table devices (
    token text primary key,
    user_id int not null references users on delete cascade,
    type text not null check (type in ('iOS', 'Android')),
    provider text not null check (provider in ('apns', 'fcm')),
    environment text not null check (environment in ('production', 'sandbox')),
    app text not null,
    registered_at timestamptz not null default now(), -- the last time
    last_delivered_at timestamptz
);
create index devices_by_user on devices (user_id, registered_at);

-- An import that is checked or applied: its lines wait here until they are.
create table imports (
    id uuid primary key,
    state text not null check (state in ('checking', 'applying')),
    company_id int,               -- the one company of the service's token; null: any
    applied bigint not null default 0, -- lines
    touched_at timestamptz not null default now()
);
create table import_lines (
    import_id uuid not null,
    number bigint not null,       -- of the line, from 1
    part text not null check (part in ('user', 'team', 'device', 'notification')),
    user_id int,                  -- whom a line is about; null: a team
    body text not null,           -- as it was checked: JSON, and of a notification its first five keys
    happened_at timestamptz,      -- what follows is of a notification
    read_at timestamptz,
    event_id uuid,
    kind text,
    data text,
    language text,
    subjects text[]
);
create index import_lines_by_part on import_lines (import_id, part, user_id, happened_at desc, number desc);

-- A cursor into an inbox holds `made_at`, so that one of a former owner of the id is known as such; changes up to the
-- position `forgotten` are no longer kept, and who asks for them has to start anew. Entries at positions of 0 and less
-- are imported history.
alter table heads
    add column made_at timestamptz not null default now(),
    add column forgotten bigint not null default 0;

alter table changes drop constraint changes_change_check;
alter table changes
    add constraint changes_change_check check (change in ('read', 'all_read', 'unread', 'deleted', 'rewritten'));
create index changes_by_time on changes (changed_at);
create index recipients_by_time on recipients (delivered_at);
