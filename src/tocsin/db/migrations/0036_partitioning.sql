-- `tocsin partition` gives partitions to the tables of an installation that had events before it could have them. The
-- partitioned table is made beside (`<table>_next`), triggers keep it up to date, rows are copied page by page, and then it
-- takes the place of the table. The release before works with both.

create function partition_key(table_name text) returns text
language sql immutable strict parallel safe
return case table_name when 'events' then 'id' when 'inbox' then 'user_id' when 'changes' then 'user_id' else 'event_id' end;

-- Make `<table>_next` with its partitions, indexes and grants, and the triggers that keep it up to date. Months begin with the
-- one of the first event, at most two years ago.
create function begin_partitions(table_name text) returns void
language plpgsql volatile
set search_path from current
as $$
declare
    next constant text := table_name || '_next';
    key constant text := partition_key(table_name);
    is_hash constant bool := key = 'user_id';
    this_month constant timestamp := date_trunc('month', now() at time zone 'UTC');
    month timestamp;
    made record;
    keys text;
    others text;
begin
    execute format('lock table %I in share row exclusive mode', table_name);
    execute format(
        'create table %I (like %I including constraints including defaults including storage) partition by %s (%I)',
        next, table_name, case when is_hash then 'hash' else 'range' end, key
    );
    for made in
        select i.indisprimary, c.relname, pg_get_indexdef(i.indexrelid) as definition
        from pg_index i join pg_class c on c.oid = i.indexrelid
        where i.indrelid = to_regclass(table_name)
        order by c.relname
    loop
        if made.indisprimary then
            execute format(
                'alter table %I add constraint %I primary key %s',
                next, made.relname || '_next', substring(made.definition from 'USING btree (\(.*\))$')
            );
        else
            execute regexp_replace(
                made.definition, 'INDEX \S+ ON \S+', format('INDEX %I ON %I', made.relname || '_next', next)
            );
        end if;
    end loop;

    if is_hash then
        for n in 0..3 loop
            execute format(
                'create table %I partition of %I for values with (modulus 4, remainder %s)', table_name || '_' || n, next, n
            );
        end loop;
    else
        select greatest(date_trunc('month', min(accepted_at) at time zone 'UTC'), this_month - interval '2 years')
        into month
        from events;
        month := least(coalesce(month, this_month), this_month);
        execute format(
            'create table %I partition of %I for values from (minvalue) to (%L)',
            table_name || '_past', next, first_id(month at time zone 'UTC')
        );
        while month <= this_month + interval '1 month' loop
            execute format(
                'create table %I partition of %I for values from (%L) to (%L)', table_name || to_char(month, '_YYYY_MM'), next,
                first_id(month at time zone 'UTC'), first_id((month + interval '1 month') at time zone 'UTC')
            );
            month := month + interval '1 month';
        end loop;
        execute format('create table %I partition of %I default', table_name || '_rest', next);
        execute format(
            'create table %I partition of %I for values from (%L) to (maxvalue)',
            table_name || '_random', next, first_id('2200-01-01 00:00:00+00')
        );
    end if;
    for made in
        select g.template, t.name
        from grants_on(table_name) g (template)
        cross join (
            select next as name
            union all
            select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = to_regclass(next)
        ) t
    loop
        execute format(made.template, made.name);
    end loop;

    select string_agg(quote_ident(a.attname), ', ') filter (where a.attnum = any(i.indkey)),
           string_agg(format('%1$I = excluded.%1$I', a.attname), ', ')
    into keys, others
    from pg_index i
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum > 0 and not a.attisdropped
    where i.indrelid = to_regclass(table_name) and i.indisprimary;
    execute format(
        'create function %1$I() returns trigger language plpgsql set search_path from current as $body$
        begin
            if tg_op = ''DELETE'' then
                delete from %1$I where (%2$s) in (select %2$s from old_rows);
            else
                insert into %1$I select * from new_rows on conflict (%2$s) do update set %3$s;
            end if;
            return null;
        end
        $body$',
        next, keys, others
    );
    execute format(
        'create trigger %1$I after insert on %2$I referencing new table as new_rows
         for each statement execute function %1$I()', next, table_name
    );
    execute format(
        'create trigger %3$I after update on %2$I referencing new table as new_rows
         for each statement execute function %1$I()', next, table_name, next || '_updated'
    );
    execute format(
        'create trigger %3$I after delete on %2$I referencing old table as old_rows
         for each statement execute function %1$I()', next, table_name, next || '_deleted'
    );
    execute format(
        'comment on table %I is %L', next,
        '0/' || pg_relation_size(table_name) / current_setting('block_size')::int
    );
end
$$;

-- Copy the rows of the next pages, and return how many pages are copied, of how many; null if there is no `<table>_next`.
-- Rows that others change meanwhile come by the triggers.
create function copy_to_partitions(table_name text, pages int, out copied bigint, out total bigint)
language plpgsql volatile
set search_path from current
as $$
declare
    next constant text := table_name || '_next';
begin
    select split_part(said, '/', 1)::bigint, split_part(said, '/', 2)::bigint
    into copied, total
    from obj_description(to_regclass(next), 'pg_class') said;
    if copied < total then
        execute format(
            'insert into %1$I select * from (
                select * from %2$I where ctid >= %3$L and ctid < %4$L for key share
             ) page on conflict do nothing',
            next, table_name, format('(%s,0)', copied), format('(%s,0)', copied + pages)
        );
        copied := least(copied + pages, total);
        execute format('comment on table %I is %L', next, copied || '/' || total);
    end if;
end
$$;

-- Compare the rows of the table and of `<table>_next`, in one snapshot: how many they are, and whether they are the same.
create function compare_partitions(table_name text, out before bigint, out after bigint, out are_same bool)
language plpgsql stable
set search_path from current
as $$
begin
    execute format(
        'select a.n, b.n, a.n = b.n and a.mark is not distinct from b.mark
         from (select count(*) as n, sum(hashtextextended(t::text, 0)) as mark from %1$I t) a
         cross join (select count(*) as n, sum(hashtextextended(t::text, 0)) as mark from %2$I t) b',
        table_name, table_name || '_next'
    )
    into before, after, are_same;
end
$$;

-- Put `<table>_next` in the place of the table, which is dropped with its triggers.
create function finish_partitions(table_name text) returns void
language plpgsql volatile
set search_path from current
as $$
declare
    next constant text := table_name || '_next';
    index_name text;
begin
    execute format('lock table %I, %I in access exclusive mode', table_name, next);
    execute format('drop table %I', table_name);
    execute format('drop function %I()', next);
    execute format('comment on table %I is null', next);
    execute format('alter table %I rename to %I', next, table_name);
    for index_name in
        select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = to_regclass(table_name)
    loop
        execute format('alter index %I rename to %I', index_name, regexp_replace(index_name, '_next$', ''));
    end loop;
end
$$;

-- Drop `<table>_next` and its triggers.
create function abandon_partitions(table_name text) returns void
language plpgsql volatile
set search_path from current
as $$
begin
    execute format('lock table %I in access exclusive mode', table_name);
    execute format('drop function if exists %I() cascade', table_name || '_next');
    execute format('drop table if exists %I', table_name || '_next');
end
$$;
