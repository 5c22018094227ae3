-- contraction: binaries of schema 14 or newer work with it
-- locks: webhooks.deliveries (share), webhooks.endpoints (access exclusive)
-- costs: reads webhooks.deliveries twice for an index, before it takes a lock
-- What people ask of a large delivery log.

-- What was not delivered, of one endpoint. Successes, which are nearly all rows, are not in it, so it costs the write path nothing.
create index if not exists deliveries_unsuccessful on webhooks.deliveries (endpoint_id, created, event_id) where status in ('failed', 'missed');

-- url_host returns the host of a URL with its port, which may be shown; the rest may be a secret. Empty where there is none.
create function webhooks.url_host(url text) returns text
    language sql immutable parallel safe
as $$
    select coalesce(substring(url from '^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#]*@)?([^/?#@]*)'), '')
$$;

-- The log of a venue is read by its endpoints, since an index on the venue would cost each delivery a third more of WAL. So an
-- endpoint that was removed, or went to another venue, leaves its id with the venue while its rows of the log live.
create table webhooks.removed_endpoints (
    venue text not null,
    id text not null,
    host text not null,
    created timestamptz not null,
    removed timestamptz not null default clock_timestamp(),
    primary key (venue, id)
);
create index removed_endpoints_id on webhooks.removed_endpoints (id);
comment on table webhooks.removed_endpoints is
    'Endpoints that were removed, or are another venue''s now, while the delivery log has rows of them. Written by a trigger.';
comment on column webhooks.removed_endpoints.host is 'The host of its URL; the rest may have been a secret.';

-- Those of before. The walk goes from one id to the next by the index.
with recursive logged as (
    (select endpoint_id, venue, created from webhooks.deliveries order by endpoint_id, created limit 1)
    union all
    select n.* from logged l cross join lateral (
        select endpoint_id, venue, created from webhooks.deliveries where endpoint_id > l.endpoint_id order by endpoint_id, created limit 1) n
)
insert into webhooks.removed_endpoints (venue, id, host, created)
select venue, endpoint_id, '', case when isfinite(created) then created else now() end from logged l
where not exists (select from webhooks.endpoints e where e.id = l.endpoint_id);

-- Whoever may delete an endpoint may leave this trace, so it runs with the rights of the owner.
create function webhooks.endpoints_after_write() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' or tg_op = 'UPDATE' and new.venue <> old.venue then
        delete from webhooks.removed_endpoints r where r.venue = new.venue and r.id = new.id;
    end if;
    if tg_op = 'DELETE' or tg_op = 'UPDATE' and new.venue <> old.venue then
        insert into webhooks.removed_endpoints as r (venue, id, host, created)
        values (old.venue, old.id, webhooks.url_host(old.url), old.created)
        on conflict (venue, id) do update set host = excluded.host, removed = excluded.removed;
    end if;
    return null;
end
$$;
create trigger endpoints_after_write after insert or delete or update of venue on webhooks.endpoints
    for each row execute function webhooks.endpoints_after_write();
alter table webhooks.endpoints enable always trigger endpoints_after_write;

create function webhooks.endpoints_before_truncate() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    insert into webhooks.removed_endpoints as r (venue, id, host, created)
    select e.venue, e.id, webhooks.url_host(e.url), e.created from webhooks.endpoints e
    on conflict (venue, id) do update set host = excluded.host, removed = excluded.removed;
    return null;
end
$$;
create trigger endpoints_before_truncate before truncate on webhooks.endpoints
    for each statement execute function webhooks.endpoints_before_truncate();
alter table webhooks.endpoints enable always trigger endpoints_before_truncate;

-- A request to the API that is repeated makes one endpoint.
alter table webhooks.endpoints
    add column idempotency_key text,
    add column idempotency_hash bytea;
create unique index endpoints_idempotency on webhooks.endpoints (venue, idempotency_key) where idempotency_key is not null;
comment on column webhooks.endpoints.idempotency_key is 'The Idempotency-Key of the request that made the endpoint, and a hash of that request.';

-- Whoever reads the log, or prunes it, may do so here as well.
do $$
declare
    granted record;
begin
    for granted in
        select distinct case when acl.grantee = 0 then 'public' else quote_ident(r.rolname) end as role, acl.privilege_type as privilege
        from pg_class c cross join aclexplode(c.relacl) acl left join pg_roles r on r.oid = acl.grantee
        where c.oid = 'webhooks.deliveries'::regclass and acl.privilege_type in ('SELECT', 'DELETE') and acl.grantee <> c.relowner
    loop
        execute 'grant ' || granted.privilege || ' on webhooks.removed_endpoints to ' || granted.role;
    end loop;
end
$$;
