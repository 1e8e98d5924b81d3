-- A team that gets the id of a deleted one is not the team that earlier events name. The teams that are there have no generation.
alter table teams add column generation bigint;
alter table teams alter column generation set default generation();
