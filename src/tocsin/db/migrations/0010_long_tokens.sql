-- Tokens of phones may have 4,096 characters, and an index takes 2,704 bytes. A longer one is known by its digest, which
-- stands in `token`, in characters that no token has, with the token's own last six behind it; the token itself is in
-- `whole_token`. All others stay as they are. The release before finds the devices that it can have registered.
alter table devices add column whole_token text;

create function device_key(token text) returns text language sql stable parallel safe strict
return case when octet_length(token) <= 2048 then token
    else '~' || encode(sha256(convert_to(token, 'UTF8')), 'hex') || right(token, 6) end;
