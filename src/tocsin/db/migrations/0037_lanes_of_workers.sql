-- The lanes of pushes of each worker, so that a process without a worker can deliver events at once. Null: the worker is of
-- an earlier release, and has not said.
alter table workers add column lanes text[];
