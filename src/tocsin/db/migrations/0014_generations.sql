-- Whoever has the id of somebody erased is told from them by a number that goes up with each erasure, and by no clock.
create table generations (
    id int primary key check (id = 1),
    current bigint not null
);
insert into generations (id, current) values (1, 0);

create function generation() returns bigint language sql stable
return coalesce((select g.current from generations g where g.id = 1), 0);

alter table heads add column generation bigint not null default 0;
alter table heads alter column generation set default generation();
-- Of events that are there nothing is known: they go by the clock, as before.
alter table events add column generation bigint;
alter table events alter column generation set default generation();
