-- How many people a job looks up, so that a claim takes as many jobs as it can do in time without reading their events.
-- Jobs of the release before count as one: a claim of many large ones may take too long, and is then divided.
alter table jobs add column cost int not null default 1;
alter table dead_letters add column cost int not null default 1;
