-- expansion: binaries of schema 18 or newer work with it
-- locks: webhooks.attempts (share update exclusive), webhooks.checkpoint (share update exclusive), webhooks.deliveries (share update exclusive), webhooks.endpoint_health (share update exclusive), webhooks.endpoints (share update exclusive), webhooks.event_types (share update exclusive), webhooks.outbox (share update exclusive), webhooks.removed_endpoints (share update exclusive), webhooks.replays (share row exclusive)
-- What support needs: a replay whose row is deleted, and a comment on everything.

-- The agent finds by the row of a replay what it has set back. Without the row, that would be sent all
-- the same, and nothing would be counted. So to delete the row of one that has not ended is to cancel it,
-- and the row stays. The agent then makes each delivery what it was. A row that has ended is deleted.
create function webhooks.replays_before_delete() returns trigger
    language plpgsql
as $$
begin
    -- Nothing was set back for one that has no total.
    if old.finished is not null or old.total is null then
        return old;
    end if;
    if old.state in ('pending', 'running', 'paused') then
        update webhooks.replays set state = 'canceled' where id = old.id;
    end if;
    raise notice 'replay % is canceled; its row stays until the agent has taken back what was not sent', quote_literal(old.id);
    return null;
end
$$;
create trigger replays_before_delete before delete on webhooks.replays
    for each row execute function webhooks.replays_before_delete();
alter table webhooks.replays enable always trigger replays_before_delete;

comment on table webhooks.replays is
    'Insert a row to send deliveries of an endpoint again: those of event_ids, or all created from since (inclusive) to until (exclusive) with one of statuses. To delete a row that has not ended cancels the replay; the row stays.';
comment on column webhooks.deliveries.former is
    'What the delivery was before the replay replay_id. It is so again where that is canceled, and where the endpoint is disabled or removed before the delivery is sent.';

-- People see these in psql and in editors of tables.
comment on table webhooks.checkpoint is 'Where the agent stands, one row for each replication slot. Written by the agent only.';
comment on table webhooks.endpoint_health is 'The failures of each endpoint. Written by the agent only.';
comment on table webhooks.schema_version is 'The version of the schema webhooks, in one row. Written by migrate only.';
comment on column webhooks.attempts.event_id is 'The event, as in deliveries.';
comment on column webhooks.attempts.endpoint_id is 'The endpoint, as in deliveries.';
comment on column webhooks.attempts.attempt is 'The number of the attempt, from 1. A replay begins at 1 again.';
comment on column webhooks.attempts.at is 'When the attempt began.';
comment on column webhooks.attempts.code is 'The status that the server answered. Null when no status came.';
comment on column webhooks.attempts.error is 'Why the attempt failed, as one sentence.';
comment on column webhooks.attempts.latency_ms is 'How long the attempt took, in milliseconds.';
comment on column webhooks.attempts.response is 'The beginning of what the server answered.';
comment on column webhooks.checkpoint.slot is 'The replication slot that the row is for.';
comment on column webhooks.checkpoint.holder is 'The agent that leads, or led last.';
comment on column webhooks.checkpoint.system_identifier is 'The server that lsn is of. Another one means that the database was moved or restored.';
comment on column webhooks.checkpoint.timeline is 'The timeline of the server that lsn is of.';
comment on column webhooks.checkpoint.database is 'The database that lsn is of. Another one means that it was copied.';
comment on column webhooks.checkpoint.updated is 'When the row was last written.';
comment on column webhooks.checkpoint.reused is 'How many events had the id of another event in the log, so that they were not delivered.';
comment on column webhooks.checkpoint.reused_at is 'When the last of them was found.';
comment on column webhooks.deliveries.event_id is 'The id of the event, as in the outbox.';
comment on column webhooks.deliveries.endpoint_id is 'The endpoint that it goes to. It may have been removed since.';
comment on column webhooks.deliveries.venue is 'The venue of the event.';
comment on column webhooks.deliveries.type is 'The type of the event.';
comment on column webhooks.deliveries.attempts is 'How many attempts were made since it was set to pending the last time.';
comment on column webhooks.deliveries.next_attempt_at is 'When the next attempt is due. Null when the delivery has ended.';
comment on column webhooks.deliveries.last_code is 'The status that the last attempt was answered with. Null when none came.';
comment on column webhooks.deliveries.last_class is 'What kind of failure the last attempt was, as in attempts.class. Null after a success.';
comment on column webhooks.deliveries.last_error is 'Why the last attempt failed, or why the event was not sent.';
comment on column webhooks.deliveries.last_latency_ms is 'How long the last attempt took, in milliseconds.';
comment on column webhooks.deliveries.replay_id is 'The last replay that sent it again. Null when none did.';
comment on column webhooks.deliveries.finished is 'When it ended. Null while it is pending.';
comment on column webhooks.endpoint_health.endpoint_id is 'The endpoint.';
comment on column webhooks.endpoint_health.generation is 'The endpoints.generation that the failures are of. Those of an earlier one do not count.';
comment on column webhooks.endpoint_health.consecutive_failures is 'Failed attempts since the last success.';
comment on column webhooks.endpoint_health.first_failure_at is 'When the first of them was. Null without failures.';
comment on column webhooks.endpoint_health.last_failure_at is 'When the last failed attempt was.';
comment on column webhooks.endpoint_health.last_error is 'Why the last failed attempt failed.';
comment on column webhooks.endpoint_health.held_until is 'Until when no attempt starts. Null when nothing holds the endpoint.';
comment on column webhooks.endpoint_health.held_by is 'What holds it: failures in a row, or retry_after where its server asked for a wait.';
comment on column webhooks.endpoints.id is 'ep_ and a ULID. Leave it to its default. It cannot be changed.';
comment on column webhooks.endpoints.venue is 'The venue whose events are sent.';
comment on column webhooks.endpoints.url is 'Where to, an https URL. webhooks.check_url says whether it is usable. It may hold a credential of the customer.';
comment on column webhooks.endpoints.description is 'A text for people.';
comment on column webhooks.endpoints.disabled_reason is 'failures: too many in a row; manual: by hand; gone: the server answered 410. Null while enabled.';
comment on column webhooks.endpoints.previous_secret_until is 'When previous_secret stops signing.';
comment on column webhooks.endpoints.created is 'When it was registered. It gets the events that were committed since.';
comment on column webhooks.endpoints.updated is 'When it was last changed. Kept by a trigger.';
comment on column webhooks.endpoints.idempotency_hash is 'The hash that belongs to idempotency_key.';
comment on column webhooks.endpoint_settings.id is 'The endpoint.';
comment on column webhooks.endpoint_settings.venue is 'The venue whose events are sent.';
comment on column webhooks.endpoint_settings.url is 'Where to. It may hold a credential of the customer.';
comment on column webhooks.endpoint_settings.events is 'Event types: lead.created, lead.* or *.';
comment on column webhooks.endpoint_settings.description is 'A text for people.';
comment on column webhooks.endpoint_settings.state is 'enabled, disabled, or unusable: enabled, but the agent cannot send to it as it is registered.';
comment on column webhooks.endpoint_settings.disabled_at is 'When it was disabled. Null while enabled.';
comment on column webhooks.endpoint_settings.disabled_reason is 'failures, manual or gone, as in endpoints. Empty while enabled.';
comment on column webhooks.endpoint_settings.unusable is 'Why the agent cannot send to it. Empty when it can.';
comment on column webhooks.endpoint_settings.managed_by is 'file: kept in step with the configuration file. Empty otherwise.';
comment on column webhooks.endpoint_settings.consecutive_failures is 'Failed attempts since the last success, or since it was enabled.';
comment on column webhooks.endpoint_settings.first_failure_at is 'When the first of them was. Null without failures.';
comment on column webhooks.endpoint_settings.last_failure_at is 'When the last failed attempt was.';
comment on column webhooks.endpoint_settings.last_success_at is 'The success that ended the last series of failures. Further successes stand in deliveries only.';
comment on column webhooks.endpoint_settings.last_error is 'Why the last failed attempt failed.';
comment on column webhooks.endpoint_settings.held_until is 'Until when no attempt starts. Null when nothing holds it.';
comment on column webhooks.endpoint_settings.held_by is 'What holds it: failures, or retry_after where its server asked for a wait.';
comment on column webhooks.endpoint_settings.previous_secret_until is 'When the former secret stops signing. Null when there is none.';
comment on column webhooks.endpoint_settings.older_secrets_until is 'When each of the former secrets before it stops signing.';
comment on column webhooks.endpoint_settings.created is 'When it was registered.';
comment on column webhooks.endpoint_settings.updated is 'When it was last changed.';
comment on column webhooks.event_types.name is 'The type of an event: lead.created.';
comment on column webhooks.event_types.description is 'What the type means, for people.';
comment on column webhooks.event_types.example is 'Data as an event of the type has them, for test events.';
comment on column webhooks.outbox.id is 'evt_ and a ULID. Leave it to its default. An id of your own must be unique for ever: receivers tell events apart by it.';
comment on column webhooks.outbox.type is 'What happened: lead.created. Endpoints ask for types.';
comment on column webhooks.outbox.venue is 'The venue that it happened to. Its endpoints get the event.';
comment on column webhooks.outbox.data is 'What the receivers get as data, in this very spelling.';
comment on column webhooks.outbox.created is 'When it happened. Leave it to its default.';
comment on column webhooks.removed_endpoints.venue is 'The venue that it was of.';
comment on column webhooks.removed_endpoints.id is 'The id that it had.';
comment on column webhooks.removed_endpoints.created is 'When it was registered.';
comment on column webhooks.removed_endpoints.removed is 'When it was removed.';
comment on column webhooks.replays.id is 'rpl_ and a ULID. Leave it to its default.';
comment on column webhooks.replays.endpoint_id is 'The endpoint whose deliveries are sent again.';
comment on column webhooks.replays.event_ids is 'The events to send again. Null for those of a range of time.';
comment on column webhooks.replays.since is 'Events created from this time on. Null for no limit. Not for named events.';
comment on column webhooks.replays.until is 'Events created before this time. Null for those up to now. Not for named events.';
comment on column webhooks.replays.statuses is 'Deliveries in these statuses: missed, failed, succeeded.';
comment on column webhooks.replays.error is 'Why it failed, or what it has not sent, as one sentence.';
comment on column webhooks.replays.cursor_created is 'Where the replay stands in the log. Written by the agent.';
comment on column webhooks.replays.cursor_event_id is 'The event at cursor_created. Written by the agent.';
comment on column webhooks.replays.requeued is 'All its deliveries are set back to pending. Written by the agent.';
comment on column webhooks.replays.created is 'When it was asked for.';
comment on column webhooks.replays.idempotency_key is 'The Idempotency-Key of the request that made it.';
comment on column webhooks.replays.idempotency_hash is 'A hash of that request.';
comment on column webhooks.schema_version.version is 'The number of the last migration.';
comment on function webhooks.endpoints_after_write() is 'Keeps a trace of an endpoint that is removed while the log has rows of it (removed_endpoints).';
comment on function webhooks.endpoints_before_truncate() is 'Does the same where all endpoints are removed at once.';
comment on function webhooks.endpoints_before_write() is 'Keeps updated, subscribed, generation and the former secrets of an endpoint.';
comment on function webhooks.event_matches(text[], text) is 'Says whether one of the patterns asks for an event type.';
comment on function webhooks.event_xid(xid8, xid, bigint) is 'Returns the transaction that inserted an event, or null when that is not known.';
comment on function webhooks.handed_over(xid, pg_snapshot) is 'Says whether the transaction that wrote a row had ended before a snapshot was taken.';
comment on function webhooks.log_text(text) is 'Returns an id, a type or a venue as it stands in the log: abbreviated beyond 512 bytes.';
comment on function webhooks.new_id(text) is 'Makes an id: the prefix, an underscore and a ULID. Ids sort by the time they were made.';
comment on function webhooks.replays_before_write() is 'Keeps the states of a replay in order. See replays.state for what people may set.';
comment on function webhooks.replays_before_delete() is 'Cancels a replay that has not ended in place of deleting its row.';
comment on function webhooks.url_host(text) is 'Returns the host of a URL with its port. The rest may be a secret.';
