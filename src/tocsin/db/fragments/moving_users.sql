-- The rows `row` of those of the users @users who are in the company @company, without pending work.
person as materialized (
    select id from users where id = any(@users) and company_id = @company
),
row as materialized (
-- include: moving_rows(of=person, table=users, key=id)
    union all
-- include: moving_rows(of=person, table=heads, key=user_id)
    union all
-- include: moving_rows(of=person, table=preferences, key=user_id)
    union all
-- include: moving_rows(of=person, table=inbox, key=user_id)
    union all
-- include: moving_rows(of=person, table=changes, key=user_id)
    union all
    select 'devices', (to_jsonb(t) - 'lane')::text
    from person cross join lateral (select * from devices where user_id = person.id offset 0) t
    union all
    select 'deliveries', to_jsonb(t)::text
    from person
    cross join lateral (select * from deliveries where user_id = person.id and settled_at is not null offset 0) t
    union all
    select 'idempotency_keys', to_jsonb(t)::text
    from person
    cross join lateral (select * from idempotency_keys where caller = 'user ' || person.id offset 0) t
)
