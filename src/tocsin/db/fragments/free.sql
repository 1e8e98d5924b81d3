-- The first due jobs of a queue or sender (@of), locked. No job of a batch is claimed while another worker has some of it, because
-- its jobs run in order.
free as materialized (
    select id, due_at, cost
    from jobs
    where @of and worker_id is null and due_at <= now()
      and (
          batch is null
          or not exists (
              select from jobs b
              where b.batch = jobs.batch and b.id <> jobs.id and (b.worker_id is not null or b.lane = 'bulk')
          )
      )
    order by due_at, id
    limit @limit
    for update skip locked
)
