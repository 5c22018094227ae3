-- contraction: binaries of schema 9 or newer work with it
-- locks: webhooks.endpoints (share row exclusive)
-- An app, a restore or another replication may write endpoints with session_replication_role = replica, in which ordinary
-- triggers do not fire. An endpoint that was enabled so kept its generation, and the agent took the row for one that was
-- written before it had disabled the endpoint: shown as enabled, and nothing sent.
alter table webhooks.endpoints enable always trigger endpoints_before_write;
