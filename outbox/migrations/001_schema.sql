-- contraction: binaries of schema 1 or newer work with it
-- locks: nothing
-- The schema of the webhook agent. DESIGN: the app inserts into outbox, endpoints and replays by plain SQL; the agent alone
-- writes deliveries, attempts, endpoint_health and checkpoint.

-- new_id returns PREFIX_ and a ULID (https://github.com/ulid/spec): 48 bits of milliseconds, 80 random bits, in Crockford's
-- base32, so that ids sort by the time they were made. The random bits are those of a version 4 UUID that carry no version.
create function webhooks.new_id(prefix text) returns text
    language plpgsql volatile parallel safe
as $$
declare
    alphabet constant text := '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
    hex constant text := replace(gen_random_uuid()::text, '-', '');
    ms constant bigint := floor(extract(epoch from clock_timestamp()) * 1000);
    high constant bigint := ('x' || left(hex, 10))::bit(40)::bigint;
    low constant bigint := ('x' || right(hex, 10))::bit(40)::bigint;
begin
    return prefix || '_'
        || substr(alphabet, (ms >> 45 & 31)::int + 1, 1) || substr(alphabet, (ms >> 40 & 31)::int + 1, 1)
        || substr(alphabet, (ms >> 35 & 31)::int + 1, 1) || substr(alphabet, (ms >> 30 & 31)::int + 1, 1)
        || substr(alphabet, (ms >> 25 & 31)::int + 1, 1) || substr(alphabet, (ms >> 20 & 31)::int + 1, 1)
        || substr(alphabet, (ms >> 15 & 31)::int + 1, 1) || substr(alphabet, (ms >> 10 & 31)::int + 1, 1)
        || substr(alphabet, (ms >> 5 & 31)::int + 1, 1) || substr(alphabet, (ms & 31)::int + 1, 1)
        || substr(alphabet, (high >> 35 & 31)::int + 1, 1) || substr(alphabet, (high >> 30 & 31)::int + 1, 1)
        || substr(alphabet, (high >> 25 & 31)::int + 1, 1) || substr(alphabet, (high >> 20 & 31)::int + 1, 1)
        || substr(alphabet, (high >> 15 & 31)::int + 1, 1) || substr(alphabet, (high >> 10 & 31)::int + 1, 1)
        || substr(alphabet, (high >> 5 & 31)::int + 1, 1) || substr(alphabet, (high & 31)::int + 1, 1)
        || substr(alphabet, (low >> 35 & 31)::int + 1, 1) || substr(alphabet, (low >> 30 & 31)::int + 1, 1)
        || substr(alphabet, (low >> 25 & 31)::int + 1, 1) || substr(alphabet, (low >> 20 & 31)::int + 1, 1)
        || substr(alphabet, (low >> 15 & 31)::int + 1, 1) || substr(alphabet, (low >> 10 & 31)::int + 1, 1)
        || substr(alphabet, (low >> 5 & 31)::int + 1, 1) || substr(alphabet, (low & 31)::int + 1, 1);
end
$$;

create table webhooks.outbox (
    id text primary key default webhooks.new_id('evt') check (id <> ''),
    type text not null,
    venue text not null,
    data json not null, -- json keeps the producer's spelling, jsonb would not
    created timestamptz not null default now()
);
comment on table webhooks.outbox is
    'The app inserts one row for each event, in the transaction of the business change. Append-only.';

create table webhooks.endpoints (
    id text primary key default webhooks.new_id('ep') check (id <> ''),
    venue text not null,
    url text not null,
    events text[] not null,
    secret text not null,
    previous_secret text,
    previous_secret_until timestamptz,
    description text not null default '',
    disabled_at timestamptz,
    disabled_reason text check (disabled_reason in ('failures', 'manual', 'gone')),
    managed_by text check (managed_by in ('file')),
    generation bigint not null default 1,
    created timestamptz not null default now(),
    updated timestamptz not null default now()
);
create index endpoints_venue on webhooks.endpoints (venue);
comment on table webhooks.endpoints is
    'Where a venue wants its events sent. Set disabled_at to null to enable an endpoint again: its failure counter starts anew.';
comment on column webhooks.endpoints.events is 'Event types: lead.created, lead.* or *.';
comment on column webhooks.endpoints.disabled_at is 'Null while enabled.';
comment on column webhooks.endpoints.previous_secret is 'Also signs until previous_secret_until, while receivers change over.';
comment on column webhooks.endpoints.managed_by is 'file: kept in step with an [[endpoint]] of the configuration file.';
comment on column webhooks.endpoints.generation is
    'Counts up each time the endpoint is enabled again. Failures of an earlier generation do not count.';

-- The generation makes "enabling clears the counter" hold in the app''s own transaction without a lock on another table:
-- a trigger that wrote endpoint_health could deadlock with the agent.
create function webhooks.endpoints_before_write() returns trigger
    language plpgsql
as $$
begin
    new.updated := clock_timestamp();
    -- An endpoint cannot have existed before it is written: which events it gets depends on it.
    if tg_op = 'INSERT' then
        new.created := least(new.created, clock_timestamp());
    elsif new.id <> old.id then
        raise exception 'endpoints.id cannot change: its deliveries go by it'
            using hint = 'Insert a new endpoint and delete this one.';
    end if;
    if new.disabled_at is null then
        new.disabled_reason := null;
        if tg_op = 'UPDATE' and old.disabled_at is not null then
            new.generation := old.generation + 1;
        end if;
    elsif new.disabled_reason is null then
        new.disabled_reason := 'manual';
    end if;
    return new;
end
$$;
create trigger endpoints_before_write before insert or update on webhooks.endpoints
    for each row execute function webhooks.endpoints_before_write();

create table webhooks.deliveries (
    event_id text not null,
    endpoint_id text not null,
    venue text not null,
    type text not null,
    status text not null check (status in ('pending', 'succeeded', 'failed', 'missed')),
    attempts smallint not null default 0,
    next_attempt_at timestamptz,
    last_code integer,
    last_class text,
    last_error text,
    last_latency_ms integer,
    replay_id text,
    created timestamptz not null,
    finished timestamptz,
    primary key (event_id, endpoint_id)
);
create index deliveries_pending on webhooks.deliveries (endpoint_id, next_attempt_at) where status = 'pending';
create index deliveries_endpoint_created on webhooks.deliveries (endpoint_id, created, event_id);
create index deliveries_created on webhooks.deliveries (created);
comment on table webhooks.deliveries is 'The delivery log: one row for each event and endpoint. Written by the agent only.';
comment on column webhooks.deliveries.status is
    'pending: to be attempted at next_attempt_at; succeeded; failed: all attempts failed; missed: not sent because the endpoint was disabled, unusable or removed.';
comment on column webhooks.deliveries.created is 'When the event was created.';

create table webhooks.attempts (
    event_id text not null,
    endpoint_id text not null,
    attempt smallint not null,
    at timestamptz not null,
    code integer,
    class text,
    error text,
    latency_ms integer,
    response text
);
create index attempts_delivery on webhooks.attempts (event_id, endpoint_id, at);
comment on table webhooks.attempts is 'One row for each failed attempt. A success stands in deliveries only.';

create table webhooks.endpoint_health (
    endpoint_id text primary key,
    generation bigint not null,
    consecutive_failures integer not null,
    first_failure_at timestamptz,
    last_failure_at timestamptz,
    last_success_at timestamptz,
    last_error text,
    unusable text
) with (fillfactor = 70);
comment on column webhooks.endpoint_health.last_success_at is
    'The success that ended the last series of failures. Further successes stand in deliveries only.';
comment on column webhooks.endpoint_health.unusable is
    'Why the agent cannot send to the endpoint as it is registered (URL, events or secret). Null when it can.';

create table webhooks.checkpoint (
    slot text primary key,
    lsn pg_lsn not null,
    epoch bigint not null,
    sequence bigint not null default 0,
    holder text not null,
    system_identifier text not null,
    timeline integer not null,
    database text not null,
    recovering boolean not null default false,
    horizon pg_snapshot,
    updated timestamptz not null default now()
) with (fillfactor = 50);
comment on column webhooks.checkpoint.lsn is 'Every delivery of a transaction that ended at or before this position has its row.';
comment on column webhooks.checkpoint.epoch is 'Counts up with each agent that takes over; an agent of an earlier epoch commits nothing.';
comment on column webhooks.checkpoint.sequence is 'Counts up with each commit of the ledger, so that a commit whose answer was lost is recognized.';
comment on column webhooks.checkpoint.recovering is 'The slot is new and the outbox has not been swept yet.';
comment on column webhooks.checkpoint.horizon is
    'A snapshot taken before lsn: all that it sees was handed over. A sweep looks only at what it does not see.';

-- handed_over tells whether the transaction that wrote a row had ended before anything that the horizon does not see, given
-- the row's xmin. It compares with the horizon's xmin alone, which is safe for subtransactions too, whose ids no snapshot
-- lists. A 32-bit xid is taken as the nearest to the horizon, as PostgreSQL compares them.
create function webhooks.handed_over(row_xmin xid, horizon pg_snapshot) returns boolean
    language sql immutable parallel safe
as $$
    select coalesce(
        ((row_xmin::text::bigint - pg_snapshot_xmin(horizon)::text::bigint) % 4294967296 + 4294967296) % 4294967296 >= 2147483648,
        false)
$$;

create table webhooks.replays (
    id text primary key default webhooks.new_id('rpl'),
    endpoint_id text not null,
    event_ids text[] check (array_position(event_ids, null) is null),
    since timestamptz check (since < 'infinity'),
    until timestamptz check (until > '-infinity'),
    statuses text[] not null default '{missed,failed}' check (statuses <@ '{missed,failed,succeeded}'),
    state text not null default 'pending' check (state in ('pending', 'running', 'done', 'failed')),
    total bigint,
    done bigint not null default 0,
    error text,
    cursor_created timestamptz,
    cursor_event_id text,
    requeued boolean not null default false,
    created timestamptz not null default now(),
    finished timestamptz
);
create index replays_open on webhooks.replays (created) where state in ('pending', 'running');
comment on table webhooks.replays is
    'Insert a row to send deliveries of an endpoint again: those of event_ids, or all created from since (inclusive) to until (exclusive) with one of statuses.';
comment on column webhooks.replays.total is 'Deliveries that the replay sends again; known once it runs.';
comment on column webhooks.replays.done is 'Those of them that have ended, whatever the outcome.';

create table webhooks.event_types (
    name text primary key,
    description text not null default '',
    example json not null
);
comment on table webhooks.event_types is 'The catalogue: used for test events and help. Events of other types are delivered as well.';

insert into webhooks.event_types (name, description, example) values
    ('lead.created', 'A couple or company asked about the venue.',
     '{"lead":{"id":"lead_01JZX0V7E3M8R5T2N4K6P9QWCA","name":"Marta & Tiago Nunes","email":"marta@example.com","phone":"+351910000001","stage":"new","eventDate":"2026-09-12","guests":140}}'),
    ('lead.updated', 'Details of a lead changed.',
     '{"lead":{"id":"lead_01JZX0V7E3M8R5T2N4K6P9QWCA","name":"Marta & Tiago Nunes","email":"marta@example.com","phone":"+351910000001","stage":"new","eventDate":"2026-09-19","guests":155}}'),
    ('lead.stage_changed', 'A lead moved to another stage.',
     '{"lead":{"id":"lead_01JZX0V7E3M8R5T2N4K6P9QWCA","name":"Marta & Tiago Nunes","stage":"visit_booked","previousStage":"new","eventDate":"2026-09-19","guests":155}}'),
    ('lead.archived', 'A lead was put away.',
     '{"lead":{"id":"lead_01JZX0V7E3M8R5T2N4K6P9QWCA","name":"Marta & Tiago Nunes","stage":"archived","reason":"date_taken"}}'),
    ('proposal.created', 'A proposal was drafted.',
     '{"proposal":{"id":"prop_01JZX14Q8W5C9H3D7F2B6KMT0V","leadId":"lead_01JZX0V7E3M8R5T2N4K6P9QWCA","total":"18450.00","currency":"EUR","status":"draft"}}'),
    ('proposal.sent', 'A proposal was sent to the lead.',
     '{"proposal":{"id":"prop_01JZX14Q8W5C9H3D7F2B6KMT0V","leadId":"lead_01JZX0V7E3M8R5T2N4K6P9QWCA","total":"18450.00","currency":"EUR","status":"sent"}}'),
    ('proposal.viewed', 'The lead opened the proposal.',
     '{"proposal":{"id":"prop_01JZX14Q8W5C9H3D7F2B6KMT0V","leadId":"lead_01JZX0V7E3M8R5T2N4K6P9QWCA","status":"viewed","viewedAt":"2026-02-03T18:05:00Z"}}'),
    ('proposal.signed', 'The lead signed the proposal.',
     '{"proposal":{"id":"prop_01JZX14Q8W5C9H3D7F2B6KMT0V","leadId":"lead_01JZX0V7E3M8R5T2N4K6P9QWCA","status":"signed","signedAt":"2026-02-05T09:41:00Z"}}'),
    ('payment.received', 'A payment arrived.',
     '{"payment":{"id":"pay_01JZX1B2Y6R4N8Q0T5V7W3KHME","proposalId":"prop_01JZX14Q8W5C9H3D7F2B6KMT0V","amount":"5535.00","currency":"EUR","method":"bank_transfer"}}'),
    ('message.received', 'A lead wrote a message.',
     '{"message":{"id":"msg_01JZX1J5C8D2F6G9H3K7M0PQRS","leadId":"lead_01JZX0V7E3M8R5T2N4K6P9QWCA","channel":"email","text":"Can we visit on Saturday?"}}');
