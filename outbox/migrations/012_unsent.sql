-- contraction: binaries of schema 12 or newer work with it
-- locks: webhooks.deliveries (access exclusive), webhooks.replays (access exclusive)
-- A replay says how many deliveries it did not send, and leaves those as succeeded that had succeeded before it.
alter table webhooks.replays add column unsent bigint not null default 0;
comment on column webhooks.replays.total is 'Deliveries that the replay is to send again, known once it runs; with the events that it names and that it cannot send.';
comment on column webhooks.replays.done is 'Those of them that were attempted and have ended, whatever the outcome.';
comment on column webhooks.replays.unsent is 'Those of them that were not attempted; error says why. A replay that has any ends as failed.';
alter table webhooks.deliveries add column former jsonb;
comment on column webhooks.deliveries.former is 'What the delivery was before the replay replay_id, where it had succeeded: it is so again if that does not send it.';
