-- contraction: binaries of schema 13 or newer work with it
-- locks: webhooks.endpoints (access exclusive)
-- A secret that is rotated twice within an overlap has two former ones, and receivers may still be
-- on the first. previous_secret stays the latest of them. These columns hold those before it, the
-- newest first, each with its own time. The trigger moves a former secret there whenever it gives
-- way, so this holds for every program that rotates as the table says.
alter table webhooks.endpoints
    add column older_secrets text[] not null default '{}',
    add column older_secrets_until timestamptz[] not null default '{}';
comment on column webhooks.endpoints.older_secrets is
    'What previous_secret was before, the newest first. Each also signs until its time in older_secrets_until. Stored like secret. Kept by a trigger; empty while previous_secret is null.';
comment on column webhooks.endpoints.older_secrets_until is 'When each of older_secrets ends.';

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
        if new.previous_secret is null then
            new.older_secrets := '{}';
            new.older_secrets_until := '{}';
        -- A rotation. The agent seals secrets as well, which changes their text but no time. A
        -- statement that writes the older ones itself, as a replication does, is let be.
        elsif new.secret <> old.secret
            and (new.previous_secret = old.secret
                 or new.previous_secret <> old.previous_secret and new.previous_secret_until is distinct from old.previous_secret_until)
            and (new.older_secrets, new.older_secrets_until) = (old.older_secrets, old.older_secrets_until) then
            select coalesce(array_agg(f.text order by f.place), '{}'), coalesce(array_agg(f.until order by f.place), '{}')
            into new.older_secrets, new.older_secrets_until
            from (
                select old.previous_secret, old.previous_secret_until, 0
                union all
                select o.* from unnest(old.older_secrets, old.older_secrets_until) with ordinality o
            ) f (text, until, place)
            where f.text is not null and f.until > clock_timestamp() and isfinite(f.until);
            if cardinality(new.older_secrets) > 4 then
                raise exception 'endpoint % has 5 former secrets that still sign, and that is the most', quote_literal(new.id)
                    using errcode = 'program_limit_exceeded',
                          hint = 'Wait until one of them ends, or set previous_secret to null, which ends them all.';
            end if;
        end if;
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
