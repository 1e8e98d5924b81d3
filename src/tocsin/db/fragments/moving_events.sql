-- The rows `row` of the events @events, as far as they are those of the company @company: an event of another company, or of none,
-- has only its users and teams. It is left out if none of its users have got it, unless it is known to be theirs (@theirs). Its users
-- may have left already (`moved_ids`). Unless @whole, it is without what is the other database's own.
given as materialized (
    select e.*, e.company_id is not distinct from @company as is_own
    from unnest(@events) as named (id)
    cross join lateral (select * from events where id = named.id offset 0) e
),
recipient as materialized (
    select r.*, given.is_own, part.own_users, part.own_teams
    from given
    cross join lateral (select * from recipients where event_id = given.id offset 0) r
    cross join lateral (
        select coalesce(array_agg(pair.user_id order by nth), '{}') as own_users,
               coalesce(array_agg(pair.team_id order by nth), '{}') as own_teams
        from unnest(r.user_ids, r.team_ids) with ordinality as pair (user_id, team_id, nth)
        where not given.is_own and (
            (select u.company_id = @company from users u where u.id = pair.user_id)
            or (select m.company_id = @company from moved_ids m where m.kind = 'user' and m.id = pair.user_id)
        )
    ) part
    where given.is_own or part.own_users <> '{}'
),
spoken as materialized (
    -- the languages of its users: those in the other database may have got the event in others
    select distinct i.event_id, i.language
    from recipient
    cross join unnest(recipient.own_users) as named (id)
    cross join lateral (
        select event_id, language from inbox where user_id = named.id and event_id = recipient.event_id offset 0
    ) i
),
event as materialized (
    select * from given where is_own or @theirs or id in (select event_id from recipient)
),
row as materialized (
    select 'events' as table_name, (
               to_jsonb(event) - 'is_own'
               - case when is_own or @whole then '{}' else '{accepted_at,generation,skipped_users,skipped_teams}'::text[] end
               || case
                   when is_own then '{}'
                   else jsonb_build_object(
                       'users', array(
                           select named.id from unnest(event.users) with ordinality as named (id, nth)
                           where (select u.company_id = @company from users u where u.id = named.id)
                              or (select m.company_id = @company from moved_ids m where m.kind = 'user' and m.id = named.id)
                           order by nth
                       ),
                       'excepted', array(
                           select named.id from unnest(event.excepted) with ordinality as named (id, nth)
                           where (select u.company_id = @company from users u where u.id = named.id)
                              or (select m.company_id = @company from moved_ids m where m.kind = 'user' and m.id = named.id)
                           order by nth
                       ),
                       'teams', array(
                           select named.id from unnest(event.teams) with ordinality as named (id, nth)
                           where (select t.company_id = @company from teams t where t.id = named.id)
                              or (select m.company_id = @company from moved_ids m where m.kind = 'team' and m.id = named.id)
                           order by nth
                       )
                   )
               end
           )::text as row, id as event_id
    from event
    union all
    select 'recipients', (
               (
                   to_jsonb(recipient) || case
                       when is_own then '{}'
                       else jsonb_build_object(
                           'user_ids', own_users, 'team_ids', own_teams, 'reached', cardinality(own_users),
                           -- whom it did not reach is counted once: where the other users of the record are
                           'dropped', case when cardinality(own_users) = cardinality(user_ids) then dropped else 0 end
                       )
                   end
               )
               - case when is_own or @whole then '{}' else '{dropped}'::text[] end - 'is_own' - 'own_users' - 'own_teams'
           )::text, event_id
    from recipient
    union all
    select 'contents', to_jsonb(c)::text, event.id
    from event
    cross join lateral (select * from contents where event_id = event.id offset 0) c
    where event.is_own
    union all
    select 'contents', to_jsonb(c)::text, spoken.event_id
    from spoken
    cross join lateral (
        select * from contents where event_id = spoken.event_id and language = spoken.language offset 0
    ) c
    union all
    select 'subjects', to_jsonb(s)::text, event.id
    from event
    cross join lateral unnest(event.subjects) as named (subject)
    cross join lateral (select * from subjects where subject = named.subject and event_id = event.id offset 0) s
    union all
    select 'cancellations',
           (to_jsonb(c) - case when event.is_own or @whole then '{}' else '{cancelled_at,operator}'::text[] end)::text, event.id
    from event
    cross join lateral (select * from cancellations where event_id = event.id offset 0) c
    union all
    select 'dead_letters', to_jsonb(d)::text, event.id
    from event
    cross join lateral (select * from dead_letters where id = event.id and task = 'deliver' offset 0) d
    where event.is_own
    union all
    select case when event.is_own then 'event_keys' else 'other_keys' end, to_jsonb(k)::text, event.id
    from event
    cross join lateral (
        select * from event_keys
        where service = event.service and company_id = coalesce(event.company_id, 0) and key = event.key
          and event_id = event.id
        offset 0
    ) k
    where event.key is not null
)
