-- contraction: binaries of schema 15 or newer work with it
-- locks: webhooks.deliveries (share update exclusive), webhooks.checkpoint (access exclusive), webhooks.replays (access exclusive)
-- Replays can be paused, resumed, canceled and paced, by plain SQL as well. Each row says whose it is, so that the replays of an
-- endpoint that was removed stay visible to its venue.
alter table webhooks.replays drop constraint replays_state_check;
alter table webhooks.replays
    add constraint replays_state_check check (state in ('pending', 'running', 'paused', 'done', 'failed', 'canceled')),
    add column venue text,
    add column expected bigint,
    add column per_second integer check (per_second between 1 and 10000),
    add column paced_until timestamptz,
    add column paused_at timestamptz,
    add column idempotency_key text,
    add column idempotency_hash bytea;
update webhooks.replays r set venue = coalesce(
    (select e.venue from webhooks.endpoints e where e.id = r.endpoint_id),
    (select d.venue from webhooks.deliveries d where d.endpoint_id = r.endpoint_id order by d.created desc limit 1));
update webhooks.replays set finished = now() where finished is null and state in ('done', 'failed');
comment on column webhooks.replays.state is
    'Set it to paused, to running (which resumes) or to canceled; the agent sets the others. What a canceled replay has not sent is again what it was.';
comment on column webhooks.replays.venue is 'The venue of the endpoint. A trigger fills it in.';
comment on column webhooks.replays.expected is 'How many deliveries the plan counted. Null where nobody counted.';
comment on column webhooks.replays.per_second is 'How many deliveries are set back in a second at most. Null for as many as the endpoint takes. May be changed at any time.';
comment on column webhooks.replays.paced_until is 'Up to when the pace is used up. Written by the agent.';
comment on column webhooks.replays.paused_at is 'When it was paused. A trigger sets it.';
comment on column webhooks.replays.finished is 'When it ended. A canceled replay without it is still being taken back.';
comment on column webhooks.deliveries.former is
    'What the delivery was before the replay replay_id. It is so again where that is canceled, and where it had succeeded and that does not send it.';

drop index webhooks.replays_open;
create index replays_open on webhooks.replays (created) where finished is null;
create index replays_created on webhooks.replays (created, id);
create index replays_endpoint on webhooks.replays (endpoint_id, created, id);
create index replays_venue on webhooks.replays (venue, created, id);
create unique index replays_idempotency on webhooks.replays (venue, idempotency_key, endpoint_id) where idempotency_key is not null;

-- What could not be counted for a replay, since somebody held its row.
alter table webhooks.checkpoint add column uncounted jsonb not null default '{}';
comment on column webhooks.checkpoint.uncounted is 'Deliveries that have ended and are not counted in webhooks.replays yet, since a transaction held the row.';

create function webhooks.replays_before_write() returns trigger
    language plpgsql
as $$
begin
    if tg_op = 'INSERT' then
        new.venue := coalesce((select e.venue from webhooks.endpoints e where e.id = new.endpoint_id), new.venue);
        if new.state = 'paused' then
            new.paused_at := coalesce(new.paused_at, clock_timestamp());
        end if;
        return new;
    end if;
    if new.state = old.state then
        return new;
    end if;
    if old.state in ('done', 'failed', 'canceled') then
        raise exception 'replay % has ended (%), and cannot become %', quote_literal(old.id), old.state, new.state
            using errcode = 'check_violation', hint = 'Insert a new replay.';
    end if;
    -- The agent ends a replay and says when in one statement.
    if new.state in ('done', 'failed') and new.finished is null then
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
create trigger replays_before_write before insert or update on webhooks.replays
    for each row execute function webhooks.replays_before_write();
alter table webhooks.replays enable always trigger replays_before_write;
