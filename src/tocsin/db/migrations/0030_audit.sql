-- The audit log. Its entries cannot be changed, and only retention deletes them, a day old or older. The release before
-- neither reads nor writes it.
create table audit_entries (
    id uuid primary key,
    happened_at timestamptz not null default clock_timestamp(),
    action text not null,
    caller text not null,
    name text,
    company_id int,
    request_id text,
    subject text,
    details text not null
);
create index audit_entries_by_time on audit_entries (happened_at, id);
create index audit_entries_by_company on audit_entries (company_id, happened_at, id);

create function keep_audit_entries() returns trigger
language plpgsql as $$
begin
    if tg_op = 'DELETE' and current_setting('tocsin.audit_retention', true) = 'on'
        and old.happened_at < now() - interval '1 day' then
        return old;
    end if;
    raise insufficient_privilege using message = 'The audit log is append-only.';
end
$$;
create trigger keep_audit_entries before update or delete on audit_entries
for each row execute function keep_audit_entries();
create trigger keep_all_audit_entries before truncate on audit_entries
for each statement execute function keep_audit_entries();

-- The preferences that users could not change when a process last started.
create table preference_locks (
    id int primary key check (id = 1),
    locked text[] not null
);
