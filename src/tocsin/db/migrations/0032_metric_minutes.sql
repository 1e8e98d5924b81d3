-- The history of metrics: a row per minute and process, kept for a day. The release before neither reads nor writes it.
create table metric_minutes (
    minute timestamptz not null,
    process_id uuid not null,
    seconds float8 not null check (seconds > 0), -- that the growth took
    events bigint not null,
    pushes bigint not null,
    requests bigint not null,
    api_errors bigint not null,
    rate_limited bigint not null,
    providers text[] not null,
    push_errors bigint[] not null, -- of these providers
    inbox_buckets bigint[] not null, -- cumulative counts, as in the histograms of the metrics
    push_buckets bigint[] not null,
    direct_due bigint not null,
    bulk_due bigint not null,
    pushes_due bigint not null,
    direct_oldest float8 not null,
    bulk_oldest float8 not null,
    primary key (minute, process_id)
);
