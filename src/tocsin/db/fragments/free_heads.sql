-- Lock the heads of the users of the first `record`s, in the order of their ids. Those that others hold are `busy`: nothing waits
-- for them.
wanted as materialized (
    select distinct person.user_id
    from record
    cross join unnest(record.user_ids) as person (user_id)
    where record.before < @size and record.nth <= @size
),
locked as materialized (
    select h.user_id
    from heads h
    where h.user_id = any(array(select user_id from wanted))
    order by h.user_id
    for update skip locked
),
busy as materialized (
    select h.user_id
    from heads h
    where h.user_id = any(array(select user_id from wanted except select user_id from locked))
)
