-- A team that gets the id of a deleted one is not the team that earlier events name. The teams that are there have no time.
alter table teams add column made_at timestamptz;
alter table teams alter column made_at set default clock_timestamp();
