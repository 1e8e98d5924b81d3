-- The push services of a lane that has several (browsers'), and whether they accept who we are. The release before knows
-- nothing of it and goes on.
create table push_services (
    lane text not null,
    origin text not null,
    delivered_at timestamptz,
    refused_at timestamptz,
    reason text,
    primary key (lane, origin)
);
