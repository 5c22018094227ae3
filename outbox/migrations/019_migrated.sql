-- expansion: binaries of schema 18 or newer work with it
-- locks: nothing
-- Who looks for the cause of a change wants to know when the schema changed last.
alter table webhooks.schema_version add column migrated timestamptz;
comment on column webhooks.schema_version.migrated is 'When the schema got this version. Null where that is not known.';
