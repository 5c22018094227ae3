-- contraction: binaries of schema 17 or newer work with it
-- locks: webhooks.endpoints (share row exclusive)
-- What only the agent may write says so in its own transaction, by settings that end with it. An
-- editor of rows, or a statement of an app, does not come to them by accident.

-- webhooks.ends_replays is 'on' where the agent ends replays.
create or replace function webhooks.replays_before_write() returns trigger
    language plpgsql
as $$
declare
    agent_ends boolean := coalesce(current_setting('webhooks.ends_replays', true), '') = 'on';
begin
    if tg_op = 'INSERT' then
        new.venue := coalesce((select e.venue from webhooks.endpoints e where e.id = new.endpoint_id), new.venue);
        if new.state = 'paused' then
            new.paused_at := coalesce(new.paused_at, clock_timestamp());
        elsif new.state in ('done', 'failed', 'canceled') then
            -- A row of a log that was copied. Nothing was set back for it here.
            new.finished := coalesce(new.finished, clock_timestamp());
        end if;
        return new;
    end if;
    if old.finished is not null and new.finished is null then
        raise exception 'replay % has ended (%), and cannot go on', quote_literal(old.id), old.state
            using errcode = 'check_violation', hint = 'Insert a new replay.';
    end if;
    if old.finished is null and new.finished is not null and not agent_ends then
        raise exception 'only the agent sets when a replay has finished'
            using errcode = 'check_violation', hint = 'Set its state to canceled, which ends it.';
    end if;
    if new.state = old.state then
        return new;
    end if;
    if old.state in ('done', 'failed', 'canceled') then
        raise exception 'replay % has ended (%), and cannot become %', quote_literal(old.id), old.state, new.state
            using errcode = 'check_violation', hint = 'Insert a new replay.';
    end if;
    if new.state in ('done', 'failed') and not (agent_ends and new.finished is not null) then
        raise exception 'only the agent sets the state of a replay to %', new.state
            using errcode = 'check_violation', hint = 'Set it to paused, to running (which resumes it) or to canceled.';
    end if;
    if new.state in ('pending', 'running') then
        new.state := case when new.total is null then 'pending' else 'running' end;
    end if;
    new.paused_at := case when new.state = 'paused' then clock_timestamp() end;
    -- Nothing is to be taken back where nothing was set back.
    if new.state = 'canceled' and old.total is null then
        new.finished := clock_timestamp();
    end if;
    return new;
end
$$;

-- webhooks.seals is the id of the endpoint whose secrets the agent seals.
create function webhooks.endpoints_sealed() returns trigger
    language plpgsql
as $$
begin
    if current_setting('webhooks.seals', true) = new.id
        and to_jsonb(new) - '{secret,previous_secret,older_secrets,updated}'::text[]
          = to_jsonb(old) - '{secret,previous_secret,older_secrets,updated}'::text[] then
        new.updated := old.updated;
    end if;
    return new;
end
$$;
comment on function webhooks.endpoints_sealed is 'Keeps endpoints.updated where only the stored form of secrets changes, since nothing that people see does.';
-- Triggers of a table run in the order of their names, so this one has the last word.
create trigger endpoints_sealed before update on webhooks.endpoints
    for each row execute function webhooks.endpoints_sealed();
alter table webhooks.endpoints enable always trigger endpoints_sealed;

-- A rotation counts each former secret once: to go back and forth between two secrets is to use up no
-- places. Sealed texts differ, so what the agent has sealed is told apart by its own rotation alone.
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
                select distinct on (g.text) g.text, g.until, g.place
                from (
                    select old.previous_secret, old.previous_secret_until, 0
                    union all
                    select o.* from unnest(old.older_secrets, old.older_secrets_until) with ordinality o
                ) g (text, until, place)
                where g.text is not null and g.until > clock_timestamp() and isfinite(g.until)
                  and g.text not in (new.secret, new.previous_secret)
                order by g.text, g.place
            ) f;
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
