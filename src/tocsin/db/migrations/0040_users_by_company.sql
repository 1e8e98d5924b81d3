-- outside a transaction
-- Moves read the users of a company in ranges of ids, and lock them.
drop index concurrently if exists users_by_company;
create index concurrently users_by_company on users (company_id, id);
