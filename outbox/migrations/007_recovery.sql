-- contraction: binaries of schema 7 or newer work with it
-- locks: webhooks.checkpoint (access exclusive), webhooks.endpoints (access exclusive), webhooks.outbox (access exclusive)
-- What comparing the outbox with the log needs, so that no rewrite of a table makes an old event look new.

-- The transaction that wrote a row is not the one that committed the event once the row can be rewritten: by an update, by a change
-- of the table, by a restore. This column keeps the latter. Rows of before have none. It is the last column, so that an INSERT
-- without names of columns goes on working.
alter table webhooks.outbox add column xid xid8;
alter table webhooks.outbox alter column xid set default pg_current_xact_id();
comment on column webhooks.outbox.xid is
    'The transaction that inserted the event. Leave it to its default; copy it with the row when rows are moved or restored.';

-- event_xid returns the transaction that inserted an event, given its column xid, the row's xmin and the next transaction id; null when
-- that is not known. No row was written by a transaction before the one that inserted it, unless the id is of another server: then it
-- says nothing here.
create function webhooks.event_xid(xid xid8, row_xmin xid, next bigint) returns xid8
    language sql immutable parallel safe
as $$
    select case when xid::text::bigint <= next - (next - row_xmin::text::bigint & 4294967295) then xid end
$$;

-- The trigger keeps subscribed. It stands beside created because an app may set that.
alter table webhooks.endpoints add column subscribed timestamptz;
comment on column webhooks.endpoints.subscribed is
    'When venue or events were changed last; null while they are as they were registered. Kept by a trigger.';
-- Of what was there before, nobody knows which change was the last one of the subscription. Without the trigger, which would set updated.
alter table webhooks.endpoints disable trigger endpoints_before_write;
update webhooks.endpoints set subscribed = updated where updated > created + interval '1 minute';
alter table webhooks.endpoints enable trigger endpoints_before_write;

create or replace function webhooks.endpoints_before_write() returns trigger
    language plpgsql
as $$
begin
    new.updated := clock_timestamp();
    -- An endpoint cannot have existed before it is written: which events it gets depends on it.
    if tg_op = 'INSERT' then
        new.created := least(new.created, clock_timestamp());
        new.subscribed := null;
    else
        if new.id <> old.id then
            raise exception 'endpoints.id cannot change: its deliveries go by it'
                using hint = 'Insert a new endpoint and delete this one.';
        end if;
        new.subscribed := case when (new.venue, new.events) is distinct from (old.venue, old.events) then clock_timestamp() else old.subscribed end;
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

-- A comparison goes through the endpoints of a venue in the order of their ids, a piece at a time.
create index endpoints_venue_id on webhooks.endpoints (venue, id);
drop index webhooks.endpoints_venue;

alter table webhooks.checkpoint add column sweep jsonb;
comment on column webhooks.checkpoint.sweep is
    'Where a comparison of all of the outbox stands: its horizon, and the place in the tables before which all was compared.';
