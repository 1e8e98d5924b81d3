-- Delete what belongs to the events `alone`.
content as (
    delete from contents where event_id = any(array(select id from alone))
),
subject as (
    delete from subjects s using alone a where s.event_id = a.id and s.subject = any(a.subjects)
),
recipient as (
    delete from recipients where event_id = any(array(select id from alone))
),
cancellation as (
    delete from cancellations where event_id = any(array(select id from alone))
),
dead as (
    delete from dead_letters where id = any(array(select id from alone))
),
key as (
    delete from event_keys k using alone a
    where a.key is not null and k.service = a.service and k.company_id = coalesce(a.company_id, 0) and k.key = a.key
      and k.event_id = a.id
)
