-- contraction: binaries of schema 4 or newer work with it
-- locks: webhooks.attempts (share update exclusive), webhooks.deliveries (share update exclusive), webhooks.replays (share), webhooks.outbox (access exclusive)
-- costs: reads webhooks.outbox twice for an index, before it takes a lock
-- What pruning needs.

-- It walks the outbox by created, and so does the periodic comparison. A BRIN index would not do: what it knows of a range of pages only
-- widens, so once their rows are replaced, each range seems to hold the oldest. To this one the app's INSERT appends.
create index if not exists outbox_created_btree on webhooks.outbox (created);
drop index webhooks.outbox_created;
alter index webhooks.outbox_created_btree rename to outbox_created;
create index replays_finished on webhooks.replays (finished) where finished is not null;

-- By default a table is vacuumed when a fifth of it is dead, which at a hundred million rows is far too late: the space of what is
-- pruned in a few hours is to serve what comes in the next.
alter table webhooks.outbox set (autovacuum_vacuum_scale_factor = 0.01, autovacuum_analyze_scale_factor = 0.02);
alter table webhooks.deliveries set (autovacuum_vacuum_scale_factor = 0.01, autovacuum_analyze_scale_factor = 0.02);
alter table webhooks.attempts set (autovacuum_vacuum_scale_factor = 0.01, autovacuum_analyze_scale_factor = 0.02);
