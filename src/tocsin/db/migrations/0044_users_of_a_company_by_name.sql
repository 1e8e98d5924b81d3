-- outside a transaction
-- Operators of one company search among its users, however many of other companies have such names.
drop index concurrently if exists users_of_company_by_email;
create index concurrently users_of_company_by_email on users (company_id, lower(email) text_pattern_ops) where email is not null;
drop index concurrently if exists users_of_company_by_name;
create index concurrently users_of_company_by_name
    on users (company_id, lower(first_name || ' ' || last_name) text_pattern_ops);
drop index concurrently if exists users_of_company_by_last_name;
create index concurrently users_of_company_by_last_name on users (company_id, lower(last_name) text_pattern_ops);
drop index concurrently if exists users_by_email;
drop index concurrently if exists users_by_name;
drop index concurrently if exists users_by_last_name;
