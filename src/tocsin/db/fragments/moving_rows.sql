    select '@table' as table_name, to_jsonb(t)::text as row
    from @of cross join lateral (select * from @table where @key = @of.id offset 0) t
