-- Delete the keys of the events `old`. The arrays show the planner that they are few, so that it looks up each of them.
keyed as materialized (
    select given.service, given.company_id, given.key, given.id
    from (
        select array_agg(service) as services, array_agg(coalesce(company_id, 0)) as company_ids, array_agg(key) as keys,
               array_agg(id) as ids
        from old
        where key is not null
    ) listed
    cross join lateral unnest(listed.services, listed.company_ids, listed.keys, listed.ids) as given (service, company_id, key, id)
),
key as (
    delete from event_keys k using keyed
    where k.service = keyed.service and k.company_id = keyed.company_id and k.key = keyed.key and k.event_id = keyed.id
)
