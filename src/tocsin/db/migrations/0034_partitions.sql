-- Partitions: `inbox` and `changes` by hash of the user; `events`, `contents`, `recipients` and `subjects` by the months in
-- which their ids were made (UUIDs of version 7). `_past` has the ids of earlier months, `_random` those after the year 2199,
-- where almost all UUIDs of other versions are, and `_rest` all others. A database that has events keeps its tables as they
-- are: all statements work on both, also those of the release before.

-- The least id of version 7 that can be made at a moment.
create function first_id(moment timestamptz) returns uuid
language sql immutable strict parallel safe
return (lpad(to_hex((extract(epoch from moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;

-- A new id of version 7, for events that are posted without one.
create function new_event_id() returns uuid
language sql volatile parallel safe
return encode(
    set_bit(
        set_bit(
            overlay(
                uuid_send(gen_random_uuid())
                placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6
            ),
            52, 1
        ),
        53, 1
    ),
    'hex'
)::uuid;
do $$
begin
    execute replace(
        pg_get_functiondef('post'::regproc), 'coalesce(posted_id, gen_random_uuid())', 'coalesce(posted_id, new_event_id())'
    );
end
$$;

-- The events that are being deleted with the partitions of their month. Their recipients are deleted first.
create table ending_events (
    id int primary key check (id = 1),
    low uuid not null,
    high uuid not null
);

-- Statements that grant on the table %I what is granted on a table, other than to its owner.
create function grants_on(table_name text) returns setof text
language sql stable strict parallel safe
begin atomic
    select 'grant ' || a.privilege_type || ' on %I to ' || case a.grantee
               when 0 then 'public'
               else replace(quote_ident(pg_get_userbyid(a.grantee)), '%', '%%')
           end
    from pg_class c
    cross join lateral aclexplode(c.relacl) a
    where c.oid = to_regclass(table_name) and a.grantee <> c.relowner;
end;

-- Make the missing partition of this month, of the next one, or of the months before the first, and move
-- into it what the partition for the rest has of it; return its name, or null if none is missing. The partition for the
-- rest is locked and read for this, so that a large one is left alone: there is no partition of that month then.
--
-- It runs as the owner of the tables, because the service may have no right to create any. Who may delete events may call it.
create function make_partition(max_bytes bigint) returns text
language plpgsql volatile security definer
set search_path from current
as $$
declare
    missing record;
    statement text;
begin
    if not has_table_privilege(session_user, 'events', 'delete') then
        raise insufficient_privilege using message = format('The role %s may not delete events.', session_user);
    end if;
    select p.relname::text as parent, p.relname || '_rest' as rest, p.relname || m.ending as name, m.low, m.high
    into missing
    from pg_class p
    cross join lateral (
        select '_past' as ending, null::uuid as low, first_id(date_trunc('month', now(), 'UTC')) as high
        union all
        select to_char(month, '_YYYY_MM'), first_id(month at time zone 'UTC'),
               first_id((month + interval '1 month') at time zone 'UTC')
        from (
            select date_trunc('month', now() at time zone 'UTC') + make_interval(months => n) as month
            from generate_series(0, 1) n
        ) next
    ) m
    where p.oid = any(array['events', 'contents', 'recipients', 'subjects']::regclass[]) and p.relkind = 'p'
      and to_regclass(p.relname || m.ending) is null and pg_relation_size(p.relname || '_rest') <= max_bytes
    order by m.low nulls first, p.relname
    limit 1;
    if missing.name is null then
        return null;
    end if;

    execute format('lock table %I in access exclusive mode', missing.rest);
    execute format(
        'create table %I (like %I including constraints including defaults including storage)',
        missing.name, missing.parent
    );
    execute format(
        'with moved as (delete from %1$I where %2$I >= %3$L and %2$I < %4$L returning *) insert into %5$I select * from moved',
        missing.rest, case missing.parent when 'events' then 'id' else 'event_id' end,
        coalesce(missing.low, '00000000-0000-0000-0000-000000000000'), missing.high, missing.name
    );
    execute format(
        'alter table %I attach partition %I for values from (%s) to (%L)',
        missing.parent, missing.name, coalesce(quote_literal(missing.low), 'minvalue'), missing.high
    );
    for statement in select grants_on(missing.parent) loop
        execute format(statement, missing.name);
    end loop;
    return missing.name;
end
$$;

-- Drop the partitions of a month (such as 2026_11) if nothing in them is needed: all recipients are deleted, no event waits,
-- and all were accepted more than a number of days ago. Return whether they are dropped. All other statements wait while it
-- looks under its locks, so that it looks before, too, and drops nothing if that took long: many dead rows are to be vacuumed.
create function drop_month(month text, days int) returns bool
language plpgsql volatile security definer
set search_path from current
as $$
declare
    low constant uuid := first_id(to_date(month, 'YYYY_MM')::timestamp at time zone 'UTC');
    high constant uuid := first_id((to_date(month, 'YYYY_MM') + interval '1 month') at time zone 'UTC');
    old constant timestamptz := now() - make_interval(days => greatest(days, 1));
    partitions constant regclass[] := array[
        to_regclass('events_' || month), to_regclass('contents_' || month), to_regclass('recipients_' || month),
        to_regclass('subjects_' || month)
    ];
    began timestamptz := clock_timestamp();
    partition regclass;
begin
    if not has_table_privilege(session_user, 'events', 'delete') then
        raise insufficient_privilege using message = format('The role %s may not delete events.', session_user);
    end if;
    if high > first_id(old) or array_position(partitions, null) is not null then
        return false;
    end if;
    for look in 1..2 loop
        if exists (select from recipients where event_id >= low and event_id < high)
            or exists (select from jobs where id >= low and id < high)
            or exists (select from dead_letters where id >= low and id < high)
            or (
                select accepted_at >= old from events where id >= low and id < high order by accepted_at desc limit 1
            )
            or clock_timestamp() > began + interval '0.2 seconds' then
            return false;
        end if;
        if look = 1 then
            lock table only events, contents, recipients, subjects in access exclusive mode;
            began := clock_timestamp();
        end if;
    end loop;
    foreach partition in array partitions loop
        execute format('drop table %s', partition);
    end loop;
    return true;
end
$$;

do $$
declare
    grants text[];
    statement text;
    parent text;
    name text;
begin
    if exists (select from events) or exists (select from inbox) or exists (select from changes) then
        return;
    end if;
    lock table inbox, changes, events, contents, recipients, subjects in access exclusive mode;
    if exists (select from events) or exists (select from inbox) or exists (select from changes)
        or exists (select from contents) or exists (select from recipients) or exists (select from subjects) then
        return;
    end if;

    -- what the administrator of an empty installation has granted
    select coalesce(array_agg(format(g.template, t.table_name)), '{}')
    into grants
    from unnest('{inbox, changes, events, contents, recipients, subjects}'::text[]) as t (table_name)
    cross join lateral grants_on(t.table_name) as g (template);
    drop table inbox, changes, events, contents, recipients, subjects;

    create table inbox (
        position bigint not null,
        created_at timestamptz not null,
        read_at timestamptz,
        deleted_at timestamptz,
        event_id uuid not null,
        user_id int not null,
        language text not null,
        primary key (user_id, event_id)
    ) partition by hash (user_id);
    create index inbox_deleted on inbox (user_id, position) where deleted_at is not null;
    create index inbox_read on inbox (user_id, position) where read_at is not null and deleted_at is null;
    create index inbox_unread on inbox (user_id, position) where read_at is null and deleted_at is null;

    create table changes (
        user_id int not null,
        position bigint not null,
        change text not null check (change in ('read', 'all_read', 'unread', 'deleted', 'rewritten')),
        event_ids uuid[],
        up_to bigint,
        changed_at timestamptz not null default now(),
        primary key (user_id, position)
    ) partition by hash (user_id);
    create index changes_by_time on changes (changed_at);

    create table events (
        id uuid not null,
        service text,
        company_id int,
        kind text not null,
        actor int,
        data text not null,
        params text not null,
        users int[] not null,
        teams int[] not null,
        subjects text[] not null,
        accepted_at timestamptz not null default clock_timestamp(),
        excepted int[] not null default '{}',
        key text,
        digest bytea,
        skipped_users int[],
        skipped_teams int[],
        erased bool not null default false,
        generation bigint default generation(),
        primary key (id)
    ) partition by range (id);
    create index events_by_time on events (accepted_at);
    create index events_custom on events (accepted_at) where kind = 'custom';
    create index events_custom_by_company on events (company_id, accepted_at) where kind = 'custom';

    create table contents (
        event_id uuid not null,
        language text not null,
        body text not null,
        primary key (event_id, language)
    ) partition by range (event_id);

    create table recipients (
        event_id uuid not null,
        after_user int not null,
        user_ids int[] not null,
        team_ids int[] not null,
        reached int not null,
        dropped int not null,
        delivered_at timestamptz not null default now(),
        primary key (event_id, after_user)
    ) partition by range (event_id);
    alter table recipients alter column user_ids set storage external;
    create index recipients_by_time on recipients (delivered_at);

    create table subjects (
        subject text not null,
        event_id uuid not null,
        primary key (subject, event_id)
    ) partition by range (event_id);

    foreach statement in array grants loop
        execute statement;
    end loop;
    for n in 0..3 loop
        foreach parent in array '{inbox, changes}'::text[] loop
            name := parent || '_' || n;
            execute format('create table %I partition of %I for values with (modulus 4, remainder %s)', name, parent, n);
            for statement in select grants_on(parent) loop execute format(statement, name); end loop;
        end loop;
    end loop;
    foreach parent in array '{events, contents, recipients, subjects}'::text[] loop
        name := parent || '_rest';
        execute format('create table %I partition of %I default', name, parent);
        for statement in select grants_on(parent) loop execute format(statement, name); end loop;
        name := parent || '_random';
        execute format(
            'create table %I partition of %I for values from (%L) to (maxvalue)',
            name, parent, first_id('2200-01-01 00:00:00+00')
        );
        for statement in select grants_on(parent) loop execute format(statement, name); end loop;
    end loop;
    while make_partition(0) is not null loop end loop;
end
$$;
