-- `tocsin cell move` moves a company to another database, and a phone is owned once over all databases. The release before
-- writes none of it.

-- The companies that leave, and those that have left or come. Of all rows of a company that say `moved`, in any database, the
-- one with the highest turn says where the company is.
create table moves (
    company_id int primary key check (company_id > 0),
    turn int not null, -- counts the moves of the company
    state text not null check (state in ('copying', 'moved', 'here')),
    other text not null, -- the cell that it moves to; with `here`, the cell that it came from
    closed_until timestamptz, -- until then, the company is not served
    is_leaving bool not null default false, -- it has moved, and rows of it are still here
    received_turn int not null default 0, -- the move that brings the company here,
    received bigint not null default 0 -- and which of its `moved_rows` are here
);

-- The users and teams of companies that have left, until what they had is deleted.
create table moved_ids (
    kind text not null check (kind in ('user', 'team')),
    id int not null,
    company_id int not null,
    primary key (kind, id)
);

-- Pending work of companies that have left, until it is in the other database.
create table moved_rows (
    number bigint generated always as identity primary key,
    company_id int not null,
    table_name text not null,
    row text not null
);

-- The events whose words or recipients an erasure changes while a company is copied. No head of an inbox shows it.
create table rewritten_events (
    event_id uuid primary key
);

create function note_rewritten_events() returns trigger
language plpgsql
as $$
begin
    insert into rewritten_events
    select distinct named.id from unnest(new.event_ids) as named (id) where exists (select from moves where state = 'copying')
    on conflict do nothing;
    return new;
end
$$;
create trigger note_rewritten_events after insert on erasures for each row execute function note_rewritten_events();
create trigger note_rewritten_events after insert on resolutions for each row
    when (new.how = 'erased') execute function note_rewritten_events();

-- A company that leaves gets no further users and teams. The lock of its row orders this and the closing of the company.
create function refuse_moved_company() returns trigger
language plpgsql
as $$
declare
    standing record;
begin
    if current_setting('tocsin.receiving', true) is distinct from 'on' then
        select state, closed_until into standing from moves where company_id = new.company_id for share;
        if standing.state = 'moved' or standing.closed_until > clock_timestamp() then
            raise lock_not_available using message = format('Company %s is moving to another database.', new.company_id);
        end if;
    end if;
    return new;
end
$$;
create trigger refuse_moved_company before insert on users for each row execute function refuse_moved_company();
create trigger refuse_moved_company before insert on teams for each row execute function refuse_moved_company();

create function hold_events() returns void
language plpgsql
as $$
begin
    lock table events, imports, erasures, resolutions in share mode;
end
$$;

-- When the token of each device was registered last, so that its registrations in other databases end. Tokens that have
-- left are remembered for thirty days. Devices of before this step are added by the first process that looks for such tokens.
create table registrations (
    digest text primary key, -- of the token
    device_id uuid not null,
    registered_at timestamptz not null,
    noted_at timestamptz not null default clock_timestamp(),
    left_at timestamptz
);
create index registrations_by_time on registrations (noted_at, digest);
create index registrations_left on registrations (left_at) where left_at is not null;

-- Up to which registrations each other database was looked at; with '', that the devices here are in `registrations`.
create table seen_registrations (
    cell text primary key,
    noted_at timestamptz not null
);

create function note_registration() returns trigger
language plpgsql
as $$
begin
    if tg_op = 'DELETE' then
        update registrations set left_at = clock_timestamp() where digest = md5(old.token) and device_id = old.id;
        return old;
    end if;
    insert into registrations (digest, device_id, registered_at)
    values (md5(new.token), new.id, new.registered_at)
    on conflict (digest) do update
    set device_id = excluded.device_id, registered_at = excluded.registered_at, noted_at = excluded.noted_at, left_at = null;
    delete from registrations
    where digest = any(array(
        select digest from registrations
        where left_at < now() - interval '30 days'
        order by left_at
        limit 2
        for update skip locked
    ));
    return new;
end
$$;
create trigger note_registration after insert or delete or update of registered_at on devices
    for each row execute function note_registration();
