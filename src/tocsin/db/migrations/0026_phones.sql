-- The devices that accept silent pushes. Browsers do not: they punish pages for pushes that show nothing.
create function is_phone(type text) returns boolean
language sql immutable parallel safe
return type <> 'Web';
