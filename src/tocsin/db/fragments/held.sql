-- Lock what is left to deliver of events: their jobs or dead letters. A running chunk ends first.
job as materialized (
    select id from jobs where id = @ids and task = 'deliver' order by id for update
),
dead as materialized (
    select id from dead_letters where id = @ids and task = 'deliver' order by id for update
)
select id from job
union all
select id from dead
