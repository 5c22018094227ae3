-- contraction: binaries of schema 11 or newer work with it
-- locks: webhooks.endpoint_health (access exclusive)
-- Until when no attempt to an endpoint starts, and what holds it: failures in a row, or a Retry-After of its server.
alter table webhooks.endpoint_health add column held_until timestamptz, add column held_by text;
