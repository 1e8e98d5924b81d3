-- A transaction of an application that reads one snapshot (repeatable read, serializable) does not see in `moves` what changed after
-- its begin: it posted for a company that had left. It locks this row, which fails if a move has changed it since.
create table last_move (
    id int primary key check (id = 1),
    noted_at timestamptz not null
);
insert into last_move (id, noted_at) values (1, now());

create function note_move() returns trigger
language plpgsql
as $$
begin
    update last_move set noted_at = clock_timestamp();
    return null;
end
$$;
create trigger note_move after insert or update on moves
    for each row when (new.is_awaited or new.state = 'moved') execute function note_move();

create or replace function refuse_post_of_moved_company() returns trigger
language plpgsql
as $$
declare
    problem text;
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        perform from last_move for share;
    end if;
    if exists (
        select from moves m where m.is_awaited or m.state = 'moved' and (m.is_leaving or m.company_id = new.company_id)
    ) then
        with named as materialized (
            select path.kind, one.id::numeric::int as id
            from (values ('user', '{notify,users}'::text[]), ('team', '{notify,teams}')) path (kind, keys)
            cross join lateral jsonb_array_elements_text(new.body::jsonb #> path.keys) as one (id)
        ),
        company as (
            select new.company_id as id
            union all
            select u.company_id from named n join users u on u.id = n.id where n.kind = 'user'
            union all
            select t.company_id from named n join teams t on t.id = n.id where n.kind = 'team'
        )
        select case
                   when exists (select from moves m where m.state = 'moved' and m.company_id = new.company_id)
                       or exists (select from named n join moved_ids m on m.kind = n.kind and m.id = n.id)
                       then 'The company has moved to another database.'
                   when exists (select from company c join moves m on m.company_id = c.id where m.is_awaited)
                       then 'The company is moving to this database.'
               end
        into problem;
        if problem is not null then
            raise lock_not_available using message = problem;
        end if;
    end if;
    return new;
end
$$;
