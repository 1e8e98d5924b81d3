-- outside a transaction
drop index concurrently if exists jobs_by_sender;
create index concurrently jobs_by_sender on jobs (company_id, sender, due_at, id)
    where lane = 'bulk' and worker_id is null;
