-- Ids that were erased, so that who has one next does not inherit the tokens of the former: nothing of the former stays but
-- a digest of their id. The release before neither writes nor reads any of this.
create table erased_ids (
    digest bytea primary key,
    erased_at timestamptz not null
);

-- Users' tokens issued before this open nothing, nor do those that do not say when they were issued. Null: the id was
-- nobody's before; tokens from before `made_at` open nothing all the same.
alter table heads add column tokens_from timestamptz;
