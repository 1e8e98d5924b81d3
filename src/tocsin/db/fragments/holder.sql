    -- A session `a` of pg_stat_activity in words, with the time since its transaction began.
    concat_ws(
        ', ',
        'process ' || a.pid,
        a.usename,
        nullif(a.application_name, ''),
        'for ' || extract(epoch from clock_timestamp() - a.xact_start)::int || ' s'
    )
