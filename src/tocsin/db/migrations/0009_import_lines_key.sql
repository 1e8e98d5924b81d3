-- A row can only be deleted while a publication covers its table if the row has an identity: the primary key.
alter table import_lines add primary key (import_id, number);
