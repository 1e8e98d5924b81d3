CREATE SCHEMA tocsin;

CREATE FUNCTION tocsin.abandon_partitions(table_name text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'tocsin', 'pg_temp'
    AS $$
begin
    execute format('lock table %I in access exclusive mode', table_name);
    execute format('drop function if exists %I() cascade', table_name || '_next');
    execute format('drop table if exists %I', table_name || '_next');
end
$$;

CREATE FUNCTION tocsin.begin_partitions(table_name text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'tocsin', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION tocsin.compare_partitions(table_name text, OUT before bigint, OUT after bigint, OUT are_same boolean) RETURNS record
    LANGUAGE plpgsql STABLE
    SET search_path TO 'tocsin', 'pg_temp'
    AS $_$
begin
    execute format(
        'select a.n, b.n, a.n = b.n and a.mark is not distinct from b.mark
         from (select count(*) as n, sum(hashtextextended(t::text, 0)) as mark from %1$I t) a
         cross join (select count(*) as n, sum(hashtextextended(t::text, 0)) as mark from %2$I t) b',
        table_name, table_name || '_next'
    )
    into before, after, are_same;
end
$_$;

CREATE FUNCTION tocsin.copy_to_partitions(table_name text, pages integer, OUT copied bigint, OUT total bigint) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'tocsin', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION tocsin.device_key(token text) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN CASE WHEN (octet_length(token) <= 2048) THEN token ELSE (('~'::text || encode(sha256(convert_to(token, 'UTF8'::name)), 'hex'::text)) || "right"(token, 6)) END;

CREATE FUNCTION tocsin.drop_month(month text, days integer) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'tocsin', 'pg_temp'
    AS $$
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

CREATE FUNCTION tocsin.finish_partitions(table_name text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'tocsin', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION tocsin.first_id(moment timestamp with time zone) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ((lpad(to_hex(((EXTRACT(epoch FROM moment) * (1000)::numeric))::bigint), 12, '0'::text) || repeat('0'::text, 20)))::uuid;

CREATE TABLE tocsin.generations (
    id integer NOT NULL,
    current bigint NOT NULL,
    CONSTRAINT generations_id_check CHECK ((id = 1))
);

CREATE FUNCTION tocsin.generation() RETURNS bigint
    LANGUAGE sql STABLE
    RETURN COALESCE((SELECT g.current FROM tocsin.generations g WHERE (g.id = 1)), (0)::bigint);

CREATE FUNCTION tocsin.grants_on(table_name text) RETURNS SETOF text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    BEGIN ATOMIC
 SELECT ((('grant '::text || a.privilege_type) || ' on %I to '::text) ||
         CASE a.grantee
             WHEN 0 THEN 'public'::text
             ELSE replace(quote_ident((pg_get_userbyid(a.grantee))::text), '%'::text, '%%'::text)
         END)
    FROM (pg_class c
      CROSS JOIN LATERAL aclexplode(c.relacl) a(grantor, grantee, privilege_type, is_grantable))
   WHERE ((c.oid = (to_regclass(grants_on.table_name))::oid) AND (a.grantee <> c.relowner));
END;

CREATE FUNCTION tocsin.hold_events() RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    lock table events, imports, erasures, resolutions, posted in share mode;
end
$$;

CREATE FUNCTION tocsin.is_list_of_ids(given jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ((given IS NULL) OR ((jsonb_typeof(given) = 'array'::text) AND (NOT jsonb_path_exists(given, 'strict $[*]?(((@.type() != "number" || @ < 1) || @ > 2147483647) || @.floor() != @)'::jsonpath))));

CREATE FUNCTION tocsin.is_phone(type text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (type <> 'Web'::text);

CREATE FUNCTION tocsin.keep_audit_entries() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    if tg_op = 'DELETE' and current_setting('tocsin.audit_retention', true) = 'on'
        and old.happened_at < now() - interval '1 day' then
        return old;
    end if;
    raise insufficient_privilege using message = 'The audit log is append-only.';
end
$$;

CREATE FUNCTION tocsin.make_partition(max_bytes bigint) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'tocsin', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION tocsin.new_event_id() RETURNS uuid
    LANGUAGE sql PARALLEL SAFE
    RETURN (encode(set_bit(set_bit(OVERLAY(uuid_send(gen_random_uuid()) PLACING SUBSTRING(int8send(((EXTRACT(epoch FROM clock_timestamp()) * (1000)::numeric))::bigint) FROM 3) FROM 1 FOR 6), (52)::bigint, 1), (53)::bigint, 1), 'hex'::text))::uuid;

CREATE FUNCTION tocsin.new_salt() RETURNS bigint
    LANGUAGE sql
    RETURN (1 + ((random() * ('1000000000000'::numeric)::double precision))::bigint);

CREATE FUNCTION tocsin.note_move() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    update last_move set noted_at = clock_timestamp();
    return null;
end
$$;

CREATE FUNCTION tocsin.note_registration() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION tocsin.note_rewritten_events() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    insert into rewritten_events
    select distinct named.id from unnest(new.event_ids) as named (id) where exists (select from moves where state = 'copying')
    on conflict do nothing;
    return new;
end
$$;

CREATE FUNCTION tocsin.notification(body text, read_at timestamp with time zone, created_at timestamp with time zone) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN ((((('{'::text || body) || CASE WHEN (read_at IS NULL) THEN ',"read":false,"read_at":null'::text ELSE ((',"read":true,"read_at":"'::text || to_char((read_at AT TIME ZONE 'UTC'::text), 'YYYY-MM-DD HH24:MI:SS'::text)) || '"'::text) END) || ',"created_at":"'::text) || to_char((created_at AT TIME ZONE 'UTC'::text), 'YYYY-MM-DD HH24:MI:SS'::text)) || '"}'::text);

CREATE FUNCTION tocsin.partition_key(table_name text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN CASE table_name WHEN 'events'::text THEN 'id'::text WHEN 'inbox'::text THEN 'user_id'::text WHEN 'changes'::text THEN 'user_id'::text ELSE 'event_id'::text END;

CREATE FUNCTION tocsin.post(event jsonb) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'tocsin', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $_$
declare
    body constant text := event::text;
    poster record;
    n bigint;
    turn uuid;
    posted_id uuid;
begin
    select p.service, p.company_id, c.named, l.number as max_number,
        case
            when jsonb_typeof(event) is distinct from 'object' then 'The event must be a JSON object.'
            when octet_length(body) > 1048576 then 'The event may have at most 1048576 bytes.'
            when not exists (select from posted_types where type = event ->> 'type')
                and exists (select from posted_types) then 'The type field is not a type of notification.'
            when jsonb_typeof(event -> 'notify') is distinct from 'object' then 'The notify field must be an object.'
            when not is_list_of_ids(event #> '{notify,users}') then 'The notify.users field must be an array of ids.'
            when not is_list_of_ids(event #> '{notify,teams}') then 'The notify.teams field must be an array of ids.'
            when not is_list_of_ids(event #> '{notify,except}') then 'The notify.except field must be an array of ids.'
            when coalesce(event #> '{notify,users}', '[]') = '[]' and coalesce(event #> '{notify,teams}', '[]') = '[]'
                then 'The notify.users or the notify.teams field is required.'
            when c.named > 10000 then 'The notify field may have at most 10000 ids.'
            when event #>> '{notify,unknown}' = 'skip' then null
            else (
                select format('The notify.%s field has unknown ids: %s.', field, string_agg(id::text, ', '))
                from (
                    select 'users' as field, id
                    from (select jsonb_array_elements_text(event #> '{notify,users}')::int as id) named
                    where not coalesce(
                        (select p.company_id is null or u.company_id = p.company_id from users u where u.id = named.id),
                        false
                    )
                    union all
                    select 'teams', id
                    from (select jsonb_array_elements_text(event #> '{notify,teams}')::int as id) named
                    where not coalesce(
                        (select p.company_id is null or t.company_id = p.company_id from teams t where t.id = named.id),
                        false
                    )
                    limit 10
                ) unknown
                group by field
                order by field desc
                limit 1
            )
        end as problem
    into poster
    from posters p
    left join posted_limit l on l.id = 1
    cross join lateral (
        select coalesce(sum(jsonb_array_length(list)), 0) as named
        from (values (event #> '{notify,users}'), (event #> '{notify,teams}'), (event #> '{notify,except}')) f (list)
        where jsonb_typeof(list) = 'array'
    ) c
    where p.role = session_user::text;

    if poster.service is null then
        raise insufficient_privilege using
            message = format('The role %s may not post events.', session_user),
            hint = format('As an operator of Tocsin, run: tocsin post-role %s --company-id ID', session_user);
    elsif poster.problem is not null then
        raise invalid_parameter_value using message = poster.problem;
    end if;
    if event ->> 'id' is not null then
        if event ->> 'id' !~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' then
            raise invalid_parameter_value using message = 'The id field must be a UUID.';
        end if;
        posted_id := event ->> 'id';
    end if;
    if jsonb_typeof(event -> 'key') = 'string' then
        -- Events with the same key are accepted in the order of their commits: each waits here for the one before.
        turn := md5(jsonb_build_array(poster.service, poster.company_id, event -> 'key')::text)::uuid;
        perform pg_advisory_xact_lock(hashtextextended(turn::text, 0));
    end if;

    with job as (
        insert into jobs (id, task, lane, due_at, wanted_at, batch, cost)
        select gen_random_uuid(), 'post', 'direct', clock_timestamp(), clock_timestamp(), turn,
               1 + poster.named + octet_length(body) / 100
        returning id
    )
    insert into posted (id, event_id, role, service, company_id, key, body)
    select id, coalesce(posted_id, new_event_id()), session_user, poster.service, poster.company_id,
           case when turn is not null then left(event ->> 'key', 255) end, body
    from job
    returning number, event_id into n, posted_id;
    if n > poster.max_number then
        raise configuration_limit_exceeded using
            message = 'Too many posted events wait.', hint = 'Look whether a worker of Tocsin runs: tocsin doctor';
    end if;
    if pg_try_advisory_xact_lock(8390033978155757679 - hashtext(current_schema())) then
        perform pg_notify(current_schema() || '_work', 'direct');
    end if;
    return posted_id;
end
$_$;

CREATE FUNCTION tocsin.refuse_moved_company() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION tocsin.refuse_post_of_moved_company() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
declare
    problem text;
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        perform from last_move for share;
    end if;
    if exists (
        select from moves m where m.is_awaited or m.state = 'moved' and (m.is_leaving or m.company_id = new.company_id)
    ) then
        with named as materialized (
            select path.kind, one.id::numeric::int as id
            from (values ('user', '{notify,users}'::text[]), ('team', '{notify,teams}')) path (kind, keys)
            cross join lateral jsonb_array_elements_text(new.body::jsonb #> path.keys) as one (id)
        ),
        company as (
            select new.company_id as id
            union all
            select u.company_id from named n join users u on u.id = n.id where n.kind = 'user'
            union all
            select t.company_id from named n join teams t on t.id = n.id where n.kind = 'team'
        )
        select case
                   when exists (select from moves m where m.state = 'moved' and m.company_id = new.company_id)
                       or exists (select from named n join moved_ids m on m.kind = n.kind and m.id = n.id)
                       then 'The company has moved to another database.'
                   when exists (select from company c join moves m on m.company_id = c.id where m.is_awaited)
                       then 'The company is moving to this database.'
               end
        into problem;
        if problem is not null then
            raise lock_not_available using message = problem;
        end if;
    end if;
    return new;
end
$$;

CREATE TABLE tocsin.teams (
    id integer NOT NULL,
    company_id integer NOT NULL,
    name text NOT NULL,
    generation bigint DEFAULT tocsin.generation(),
    CONSTRAINT teams_company_id_check CHECK ((company_id > 0)),
    CONSTRAINT teams_id_check CHECK ((id > 0))
);

CREATE TABLE tocsin.users (
    id integer NOT NULL,
    company_id integer NOT NULL,
    first_name text NOT NULL,
    last_name text NOT NULL,
    profile_picture text,
    email text,
    time_zone text NOT NULL,
    moved_at timestamp with time zone,
    CONSTRAINT users_company_id_check CHECK ((company_id > 0)),
    CONSTRAINT users_id_check CHECK ((id > 0))
);

CREATE FUNCTION tocsin.strangers(user_ids integer[], team_ids integer[], company integer) RETURNS TABLE(field text, id integer)
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT 'users'::text,
     named.id
    FROM unnest(strangers.user_ids) named(id)
   WHERE (NOT COALESCE(( SELECT ((strangers.company IS NULL) OR (u.company_id = strangers.company))
            FROM tocsin.users u
           WHERE (u.id = named.id)), false))
 UNION ALL
  SELECT 'teams'::text,
     named.id
    FROM unnest(strangers.team_ids) named(id)
   WHERE (NOT COALESCE(( SELECT ((strangers.company IS NULL) OR (t.company_id = strangers.company))
            FROM tocsin.teams t
           WHERE (t.id = named.id)), false));
END;

CREATE FUNCTION tocsin.unknown_teams(team_ids integer[], company integer) RETURNS TABLE(id integer)
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT named.id
    FROM unnest(unknown_teams.team_ids) named(id)
   WHERE (NOT COALESCE(( SELECT ((unknown_teams.company IS NULL) OR (t.company_id = unknown_teams.company))
            FROM tocsin.teams t
           WHERE (t.id = named.id)), false));
END;

CREATE FUNCTION tocsin.unknown_users(user_ids integer[], company integer) RETURNS TABLE(id integer)
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT named.id
    FROM unnest(unknown_users.user_ids) named(id)
   WHERE (NOT COALESCE(( SELECT ((unknown_users.company IS NULL) OR (u.company_id = unknown_users.company))
            FROM tocsin.users u
           WHERE (u.id = named.id)), false));
END;

CREATE TABLE tocsin.audit_entries (
    id uuid NOT NULL,
    happened_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    action text NOT NULL,
    caller text NOT NULL,
    name text,
    company_id integer,
    request_id text,
    subject text,
    details text NOT NULL
);

CREATE TABLE tocsin.cancellations (
    event_id uuid NOT NULL,
    replaced_by uuid,
    cancelled_at timestamp with time zone DEFAULT now() NOT NULL,
    operator text
);

CREATE TABLE tocsin.changes (
    user_id integer NOT NULL,
    "position" bigint NOT NULL,
    change text NOT NULL,
    event_ids uuid[],
    up_to bigint,
    changed_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT changes_change_check CHECK ((change = ANY (ARRAY['read'::text, 'all_read'::text, 'unread'::text, 'deleted'::text, 'rewritten'::text])))
)
PARTITION BY HASH (user_id);

CREATE TABLE tocsin.clears (
    user_id integer NOT NULL,
    since bigint NOT NULL,
    due_at timestamp with time zone DEFAULT (now() + '00:00:02'::interval) NOT NULL
);

CREATE TABLE tocsin.console_sessions (
    id uuid NOT NULL,
    secret_hash bytea NOT NULL,
    token_hashes bytea[] DEFAULT '{}'::bytea[] NOT NULL,
    subject text NOT NULL,
    name text,
    role text NOT NULL,
    company_id integer,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    renewed_at timestamp with time zone DEFAULT now() NOT NULL,
    ends_at timestamp with time zone NOT NULL
);

CREATE TABLE tocsin.contents (
    event_id uuid NOT NULL,
    language text NOT NULL,
    body text NOT NULL
)
PARTITION BY RANGE (event_id);

CREATE TABLE tocsin.dead_letters (
    id uuid NOT NULL,
    task text NOT NULL,
    lane text NOT NULL,
    attempts integer NOT NULL,
    progress bigint NOT NULL,
    reason text NOT NULL,
    died_at timestamp with time zone DEFAULT now() NOT NULL,
    cost integer DEFAULT 1 NOT NULL
);

CREATE TABLE tocsin.deliveries (
    event_id uuid NOT NULL,
    device_id uuid NOT NULL,
    user_id integer NOT NULL,
    lane text NOT NULL,
    is_bulk boolean NOT NULL,
    state text DEFAULT 'queued'::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    worker_id uuid,
    due_at timestamp with time zone DEFAULT now() NOT NULL,
    made_at timestamp with time zone DEFAULT now() NOT NULL,
    settled_at timestamp with time zone,
    reason text,
    type text NOT NULL,
    token_ending text NOT NULL,
    CONSTRAINT deliveries_state_check CHECK ((state = ANY (ARRAY['queued'::text, 'later'::text, 'held'::text, 'delivered'::text, 'gone'::text, 'refused'::text, 'dead'::text, 'muted'::text, 'skipped'::text])))
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_cost_delay='0');

CREATE TABLE tocsin.devices (
    token text NOT NULL,
    user_id integer NOT NULL,
    type text NOT NULL,
    provider text NOT NULL,
    environment text NOT NULL,
    app text NOT NULL,
    registered_at timestamp with time zone DEFAULT now() NOT NULL,
    last_delivered_at timestamp with time zone,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    p256dh text,
    auth text,
    told_up_to bigint,
    lane text GENERATED ALWAYS AS ((((provider || '/'::text) || app) ||
CASE
    WHEN (environment = 'sandbox'::text) THEN '/sandbox'::text
    ELSE ''::text
END)) STORED NOT NULL,
    server_key text,
    whole_token text,
    CONSTRAINT devices_environment_check CHECK ((environment = ANY (ARRAY['production'::text, 'sandbox'::text]))),
    CONSTRAINT devices_type_check CHECK ((type = ANY (ARRAY['iOS'::text, 'Android'::text, 'Web'::text])))
);

CREATE TABLE tocsin.ending_events (
    id integer NOT NULL,
    low uuid NOT NULL,
    high uuid NOT NULL,
    CONSTRAINT ending_events_id_check CHECK ((id = 1))
);

CREATE TABLE tocsin.erased_ids (
    digest bytea NOT NULL,
    erased_at timestamp with time zone NOT NULL
);

CREATE TABLE tocsin.erasures (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    event_ids uuid[] NOT NULL,
    erased_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE tocsin.event_keys (
    service text NOT NULL,
    company_id integer NOT NULL,
    key text NOT NULL,
    event_id uuid NOT NULL
);

CREATE TABLE tocsin.events (
    id uuid NOT NULL,
    service text,
    company_id integer,
    kind text NOT NULL,
    actor integer,
    data text NOT NULL,
    params text NOT NULL,
    users integer[] NOT NULL,
    teams integer[] NOT NULL,
    subjects text[] NOT NULL,
    accepted_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    excepted integer[] DEFAULT '{}'::integer[] NOT NULL,
    key text,
    digest bytea,
    skipped_users integer[],
    skipped_teams integer[],
    erased boolean DEFAULT false NOT NULL,
    generation bigint DEFAULT tocsin.generation()
)
PARTITION BY RANGE (id);

CREATE TABLE tocsin.heads (
    user_id integer NOT NULL,
    locale text NOT NULL,
    active boolean NOT NULL,
    "position" bigint DEFAULT 0 NOT NULL,
    total integer DEFAULT 0 NOT NULL,
    unread integer DEFAULT 0 NOT NULL,
    last_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    made_at timestamp with time zone DEFAULT now() NOT NULL,
    forgotten bigint DEFAULT 0 NOT NULL,
    generation bigint DEFAULT tocsin.generation() NOT NULL,
    tokens_from timestamp with time zone,
    CONSTRAINT heads_total_check CHECK ((total >= 0)),
    CONSTRAINT heads_unread_check CHECK ((unread >= 0))
)
WITH (fillfactor='40');

CREATE TABLE tocsin.idempotency_keys (
    caller text NOT NULL,
    method text NOT NULL,
    path text NOT NULL,
    key text NOT NULL,
    digest bytea NOT NULL,
    status integer NOT NULL,
    body text NOT NULL,
    kept_at timestamp with time zone DEFAULT now() NOT NULL,
    import_id uuid
);

CREATE TABLE tocsin.import_lines (
    import_id uuid NOT NULL,
    number bigint NOT NULL,
    part text NOT NULL,
    user_id integer,
    body text NOT NULL,
    happened_at timestamp with time zone,
    read_at timestamp with time zone,
    event_id uuid,
    kind text,
    data text,
    language text,
    subjects text[],
    CONSTRAINT import_lines_part_check CHECK ((part = ANY (ARRAY['user'::text, 'team'::text, 'device'::text, 'notification'::text])))
);
ALTER TABLE ONLY tocsin.import_lines ALTER COLUMN import_id SET STATISTICS 10;
ALTER TABLE ONLY tocsin.import_lines ALTER COLUMN number SET STATISTICS 10;
ALTER TABLE ONLY tocsin.import_lines ALTER COLUMN part SET STATISTICS 10;
ALTER TABLE ONLY tocsin.import_lines ALTER COLUMN user_id SET STATISTICS 10;
ALTER TABLE ONLY tocsin.import_lines ALTER COLUMN body SET STATISTICS 0;
ALTER TABLE ONLY tocsin.import_lines ALTER COLUMN happened_at SET STATISTICS 10;
ALTER TABLE ONLY tocsin.import_lines ALTER COLUMN read_at SET STATISTICS 0;
ALTER TABLE ONLY tocsin.import_lines ALTER COLUMN event_id SET STATISTICS 0;
ALTER TABLE ONLY tocsin.import_lines ALTER COLUMN kind SET STATISTICS 0;
ALTER TABLE ONLY tocsin.import_lines ALTER COLUMN data SET STATISTICS 0;
ALTER TABLE ONLY tocsin.import_lines ALTER COLUMN language SET STATISTICS 0;
ALTER TABLE ONLY tocsin.import_lines ALTER COLUMN subjects SET STATISTICS 0;

CREATE TABLE tocsin.imports (
    id uuid NOT NULL,
    state text NOT NULL,
    company_id integer,
    applied bigint DEFAULT 0 NOT NULL,
    touched_at timestamp with time zone DEFAULT now() NOT NULL,
    step integer DEFAULT 0 NOT NULL,
    reached bigint DEFAULT 0 NOT NULL,
    CONSTRAINT imports_state_check CHECK ((state = ANY (ARRAY['checking'::text, 'applying'::text])))
);

CREATE TABLE tocsin.inbox (
    "position" bigint NOT NULL,
    created_at timestamp with time zone NOT NULL,
    read_at timestamp with time zone,
    deleted_at timestamp with time zone,
    event_id uuid NOT NULL,
    user_id integer NOT NULL,
    language text NOT NULL
)
PARTITION BY HASH (user_id);

CREATE TABLE tocsin.jobs (
    id uuid NOT NULL,
    task text NOT NULL,
    lane text NOT NULL,
    due_at timestamp with time zone DEFAULT now() NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    worker_id uuid,
    progress bigint DEFAULT 0 NOT NULL,
    batch uuid,
    wanted_at timestamp with time zone DEFAULT now() NOT NULL,
    cost integer DEFAULT 1 NOT NULL,
    company_id integer DEFAULT 0 NOT NULL,
    sender text DEFAULT ''::text NOT NULL,
    CONSTRAINT jobs_lane_check CHECK ((lane = ANY (ARRAY['direct'::text, 'bulk'::text])))
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_cost_delay='0');

CREATE TABLE tocsin.lanes (
    name text NOT NULL,
    configuration text NOT NULL,
    delivered_at timestamp with time zone,
    stopped_at timestamp with time zone,
    reason text
);

CREATE TABLE tocsin.last_clears (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    token text NOT NULL,
    type text NOT NULL,
    environment text NOT NULL,
    app text NOT NULL,
    registered_at timestamp with time zone NOT NULL,
    lane text NOT NULL,
    made_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE tocsin.last_move (
    id integer NOT NULL,
    noted_at timestamp with time zone NOT NULL,
    CONSTRAINT last_move_id_check CHECK ((id = 1))
);

CREATE TABLE tocsin.members (
    team_id integer NOT NULL,
    user_id integer NOT NULL
);

CREATE TABLE tocsin.metric_minutes (
    minute timestamp with time zone NOT NULL,
    process_id uuid NOT NULL,
    seconds double precision NOT NULL,
    events bigint NOT NULL,
    pushes bigint NOT NULL,
    requests bigint NOT NULL,
    api_errors bigint NOT NULL,
    rate_limited bigint NOT NULL,
    providers text[] NOT NULL,
    push_errors bigint[] NOT NULL,
    inbox_buckets bigint[] NOT NULL,
    push_buckets bigint[] NOT NULL,
    direct_due bigint NOT NULL,
    bulk_due bigint NOT NULL,
    pushes_due bigint NOT NULL,
    direct_oldest double precision NOT NULL,
    bulk_oldest double precision NOT NULL,
    CONSTRAINT metric_minutes_seconds_check CHECK ((seconds > (0)::double precision))
);

CREATE TABLE tocsin.migrations (
    number integer NOT NULL,
    name text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE tocsin.moved_ids (
    kind text NOT NULL,
    id integer NOT NULL,
    company_id integer NOT NULL,
    CONSTRAINT moved_ids_kind_check CHECK ((kind = ANY (ARRAY['user'::text, 'team'::text])))
);

CREATE TABLE tocsin.moved_rows (
    number bigint NOT NULL,
    company_id integer NOT NULL,
    table_name text NOT NULL,
    "row" text NOT NULL
);

ALTER TABLE tocsin.moved_rows ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tocsin.moved_rows_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE tocsin.moves (
    company_id integer NOT NULL,
    turn integer NOT NULL,
    state text NOT NULL,
    other text NOT NULL,
    closed_until timestamp with time zone,
    is_leaving boolean DEFAULT false NOT NULL,
    received_turn integer DEFAULT 0 NOT NULL,
    received bigint DEFAULT 0 NOT NULL,
    is_awaited boolean DEFAULT false NOT NULL,
    CONSTRAINT moves_company_id_check CHECK ((company_id > 0)),
    CONSTRAINT moves_state_check CHECK ((state = ANY (ARRAY['copying'::text, 'moved'::text, 'here'::text])))
);

CREATE TABLE tocsin.operator_rules (
    id integer NOT NULL,
    digest text NOT NULL,
    CONSTRAINT operator_rules_id_check CHECK ((id = 1))
);

CREATE TABLE tocsin.posted (
    id uuid NOT NULL,
    number bigint NOT NULL,
    event_id uuid NOT NULL,
    role text NOT NULL,
    service text NOT NULL,
    company_id integer,
    key text,
    body text NOT NULL,
    posted_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    errors text
);

CREATE VIEW tocsin.own_posts WITH (security_barrier='true') AS
 SELECT p.event_id AS id,
    p.key,
    p.posted_at,
        CASE
            WHEN (d.id IS NULL) THEN 'waiting'::text
            ELSE 'refused'::text
        END AS state,
        CASE
            WHEN (d.id IS NULL) THEN NULL::jsonb
            ELSE (COALESCE(p.errors, '[{"message": "An internal error occurred.", "code": "error"}]'::text))::jsonb
        END AS errors
   FROM (tocsin.posted p
     LEFT JOIN tocsin.dead_letters d ON ((d.id = p.id)))
  WHERE (p.role = (SESSION_USER)::text);

CREATE TABLE tocsin.posted_limit (
    id integer NOT NULL,
    number bigint NOT NULL,
    CONSTRAINT posted_limit_id_check CHECK ((id = 1))
);

ALTER TABLE tocsin.posted ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tocsin.posted_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE tocsin.posted_people (
    user_id integer NOT NULL,
    id uuid NOT NULL
);

CREATE TABLE tocsin.posted_types (
    type text NOT NULL
);

CREATE TABLE tocsin.posters (
    role text NOT NULL,
    service text NOT NULL,
    company_id integer,
    added_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT posters_company_id_check CHECK ((company_id > 0))
);

CREATE TABLE tocsin.preference_locks (
    id integer NOT NULL,
    locked text[] NOT NULL,
    CONSTRAINT preference_locks_id_check CHECK ((id = 1))
);

CREATE TABLE tocsin.preferences (
    user_id integer NOT NULL,
    chosen text NOT NULL
);

CREATE TABLE tocsin.push_services (
    lane text NOT NULL,
    origin text NOT NULL,
    delivered_at timestamp with time zone,
    refused_at timestamp with time zone,
    reason text,
    last_refused_at timestamp with time zone
);

CREATE UNLOGGED TABLE tocsin.rate_limits (
    name text NOT NULL,
    key text NOT NULL,
    ends_at timestamp with time zone NOT NULL,
    used integer NOT NULL
)
WITH (fillfactor='50', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_cost_delay='0');

CREATE TABLE tocsin.recipients (
    event_id uuid NOT NULL,
    after_user integer NOT NULL,
    user_ids integer[] NOT NULL,
    team_ids integer[] NOT NULL,
    reached integer NOT NULL,
    dropped integer NOT NULL,
    delivered_at timestamp with time zone DEFAULT now() NOT NULL
)
PARTITION BY RANGE (event_id);
ALTER TABLE ONLY tocsin.recipients ALTER COLUMN user_ids SET STORAGE EXTERNAL;

CREATE TABLE tocsin.registrations (
    digest text NOT NULL,
    device_id uuid NOT NULL,
    registered_at timestamp with time zone NOT NULL,
    noted_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    left_at timestamp with time zone
);

CREATE TABLE tocsin.resolutions (
    id uuid NOT NULL,
    how text NOT NULL,
    company_id integer,
    users integer[],
    event_ids uuid[] NOT NULL,
    rewritten boolean NOT NULL,
    again boolean DEFAULT false NOT NULL,
    after_event uuid DEFAULT '00000000-0000-0000-0000-000000000000'::uuid NOT NULL,
    after_user integer DEFAULT '-1'::integer NOT NULL,
    accepted_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT resolutions_how_check CHECK ((how = ANY (ARRAY['read'::text, 'gone'::text, 'erased'::text])))
);

CREATE TABLE tocsin.rewritten_events (
    event_id uuid NOT NULL
);

CREATE TABLE tocsin.seen_registrations (
    cell text NOT NULL,
    noted_at timestamp with time zone NOT NULL
);

CREATE UNLOGGED TABLE tocsin.streams (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    process_id uuid NOT NULL,
    opened_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    ends_at timestamp with time zone NOT NULL,
    is_over boolean DEFAULT false NOT NULL
);

CREATE TABLE tocsin.subjects (
    subject text NOT NULL,
    event_id uuid NOT NULL
)
PARTITION BY RANGE (event_id);

CREATE TABLE tocsin.timelines (
    id integer NOT NULL,
    timeline integer,
    salt bigint NOT NULL,
    previous_salt bigint,
    noted_at timestamp with time zone,
    CONSTRAINT timelines_id_check CHECK ((id = 1))
);

CREATE TABLE tocsin.trials (
    user_id integer NOT NULL,
    sent_at timestamp with time zone[] NOT NULL
);

CREATE TABLE tocsin.worker_processes (
    id uuid NOT NULL,
    name text NOT NULL,
    seen_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE tocsin.workers (
    id uuid NOT NULL,
    name text NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    problem text,
    lanes text[]
)
WITH (fillfactor='50');

ALTER TABLE ONLY tocsin.audit_entries
    ADD CONSTRAINT audit_entries_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.cancellations
    ADD CONSTRAINT cancellations_pkey PRIMARY KEY (event_id);

ALTER TABLE ONLY tocsin.changes
    ADD CONSTRAINT changes_pkey PRIMARY KEY (user_id, "position");

ALTER TABLE ONLY tocsin.clears
    ADD CONSTRAINT clears_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY tocsin.console_sessions
    ADD CONSTRAINT console_sessions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.contents
    ADD CONSTRAINT contents_pkey PRIMARY KEY (event_id, language);

ALTER TABLE ONLY tocsin.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.deliveries
    ADD CONSTRAINT deliveries_pkey PRIMARY KEY (event_id, device_id);

ALTER TABLE ONLY tocsin.devices
    ADD CONSTRAINT devices_pkey PRIMARY KEY (token);

ALTER TABLE ONLY tocsin.ending_events
    ADD CONSTRAINT ending_events_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.erased_ids
    ADD CONSTRAINT erased_ids_pkey PRIMARY KEY (digest);

ALTER TABLE ONLY tocsin.erasures
    ADD CONSTRAINT erasures_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.event_keys
    ADD CONSTRAINT event_keys_pkey PRIMARY KEY (service, company_id, key);

ALTER TABLE ONLY tocsin.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.generations
    ADD CONSTRAINT generations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.heads
    ADD CONSTRAINT heads_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY tocsin.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (caller, method, path, key);

ALTER TABLE ONLY tocsin.import_lines
    ADD CONSTRAINT import_lines_pkey PRIMARY KEY (import_id, number);

ALTER TABLE ONLY tocsin.imports
    ADD CONSTRAINT imports_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.inbox
    ADD CONSTRAINT inbox_pkey PRIMARY KEY (user_id, event_id);

ALTER TABLE ONLY tocsin.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.lanes
    ADD CONSTRAINT lanes_pkey PRIMARY KEY (name);

ALTER TABLE ONLY tocsin.last_clears
    ADD CONSTRAINT last_clears_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.last_move
    ADD CONSTRAINT last_move_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.members
    ADD CONSTRAINT members_pkey PRIMARY KEY (team_id, user_id);

ALTER TABLE ONLY tocsin.metric_minutes
    ADD CONSTRAINT metric_minutes_pkey PRIMARY KEY (minute, process_id);

ALTER TABLE ONLY tocsin.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (number);

ALTER TABLE ONLY tocsin.moved_ids
    ADD CONSTRAINT moved_ids_pkey PRIMARY KEY (kind, id);

ALTER TABLE ONLY tocsin.moved_rows
    ADD CONSTRAINT moved_rows_pkey PRIMARY KEY (number);

ALTER TABLE ONLY tocsin.moves
    ADD CONSTRAINT moves_pkey PRIMARY KEY (company_id);

ALTER TABLE ONLY tocsin.operator_rules
    ADD CONSTRAINT operator_rules_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.posted_limit
    ADD CONSTRAINT posted_limit_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.posted_people
    ADD CONSTRAINT posted_people_pkey PRIMARY KEY (user_id, id);

ALTER TABLE ONLY tocsin.posted
    ADD CONSTRAINT posted_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.posted_types
    ADD CONSTRAINT posted_types_pkey PRIMARY KEY (type);

ALTER TABLE ONLY tocsin.posters
    ADD CONSTRAINT posters_pkey PRIMARY KEY (role);

ALTER TABLE ONLY tocsin.preference_locks
    ADD CONSTRAINT preference_locks_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.preferences
    ADD CONSTRAINT preferences_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY tocsin.push_services
    ADD CONSTRAINT push_services_pkey PRIMARY KEY (lane, origin);

ALTER TABLE ONLY tocsin.rate_limits
    ADD CONSTRAINT rate_limits_pkey PRIMARY KEY (name, key);

ALTER TABLE ONLY tocsin.recipients
    ADD CONSTRAINT recipients_pkey PRIMARY KEY (event_id, after_user);

ALTER TABLE ONLY tocsin.registrations
    ADD CONSTRAINT registrations_pkey PRIMARY KEY (digest);

ALTER TABLE ONLY tocsin.resolutions
    ADD CONSTRAINT resolutions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.rewritten_events
    ADD CONSTRAINT rewritten_events_pkey PRIMARY KEY (event_id);

ALTER TABLE ONLY tocsin.seen_registrations
    ADD CONSTRAINT seen_registrations_pkey PRIMARY KEY (cell);

ALTER TABLE ONLY tocsin.streams
    ADD CONSTRAINT streams_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.subjects
    ADD CONSTRAINT subjects_pkey PRIMARY KEY (subject, event_id);

ALTER TABLE ONLY tocsin.teams
    ADD CONSTRAINT teams_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.timelines
    ADD CONSTRAINT timelines_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.trials
    ADD CONSTRAINT trials_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY tocsin.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.worker_processes
    ADD CONSTRAINT worker_processes_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tocsin.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (id);

CREATE INDEX audit_entries_by_company ON tocsin.audit_entries USING btree (company_id, happened_at, id);

CREATE INDEX audit_entries_by_time ON tocsin.audit_entries USING btree (happened_at, id);

CREATE INDEX changes_by_time ON ONLY tocsin.changes USING btree (changed_at);

CREATE INDEX clears_due ON tocsin.clears USING btree (due_at);

CREATE INDEX console_sessions_by_end ON tocsin.console_sessions USING btree (ends_at);

CREATE INDEX console_sessions_by_subject ON tocsin.console_sessions USING btree (subject, started_at);

CREATE INDEX dead_letters_by_time ON tocsin.dead_letters USING btree (died_at);

CREATE INDEX deliveries_by_user ON tocsin.deliveries USING btree (user_id, made_at);

CREATE INDEX deliveries_dead ON tocsin.deliveries USING btree (settled_at) WHERE (state = 'dead'::text);

CREATE INDEX deliveries_due ON tocsin.deliveries USING btree (lane, is_bulk, due_at, event_id) WHERE ((worker_id IS NULL) AND (state = ANY (ARRAY['queued'::text, 'later'::text, 'held'::text])));

CREATE INDEX deliveries_held ON tocsin.deliveries USING btree (device_id) WHERE (state = 'held'::text);

CREATE INDEX deliveries_settled ON tocsin.deliveries USING btree (settled_at) WHERE (settled_at IS NOT NULL);

CREATE INDEX deliveries_under_way ON tocsin.deliveries USING btree (device_id) WHERE (worker_id IS NOT NULL);

CREATE INDEX devices_by_ending ON tocsin.devices USING btree ("right"(token, 6));

CREATE UNIQUE INDEX devices_by_id ON tocsin.devices USING btree (id);

CREATE INDEX devices_by_use ON tocsin.devices USING btree (GREATEST(registered_at, last_delivered_at));

CREATE INDEX devices_by_user ON tocsin.devices USING btree (user_id, registered_at);

CREATE INDEX events_by_time ON ONLY tocsin.events USING btree (accepted_at);

CREATE INDEX events_custom ON ONLY tocsin.events USING btree (accepted_at) WHERE (kind = 'custom'::text);

CREATE INDEX events_custom_by_company ON ONLY tocsin.events USING btree (company_id, accepted_at) WHERE (kind = 'custom'::text);

CREATE INDEX idempotency_keys_by_time ON tocsin.idempotency_keys USING btree (kept_at);

CREATE INDEX import_lines_by_part ON tocsin.import_lines USING btree (import_id, part, user_id, happened_at DESC, number DESC);

CREATE INDEX inbox_deleted ON ONLY tocsin.inbox USING btree (user_id, "position") WHERE (deleted_at IS NOT NULL);

CREATE INDEX inbox_read ON ONLY tocsin.inbox USING btree (user_id, "position") WHERE ((read_at IS NOT NULL) AND (deleted_at IS NULL));

CREATE INDEX inbox_unread ON ONLY tocsin.inbox USING btree (user_id, "position") WHERE ((read_at IS NULL) AND (deleted_at IS NULL));

CREATE INDEX jobs_by_sender ON tocsin.jobs USING btree (company_id, sender, due_at, id) WHERE ((lane = 'bulk'::text) AND (worker_id IS NULL));

CREATE INDEX jobs_free ON tocsin.jobs USING btree (lane, due_at, id) WHERE (worker_id IS NULL);

CREATE INDEX jobs_leased ON tocsin.jobs USING btree (worker_id) WHERE (worker_id IS NOT NULL);

CREATE INDEX jobs_of_batch ON tocsin.jobs USING btree (batch, due_at, id) WHERE (batch IS NOT NULL);

CREATE INDEX jobs_of_batch_under_way ON tocsin.jobs USING btree (batch) WHERE ((batch IS NOT NULL) AND ((worker_id IS NOT NULL) OR (lane = 'bulk'::text)));

CREATE INDEX last_clears_by_time ON tocsin.last_clears USING btree (made_at);

CREATE INDEX members_by_user ON tocsin.members USING btree (user_id);

CREATE INDEX posted_by_event ON tocsin.posted USING btree (event_id);

CREATE INDEX posted_by_key ON tocsin.posted USING btree (role, key) WHERE (key IS NOT NULL);

CREATE INDEX posted_people_by_event ON tocsin.posted_people USING btree (id);

CREATE INDEX rate_limits_by_end ON tocsin.rate_limits USING btree (ends_at);

CREATE INDEX recipients_by_time ON ONLY tocsin.recipients USING btree (delivered_at);

CREATE INDEX registrations_by_time ON tocsin.registrations USING btree (noted_at, digest);

CREATE INDEX registrations_left ON tocsin.registrations USING btree (left_at) WHERE (left_at IS NOT NULL);

CREATE INDEX streams_by_end ON tocsin.streams USING btree (ends_at);

CREATE INDEX streams_by_user ON tocsin.streams USING btree (user_id) WHERE (NOT is_over);

CREATE INDEX streams_over ON tocsin.streams USING btree (process_id) WHERE is_over;

CREATE INDEX users_by_company ON tocsin.users USING btree (company_id, id);

CREATE INDEX users_of_company_by_email ON tocsin.users USING btree (company_id, lower(email) text_pattern_ops) WHERE (email IS NOT NULL);

CREATE INDEX users_of_company_by_last_name ON tocsin.users USING btree (company_id, lower(last_name) text_pattern_ops);

CREATE INDEX users_of_company_by_name ON tocsin.users USING btree (company_id, lower(((first_name || ' '::text) || last_name)) text_pattern_ops);

CREATE TRIGGER keep_all_audit_entries BEFORE TRUNCATE ON tocsin.audit_entries FOR EACH STATEMENT EXECUTE FUNCTION tocsin.keep_audit_entries();

CREATE TRIGGER keep_audit_entries BEFORE DELETE OR UPDATE ON tocsin.audit_entries FOR EACH ROW EXECUTE FUNCTION tocsin.keep_audit_entries();

CREATE TRIGGER note_move AFTER INSERT OR UPDATE ON tocsin.moves FOR EACH ROW WHEN ((new.is_awaited OR (new.state = 'moved'::text))) EXECUTE FUNCTION tocsin.note_move();

CREATE TRIGGER note_registration AFTER INSERT OR DELETE OR UPDATE OF registered_at ON tocsin.devices FOR EACH ROW EXECUTE FUNCTION tocsin.note_registration();

CREATE TRIGGER note_rewritten_events AFTER INSERT ON tocsin.erasures FOR EACH ROW EXECUTE FUNCTION tocsin.note_rewritten_events();

CREATE TRIGGER note_rewritten_events AFTER INSERT ON tocsin.resolutions FOR EACH ROW WHEN ((new.how = 'erased'::text)) EXECUTE FUNCTION tocsin.note_rewritten_events();

CREATE TRIGGER refuse_moved_company BEFORE INSERT ON tocsin.teams FOR EACH ROW EXECUTE FUNCTION tocsin.refuse_moved_company();

CREATE TRIGGER refuse_moved_company BEFORE INSERT ON tocsin.users FOR EACH ROW EXECUTE FUNCTION tocsin.refuse_moved_company();

CREATE TRIGGER refuse_post_of_moved_company BEFORE INSERT ON tocsin.posted FOR EACH ROW EXECUTE FUNCTION tocsin.refuse_post_of_moved_company();

ALTER TABLE ONLY tocsin.devices
    ADD CONSTRAINT devices_user_id_fkey FOREIGN KEY (user_id) REFERENCES tocsin.users(id) ON DELETE CASCADE;

ALTER TABLE ONLY tocsin.heads
    ADD CONSTRAINT heads_user_id_fkey FOREIGN KEY (user_id) REFERENCES tocsin.users(id) ON DELETE CASCADE;

ALTER TABLE ONLY tocsin.members
    ADD CONSTRAINT members_team_id_fkey FOREIGN KEY (team_id) REFERENCES tocsin.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY tocsin.members
    ADD CONSTRAINT members_user_id_fkey FOREIGN KEY (user_id) REFERENCES tocsin.users(id) ON DELETE CASCADE;

ALTER TABLE ONLY tocsin.preferences
    ADD CONSTRAINT preferences_user_id_fkey FOREIGN KEY (user_id) REFERENCES tocsin.users(id) ON DELETE CASCADE;

ALTER TABLE ONLY tocsin.trials
    ADD CONSTRAINT trials_user_id_fkey FOREIGN KEY (user_id) REFERENCES tocsin.users(id) ON DELETE CASCADE;

REVOKE ALL ON FUNCTION tocsin.post(event jsonb) FROM PUBLIC;
