-- Whether the user of a head is active, and a token that was issued at this time (seconds since 1970, or null) is for this
-- inbox, not for that of an erased user: `inbox._admits` is the same rule.
and h.active
and case
    when h.tokens_from is not null then @issued >= extract(epoch from h.tokens_from)::float8
    else @issued is null or @issued >= extract(epoch from h.made_at)::float8 - 30
        or h.made_at - interval '30 seconds' > clock_timestamp()
end
