-- The service checks the providers of devices, so that a new provider needs no migration.
alter table devices drop constraint devices_provider_check;
