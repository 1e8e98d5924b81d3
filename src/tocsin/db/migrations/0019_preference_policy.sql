-- A digest of the operator's rules by which workers last had what is held decided, so that a change of them is noticed at
-- start. The release before neither writes nor reads it.
create table operator_rules (
    id int primary key check (id = 1),
    digest text not null
);
