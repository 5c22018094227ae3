-- contraction: binaries of schema 18 or newer work with it
-- locks: nothing
-- Agents of before refuse every schema that is newer than they are. From here on a schema says which binaries work with it, so
-- that an agent can go on, and start, while the schema is ahead of it.
alter table webhooks.schema_version add column compatible int4;
comment on column webhooks.schema_version.version is 'The number of the last migration.';
comment on column webhooks.schema_version.compatible is
    'The oldest binary that works with this schema, by the number of the schema that it knows (webhook-agent version). Null means version.';
