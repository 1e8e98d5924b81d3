-- When users last tried one of their own devices.
create table trials (
    user_id int primary key references users on delete cascade,
    sent_at timestamptz[] not null            -- of the last minute
);
