-- The rows `row` of the users of the company @company after the user @low up to @high, without pending work.
person as materialized (
    select id from users where id > @low and id <= @high and company_id = @company
),
row as materialized (
    select 'users' as table_name, to_jsonb(t)::text as row
    from person cross join lateral (select * from users where id = person.id offset 0) t
    union all
    select 'heads', to_jsonb(t)::text
    from person cross join lateral (select * from heads where user_id = person.id offset 0) t
    union all
    select 'preferences', to_jsonb(t)::text
    from person cross join lateral (select * from preferences where user_id = person.id offset 0) t
    union all
    select 'devices', (to_jsonb(t) - 'lane')::text
    from person cross join lateral (select * from devices where user_id = person.id offset 0) t
    union all
    select 'inbox', to_jsonb(t)::text
    from person cross join lateral (select * from inbox where user_id = person.id offset 0) t
    union all
    select 'changes', to_jsonb(t)::text
    from person cross join lateral (select * from changes where user_id = person.id offset 0) t
    union all
    select 'deliveries', to_jsonb(t)::text
    from person
    cross join lateral (select * from deliveries where user_id = person.id and settled_at is not null offset 0) t
    union all
    select 'idempotency_keys', to_jsonb(t)::text
    from person
    cross join lateral (select * from idempotency_keys where caller = 'user ' || person.id offset 0) t
)
