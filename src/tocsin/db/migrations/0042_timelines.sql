-- A server that is promoted begins a timeline, and may lack changes that clients have seen: their positions are taken a second
-- time. So all cursors contain the salt, which changes with the timeline.
create table timelines (
    id int primary key check (id = 1),
    timeline int,
    salt bigint not null,
    previous_salt bigint, -- that of the timeline before,
    noted_at timestamptz -- which ended before this moment
);
insert into timelines (id, salt) values (1, 0);

create function new_salt() returns bigint language sql volatile
return 1 + (random() * 1e12)::bigint;
