-- An import that came with an idempotency key: whoever repeats it waits until that one is applied.

alter table idempotency_keys add column import_id uuid;
