-- Phones that are to clear all that they show, once: their user was erased or is not active any more, or the phone was
-- detached. Their devices may be gone by then. The release before neither writes nor reads them.
create table last_clears (
    id uuid primary key default gen_random_uuid(),
    token text not null,
    type text not null,
    environment text not null,
    app text not null,
    registered_at timestamptz not null,
    lane text not null,
    made_at timestamptz not null default now()
);
create index last_clears_by_time on last_clears (made_at);
