-- The open streams of all processes, so that a user has a limited number of them. Unlogged: after a crash of the server, clients
-- open their streams again. A process closes those of its streams that are marked as over. Rows of a process that was killed
-- remain until their token expires; they count as the oldest of their user.
create unlogged table streams (
    id uuid primary key,
    user_id int not null,
    process_id uuid not null,
    opened_at timestamptz not null default clock_timestamp(),
    ends_at timestamptz not null,
    is_over boolean not null default false
);

create index streams_by_user on streams (user_id) where not is_over;
create index streams_over on streams (process_id) where is_over;
create index streams_by_end on streams (ends_at);
