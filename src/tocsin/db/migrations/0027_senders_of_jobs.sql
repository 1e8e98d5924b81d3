-- Whose a job is: a company and a sender, such as `crm:4` or `user:4`, which take turns in the bulk queue. Jobs of the release
-- before, and those that concern no sender, are of company 0 and of the sender without a name.
alter table jobs
    add column company_id int not null default 0,
    add column sender text not null default '';
