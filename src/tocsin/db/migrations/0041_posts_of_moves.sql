-- Events that applications post in their own transactions go with a company that moves. The release before accepts those
-- that wait at the switch without the users who have left.

create or replace function hold_events() returns void
language plpgsql
as $$
begin
    lock table events, imports, erasures, resolutions, posted in share mode;
end
$$;

-- No event is posted for a company that has left: its users would be left out, silently if the event says so.
create function refuse_post_of_moved_company() returns trigger
language plpgsql
as $$
begin
    if exists (select from moves m where m.state = 'moved' and (m.is_leaving or m.company_id = new.company_id)) and (
        exists (select from moves m where m.state = 'moved' and m.company_id = new.company_id)
        or exists (
            select
            from (values ('user', '{notify,users}'::text[]), ('team', '{notify,teams}')) named (kind, path)
            cross join lateral jsonb_array_elements_text(new.body::jsonb #> named.path) as one (id)
            join moved_ids m on m.kind = named.kind and m.id = one.id::int
        )
    ) then
        raise lock_not_available using message = 'The company has moved to another database.';
    end if;
    return new;
end
$$;
create trigger refuse_post_of_moved_company before insert on posted
    for each row execute function refuse_post_of_moved_company();
