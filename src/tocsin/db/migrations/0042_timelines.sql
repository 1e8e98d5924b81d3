-- A server that is promoted begins a timeline, and may lack changes that clients have seen: their positions are taken a second
-- time. So all cursors contain the salt, which changes with the timeline.
create table timelines (
    id int primary key check (id = 1),
    timeline int,
    salt bigint not null,
    previous_salt bigint, -- that of the timeline before,
    noted_at timestamptz -- which ended before this moment
);
insert into timelines (id, salt) values (1, 0);

create function new_salt() returns bigint language sql volatile
return 1 + (random() * 1e12)::bigint;

-- Each new session of the service calls this before it reads or writes. The commit does not wait for a standby: reads work while
-- there is none, and a standby that is promoted without this row begins a timeline of its own.
create function note_timeline() returns void
language plpgsql
as $$
declare
    present int;
begin
    if current_setting('transaction_read_only') = 'on' then
        return;
    end if;
    begin
        present := ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int;
    exception when feature_not_supported or insufficient_privilege or undefined_function then
        return; -- servers that share their storage, and lose nothing
    end;
    if exists (select from timelines where timeline is distinct from present) then
        perform set_config('synchronous_commit', 'local', true);
        update timelines
        set timeline = present, salt = case when timeline is null then salt else new_salt() end,
            previous_salt = case when timeline is not null then salt end, noted_at = clock_timestamp()
        where timeline is distinct from present;
    end if;
end
$$;
