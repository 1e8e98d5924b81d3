alter table workers add column problem text;
