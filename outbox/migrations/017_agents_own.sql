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
