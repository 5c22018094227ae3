-- contraction: binaries of schema 8 or newer work with it
-- locks: webhooks.attempts (access exclusive)
-- Another system's publication may hold every table, and publish what has no replica identity. Attempts has no key: an index would
-- cost each insert, the full identity costs only what is pruned.
alter table webhooks.attempts replica identity full;
