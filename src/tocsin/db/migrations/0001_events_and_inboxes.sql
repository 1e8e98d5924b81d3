-- The road of an event: posted, delivered, read.

-- The directory: who there is, as the host application says.
create table users (
    id int primary key check (id > 0),
    company_id int not null check (company_id > 0),
    first_name text not null,
    last_name text not null,
    profile_picture text,
    email text,
    time_zone text not null
);

create table teams (
    id int primary key check (id > 0),
    company_id int not null check (company_id > 0),
    name text not null
);

create table members (
    team_id int not null references teams on delete cascade,
    user_id int not null references users on delete cascade,
    primary key (team_id, user_id)
);
create index members_by_user on members (user_id);

-- What was posted, as it was checked. Never changed afterwards.
create table events (
    id uuid primary key,
    service text,                 -- who posted it; null: a user, who is then the actor
    company_id int,               -- the one company it may address; null: any
    kind text not null,
    actor int,                    -- who did it: left out of teams
    data text not null,           -- JSON, as text: the order of its keys is part of the contract
    params text not null,         -- JSON
    users int[] not null,         -- named recipients
    teams int[] not null,         -- their members are looked up at delivery
    subjects text[] not null,     -- `word:id`, what it is about
    accepted_at timestamptz not null default now()
);

-- The same subjects, to be found by.
create table subjects (
    subject text not null,
    event_id uuid not null,
    primary key (subject, event_id)
);

-- Work to be done, named by the thing it works on. A row goes when its work is done.
create table jobs (
    id uuid primary key,
    task text not null,
    lane text not null check (lane in ('direct', 'bulk')),
    due_at timestamptz not null default now(),
    attempts int not null default 0,
    worker_id uuid,               -- whose lease it is; null: free
    progress bigint not null default 0
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
create index jobs_free on jobs (lane, due_at, id) where worker_id is null;
create index jobs_leased on jobs (worker_id) where worker_id is not null;

-- Who works. The leases of a worker that was not seen for a while are free.
create table workers (
    id uuid primary key,
    name text not null,
    started_at timestamptz not null default now(),
    seen_at timestamptz not null default now()
) with (fillfactor = 50);

-- Work that can't be done, and why.
create table dead_letters (
    id uuid primary key,
    task text not null,
    lane text not null,
    attempts int not null,
    progress bigint not null,
    reason text not null,
    died_at timestamptz not null default now()
);
create index dead_letters_by_time on dead_letters (died_at);

-- What an event says, once per language: the first five keys of a notification as JSON, without braces.
create table contents (
    event_id uuid not null,
    language text not null,
    body text not null,
    primary key (event_id, language)
);

-- Who got an event, a row per chunk of its delivery.
create table recipients (
    event_id uuid not null,
    after_user int not null,      -- the chunk holds users with greater ids than this
    user_ids int[] not null,
    team_ids int[] not null,      -- through which team each of them; 0: named
    reached int not null,         -- how many they are
    dropped int not null,         -- erased or inactive meanwhile
    delivered_at timestamptz not null default now(),
    primary key (event_id, after_user)
);
alter table recipients alter column user_ids set storage external; -- ids hardly compress, and trying takes its time

-- One head per user orders and counts an inbox: every change of that inbox takes the head's lock, the next position
-- and the new counts in the transaction that makes it. All that a delivery asks of a user stands here.
create table heads (
    user_id int primary key references users on delete cascade,
    locale text not null,         -- which language the next entry speaks
    active boolean not null,      -- the inactive get nothing, and their tokens open nothing
    position bigint not null default 0,
    total int not null default 0 check (total >= 0),
    unread int not null default 0 check (unread >= 0),
    last_at timestamptz not null default '-infinity' -- the newest created_at: it never runs backwards
) with (fillfactor = 40);

create table inbox (
    position bigint not null,
    created_at timestamptz not null,
    read_at timestamptz,
    deleted_at timestamptz,
    event_id uuid not null,
    user_id int not null,
    language text not null,
    primary key (user_id, event_id)
);
-- An entry is in one of these: a delivery writes two indexes instead of three, and the whole inbox is both, merged.
create index inbox_unread on inbox (user_id, position) where read_at is null and deleted_at is null;
create index inbox_read on inbox (user_id, position) where read_at is not null and deleted_at is null;

-- What happened to an inbox after delivery, in the same positions.
create table changes (
    user_id int not null,
    position bigint not null,
    change text not null check (change in ('read', 'all_read', 'unread', 'deleted')),
    event_ids uuid[],             -- which; null for all_read
    up_to bigint,                 -- all_read: those delivered up to this position
    changed_at timestamptz not null default now(),
    primary key (user_id, position)
);

-- A notification as the API shows it.
create function notification(body text, read_at timestamptz, created_at timestamptz) returns text
language sql stable parallel safe
return '{' || body
    || case
        when read_at is null then ',"read":false,"read_at":null'
        else ',"read":true,"read_at":"' || to_char(read_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || '"'
    end
    || ',"created_at":"' || to_char(created_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || '"}';

-- Which of these users and teams are unknown to a caller, who may be bound to one company. Scalar sub-queries, so that
-- each is a look-up by key, however many there are and whatever the planner expects.
create function strangers(user_ids int[], team_ids int[], company int) returns table (field text, id int)
language sql stable parallel safe
begin atomic
    select 'users', named.id
    from unnest(user_ids) as named (id)
    where not coalesce((select company is null or u.company_id = company from users u where u.id = named.id), false)
    union all
    select 'teams', named.id
    from unnest(team_ids) as named (id)
    where not coalesce((select company is null or t.company_id = company from teams t where t.id = named.id), false);
end;
