-- People who are signed in to the console. Neither the value of their cookie nor the tokens made from it are stored, only
-- hashes. The release before neither reads nor writes the table.
create table console_sessions (
    id uuid primary key,
    secret_hash bytea not null,
    token_hashes bytea[] not null default '{}', -- the current token and the one before
    subject text not null,
    name text,
    role text not null,
    company_id int,
    started_at timestamptz not null default now(),
    renewed_at timestamptz not null default now(),
    ends_at timestamptz not null
);
create index console_sessions_by_subject on console_sessions (subject, started_at);
create index console_sessions_by_end on console_sessions (ends_at);
