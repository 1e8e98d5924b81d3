-- How far an import is applied, so that a step does not read the lines again that the steps before have deleted.
alter table imports
    add column step int not null default 0,        -- 0: users, 1: teams, 2: devices, 3: notifications, 4: all are applied
    add column reached bigint not null default 0;  -- the user of the last line, or the number of the last team

-- An import is analyzed before it is applied. A small sample without the long texts is enough for its plans.
alter table import_lines
    alter column import_id set statistics 10,
    alter column number set statistics 10,
    alter column part set statistics 10,
    alter column user_id set statistics 10,
    alter column happened_at set statistics 10,
    alter column body set statistics 0,
    alter column read_at set statistics 0,
    alter column event_id set statistics 0,
    alter column kind set statistics 0,
    alter column data set statistics 0,
    alter column language set statistics 0,
    alter column subjects set statistics 0;
