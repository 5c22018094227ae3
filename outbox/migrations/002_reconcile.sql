-- contraction: binaries of schema 2 or newer work with it
-- locks: webhooks.checkpoint (access exclusive), webhooks.outbox (share)
-- costs: reads webhooks.outbox twice for an index, before it takes a lock
-- What the reconciliation of the outbox with the log needs.

alter table webhooks.checkpoint
    add column horizon_at timestamptz,
    add column coverage text,
    add column relations text[];
comment on column webhooks.checkpoint.recovering is
    'Events may have passed the stream unseen, and the outbox has not been compared with the log completely yet.';
comment on column webhooks.checkpoint.horizon is
    'A snapshot: all that it sees was handed over, or found by comparing the outbox with the log.';
comment on column webhooks.checkpoint.horizon_at is 'When the horizon was taken.';
comment on column webhooks.checkpoint.coverage is
    'What decided which rows are streamed when the horizon was taken. When it differs, rows may have been passed over.';
comment on column webhooks.checkpoint.relations is
    'The tables that held the rows of the outbox when the horizon was taken: the table itself, or its partitions.';

-- The periodic comparison reads the latest rows only. A BRIN index costs the app''s INSERT next to nothing.
create index if not exists outbox_created on webhooks.outbox using brin (created) with (autosummarize = on);
