-- The language of each locale of the heads `speaker`.
spoken as materialized (
    -- da-DK gets da if da-DK is not available, and the first language if neither is
    select jsonb_object_agg(l.locale, coalesce((
        select language
        from unnest(@languages::text[]) as known (language)
        where starts_with(lower(replace(l.locale, '_', '-')) || '-', lower(known.language) || '-')
        order by length(language) desc
        limit 1
    ), (@languages::text[])[1])) as languages
    from (select distinct locale from speaker) l
),
