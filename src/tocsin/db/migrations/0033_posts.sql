-- Events that other applications post in transactions of their own, in the same database: `select tocsin.post(...)`. Each
-- has a job with the same `id`, so that it waits, is retried and becomes a dead letter as other work does. A worker of the
-- release before does not know these jobs: it makes dead letters of them, which can be replayed.

-- The roles that may post: as which service, and for which company; null: for all.
create table posters (
    role text primary key,
    service text not null,
    company_id int check (company_id > 0),
    added_at timestamptz not null default now()
);

create table posted (
    id uuid primary key,
    number bigint not null generated always as identity,
    event_id uuid not null,
    role text not null,
    service text not null,
    company_id int,
    key text,
    body text not null,
    posted_at timestamptz not null default clock_timestamp(),
    errors text -- why it was refused: JSON, as in answers of the API
);
create index posted_by_event on posted (event_id);
create index posted_by_key on posted (role, key) where key is not null;

-- The users that refused events name, for erasures.
create table posted_people (
    user_id int,
    id uuid,
    primary key (user_id, id)
);
create index posted_people_by_event on posted_people (id);

-- The types of notification that the catalogue of a worker has. While there are none, every type can be posted.
create table posted_types (
    type text primary key
);

-- The greatest number of an event that can be posted: workers increase it as they accept events.
create table posted_limit (
    id int primary key check (id = 1),
    number bigint not null
);
insert into posted_limit (id, number) values (1, 1000000);

create function is_list_of_ids(given jsonb) returns boolean
language sql immutable parallel safe
return given is null or (
    jsonb_typeof(given) = 'array'
    and not jsonb_path_exists(given, 'strict $[*] ? (@.type() != "number" || @ < 1 || @ > 2147483647 || @.floor() != @)')
);

-- Few and large statements, since each costs as much as a row: an event is to cost an application little more than a row
-- of its own. NOTIFY makes commits wait for each other, so that of the transactions that post at the same time one wakes
-- the workers; they look for work every 1.5 seconds in any case.
create function post(event jsonb) returns uuid
language plpgsql volatile security definer
set search_path from current
set plan_cache_mode = force_generic_plan
as $$
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
    select id, coalesce(posted_id, gen_random_uuid()), session_user, poster.service, poster.company_id,
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
$$;
revoke all on function post(jsonb) from public;

-- The events that a role has posted and that are not accepted: they wait, or were refused.
create view own_posts with (security_barrier) as
select p.event_id as id, p.key, p.posted_at, case when d.id is null then 'waiting' else 'refused' end as state,
       case
           when d.id is null then null
           else coalesce(p.errors, '[{"message": "An internal error occurred.", "code": "error"}]')::jsonb
       end as errors
from posted p
left join dead_letters d on d.id = p.id
where p.role = session_user::text;
