-- outside a transaction
-- Users by what begins their name or e-mail address, for whoever is asked why nothing came.
drop index concurrently if exists users_by_email;
create index concurrently users_by_email on users (lower(email) text_pattern_ops) where email is not null;
drop index concurrently if exists users_by_name;
create index concurrently users_by_name on users (lower(first_name || ' ' || last_name) text_pattern_ops);
drop index concurrently if exists users_by_last_name;
create index concurrently users_by_last_name on users (lower(last_name) text_pattern_ops);
