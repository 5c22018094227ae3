-- expansion: binaries of schema 18 or newer work with it
-- locks: webhooks.endpoints (access exclusive)
-- An endpoint may be registered under the id of one that was removed, also while no agent runs. It gets nothing of that one.

alter table webhooks.endpoints add column reused boolean not null default false;
comment on column webhooks.endpoints.reused is
    'Whether an endpoint with the same id was removed before this one was registered. Kept by a trigger.';

-- Whoever may register an endpoint may have this looked up, so it runs with the rights of the owner.
create function webhooks.endpoints_reused() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    new.reused := new.reused or exists (select from webhooks.removed_endpoints r where r.id = new.id);
    return new;
end
$$;
comment on function webhooks.endpoints_reused() is 'Notes that the id of a new endpoint was that of one that was removed.';
create trigger endpoints_reused before insert on webhooks.endpoints
    for each row execute function webhooks.endpoints_reused();
alter table webhooks.endpoints enable always trigger endpoints_reused;
