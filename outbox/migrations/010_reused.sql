-- contraction: binaries of schema 10 or newer work with it
-- locks: webhooks.checkpoint (access exclusive)
-- How many deliveries were of events whose id the log had for another event, and when the last one was: check tells, also while no
-- agent runs.
alter table webhooks.checkpoint add column reused bigint not null default 0, add column reused_at timestamptz;
