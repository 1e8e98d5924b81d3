-- The processes of `tocsin worker` that can work this cell, whether they do or not: from these, each decides whether to work it.
-- One that was not seen for some seconds is lost.
create table worker_processes (
    id uuid primary key,
    name text not null,
    seen_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
