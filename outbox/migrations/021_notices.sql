-- expansion: binaries of schema 18 or newer work with it
-- locks: webhooks.endpoint_health (access exclusive)
-- What is announced about endpoints: see docs/notices.md.

-- Null where nothing is announced. Only the notices themselves write these columns, so that no other commit of the agent
-- touches them. There is no default, so that the table is not written anew.
alter table webhooks.endpoint_health
    add column notified smallint,
    add column notified_generation bigint;
comment on column webhooks.endpoint_health.notified is
    'What the agent has announced of the endpoint by an event of its own: 50, 70 or 90 (per cent of delivery.disable_after), 100 (disabled). 0 or null: nothing, or that it is well again.';
comment on column webhooks.endpoint_health.notified_generation is 'The generation of the endpoint when notified was written.';

insert into webhooks.event_types (name, description, example) values
    ('webhook.endpoint_failing', 'The attempts to another endpoint of the venue keep failing.',
     '{"endpoint_id":"ep_01JZX2B5N8Q1T4W7Z0C3F6J9M2","host":"crm.example.com","description":"the accounting system","consecutive_failures":50,"disable_after":100,"first_failure_at":"2026-02-03T18:05:00Z","last_error":"the server answered 500","disabled_reason":null,"what_to_do":"See why its server does not answer 2xx. After 100 failed attempts in a row the endpoint is disabled."}'),
    ('webhook.endpoint_disabled', 'Another endpoint of the venue was disabled, because its attempts failed or its server answered 410.',
     '{"endpoint_id":"ep_01JZX2B5N8Q1T4W7Z0C3F6J9M2","host":"crm.example.com","description":"the accounting system","consecutive_failures":100,"disable_after":100,"first_failure_at":"2026-02-03T18:05:00Z","last_error":"the server answered 500","disabled_reason":"failures","what_to_do":"Repair its server and enable the endpoint again. Its events are kept as missed meanwhile, and can be replayed."}'),
    ('webhook.endpoint_recovered', 'An endpoint of the venue that was announced as failing or disabled takes events again.',
     '{"endpoint_id":"ep_01JZX2B5N8Q1T4W7Z0C3F6J9M2","host":"crm.example.com","description":"the accounting system","consecutive_failures":0,"disable_after":100,"first_failure_at":"2026-02-03T18:05:00Z","last_error":null,"disabled_reason":null,"what_to_do":"Nothing. To send what it has missed, replay its missed and failed events."}')
on conflict (name) do nothing;
