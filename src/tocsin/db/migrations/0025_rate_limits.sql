-- What is used of rate limits, by all processes. Unlogged, because to count a request must not cost a write to disk: after a
-- crash of the server, all windows begin again. A window that has ended counts as no row.
create unlogged table rate_limits (
    name text not null,
    key text not null,
    ends_at timestamptz not null,
    used int not null,
    primary key (name, key)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

create index rate_limits_by_end on rate_limits (ends_at);
