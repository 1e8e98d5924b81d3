-- The operator who cancelled an event; null: the service that posted it, or an event that took its key.
alter table cancellations add column operator text;
