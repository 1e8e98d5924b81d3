-- Store events of any number of callers, each with its subjects. Left out is an event without data, one that names unknown
-- recipients and does not skip them, and one whose id is in use. Events that are due at once belong to the batch $17, if it
-- is given, and are due in their order, microseconds apart and before now. They are inserted in the order of their ids, so
-- that two sessions never wait for each other. The limit is the number of events. It shows the planner that they are few,
-- so that it keeps its plan.
draft as materialized (
    select given.*, unknown_users <> '{}' or unknown_teams <> '{}' as has_unknown,
           case
               when unknown_users = '{}' then users
               else array(select id from unnest(users) as named (id) where id not in (select unnest(unknown_users)))
           end as known_users,
           case
               when unknown_teams = '{}' then teams
               else array(select id from unnest(teams) as named (id) where id not in (select unnest(unknown_teams)))
           end as known_teams,
           coalesce((select current from generations where generations.id = 1), 0) as generation
    from (
        select d.ordinal::int as ordinal, d.id, d.service, d.company_id, d.kind, d.actor, d.users::int[] as users,
               d.teams::int[] as teams, d.excepted::int[] as excepted, d.data, d.params, d.subjects::text[] as subjects,
               d.key, d.digest, d.skips, d.cost, case when d.due_at is null then $17::uuid end as batch,
               coalesce(d.due_at, now() - ($18 - d.ordinal) * interval '1 microsecond') as due_at,
               array(select id from unknown_users(d.users::int[], d.company_id)) as unknown_users,
               array(select id from unknown_teams(d.teams::int[], d.company_id)) as unknown_teams
        from unnest(
            $1::uuid[], $2::text[], $3::int[], $4::text[], $5::int[], $6::text[], $7::text[], $8::text[], $9::text[],
            $10::text[], $11::text[], $12::bool[], $13::timestamptz[], $14::text[], $15::bytea[], $16::int[]
        ) with ordinality as d (
            id, service, company_id, kind, actor, users, teams, data, params, subjects, excepted, skips, due_at, key,
            digest, cost, ordinal
        )
        limit $18::bigint
    ) given
),
accepted as (
    insert into events
        (
            id, service, company_id, kind, actor, users, teams, excepted, data, params, subjects, key, digest,
            skipped_users, skipped_teams, generation
        )
    select id, service, company_id, kind, actor, known_users, known_teams, excepted, data, params, subjects, key, digest,
           case when skips then unknown_users end, case when skips then unknown_teams end, generation
    from draft
    where data is not null and (skips or not has_unknown)
    order by id
    on conflict (id) do nothing
    returning id, subjects
),
about as (
    insert into subjects (subject, event_id) select unnest(subjects), id from accepted
),
