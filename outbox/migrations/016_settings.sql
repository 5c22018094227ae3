-- contraction: binaries of schema 16 or newer work with it
-- locks: nothing
-- For people and programs that stay in SQL: the same verdicts and the same fields as the commands and the API have.

-- check_url says why an endpoint's URL is not usable, in the words of the agent, or is null. It goes by the rules that the
-- agent has unless its [network] settings allow more.
create function webhooks.check_url(url text) returns text
    language plpgsql immutable parallel safe
as $$
declare
    authority text;
    host text;
    port text;
    name text;
    labels text[];
    last text;
begin
    if url is null then
        return 'the URL is missing';
    elsif octet_length(url) > 2048 then
        return 'the URL is longer than 2048 characters';
    elsif url <> btrim(url, E' \t\n\v\f\r') then
        return 'the URL begins or ends with a blank; remove it';
    elsif url ~ '[[:cntrl:]]'
        or getdatabaseencoding() = 'UTF8' and url ~ '[\u0080-\u009f\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f]' then
        return 'the URL has a line break or an invisible character; remove it';
    elsif url !~ '^[A-Za-z][A-Za-z0-9+.-]*:' then
        return 'the URL must begin with https://';
    elsif url ~* '^http:' then
        return 'the URL must begin with https:// (http:// needs network.allow_http)';
    elsif url !~* '^https:' then
        return 'the URL must begin with https://';
    elsif position('#' in url) > 0 then
        return 'the URL contains a fragment, which is never sent; remove it';
    elsif url !~* '^https://' then
        return 'the URL has no host';
    elsif split_part(split_part(url, '?', 1), '#', 1) ~ '%($|.$|[^0-9A-Fa-f]|.[^0-9A-Fa-f])' then
        return 'the URL is malformed; it must look like https://host/path';
    end if;
    authority := (regexp_match(url, '^[^:]*://([^/?#]*)'))[1];
    if position('@' in authority) > 0 then
        return 'the URL contains credentials, which are not accepted; verify the signature instead';
    end if;
    if authority like '[%' then
        host := (regexp_match(authority, '^\[([^][]*)\](:[0-9]*)?$'))[1];
        if host is null or host = '' then
            return 'the URL is malformed; it must look like https://host/path';
        end if;
        return 'the URL has an IP address in place of a host name, which needs network.allow_networks to cover it';
    end if;
    host := (regexp_match(authority, '^([^:]*)(:[0-9]*)?$'))[1];
    if host is null then
        return 'the URL is malformed; it must look like https://host/path';
    end if;
    port := (regexp_match(authority, ':([0-9]*)$'))[1];
    if port is not null and (port = '' or length(ltrim(port, '0')) > 5 or port::numeric not between 1 and 65535) then
        return 'the URL''s port must be between 1 and 65535';
    elsif host = '' then
        return 'the URL has no host';
    elsif host ~ '[^ -~]' then
        return 'the URL''s host name must be ASCII; use its xn-- form';
    elsif host ~ '^(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])(\.(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])){3}$' then
        return 'the URL has an IP address in place of a host name, which needs network.allow_networks to cover it';
    end if;
    name := regexp_replace(host, '\.$', '');
    labels := string_to_array(name, '.');
    last := labels[cardinality(labels)];
    if lower(last) in ('localhost', 'localhost4', 'localhost6', 'localdomain', 'localdomain4', 'localdomain6', 'ip6-localhost', 'ip6-loopback') then
        return 'the URL leads to localhost, which needs network.allow_networks to cover it';
    elsif exists (select from unnest(labels) label where label !~ '^[A-Za-z0-9_-]{1,63}$') or name = '' then
        return 'the URL''s host is not a valid host name';
    elsif length(name) > 253 then
        return 'the URL''s host name is longer than 253 characters';
    elsif cardinality(labels) = 1 then
        return 'the URL''s host must be a full domain name, with a dot in it';
    elsif last ~ '^\d' then
        return 'the URL''s host looks like an IP address but is not one';
    end if;
    return null;
end
$$;
comment on function webhooks.check_url is 'Says why the agent could not send to a URL, or is null. It does not look the host up.';

-- check_events says why a list of event types is not usable, or is null.
create function webhooks.check_events(events text[]) returns text
    language sql immutable parallel safe
as $$
    select case when coalesce(cardinality(events), 0) = 0 then 'events names no event type; use types such as lead.created, lead.* or *'
        else (select 'events has as number ' || n || ' what is no event type; use types such as lead.created, lead.* or *'
              from unnest(events) with ordinality e (pattern, n)
              where pattern is null or pattern <> '*' and pattern !~ '^[^*]+\.\*$' and (position('*' in pattern) > 0 or pattern = '' or right(pattern, 1) = '.')
                 or pattern <> btrim(pattern, E' \t\n\v\f\r') or pattern ~ '[[:cntrl:]]'
              order by n limit 1)
        end
$$;
comment on function webhooks.check_events is 'Says why the agent could not match a list of event types, or is null.';

create function webhooks.check_endpoint(url text, events text[]) returns table (field text, problem text)
    language sql immutable parallel safe
as $$
    select 'url', webhooks.check_url(url) where webhooks.check_url(url) is not null
    union all
    select 'events', webhooks.check_events(events) where webhooks.check_events(events) is not null
$$;
comment on function webhooks.check_endpoint is 'What is wrong with a new endpoint: no row when nothing is.';

-- A failure counter of an earlier generation counts no more.
create view webhooks.endpoint_settings as
select e.id, e.venue, e.url, e.events, e.description,
       case when e.disabled_at is not null then 'disabled' when h.unusable is not null then 'unusable' else 'enabled' end as state,
       e.disabled_at, coalesce(e.disabled_reason, '') as disabled_reason, coalesce(h.unusable, '') as unusable,
       coalesce(e.managed_by, '') as managed_by,
       case when h.generation = e.generation then h.consecutive_failures else 0 end as consecutive_failures,
       case when h.generation = e.generation then h.first_failure_at end as first_failure_at,
       h.last_failure_at, h.last_success_at, coalesce(h.last_error, '') as last_error,
       case when h.generation = e.generation and e.disabled_at is null and h.held_until > now() then h.held_until end as held_until,
       case when h.generation = e.generation and e.disabled_at is null and h.held_until > now() then h.held_by else '' end as held_by,
       case when e.previous_secret is not null and e.previous_secret_until > now() then e.previous_secret_until end as previous_secret_until,
       array(select u from unnest(e.older_secrets, e.older_secrets_until) with ordinality o (s, u, n)
             where s is not null and u > now() and u < 'infinity' order by n) as older_secrets_until,
       e.created, e.updated
from webhooks.endpoints e
left join webhooks.endpoint_health h on h.endpoint_id = e.id;
comment on view webhooks.endpoint_settings is 'Endpoints as people see them: with their state, without their secrets.';

-- venue_log reads the newest rows of a venue's log by its endpoints: no index has the venue.
create function webhooks.venue_log(of_venue text, most integer default 50, before timestamptz default 'infinity') returns setof webhooks.deliveries
    language sql stable
as $$
    select d.*
    from (select id from webhooks.endpoint_settings where venue = of_venue
          union select id from webhooks.removed_endpoints where venue = of_venue) e
    cross join lateral (
        select * from webhooks.deliveries
        where endpoint_id = e.id and venue = of_venue and created < before
        order by created desc, event_id desc limit most) d
    order by d.created desc, d.event_id desc, d.endpoint_id desc limit most
$$;
comment on function webhooks.venue_log is 'The newest deliveries of a venue, whose events were created before a time.';

-- Whoever sees the endpoints, or the log, may see them in this form as well.
do $$
declare
    granted record;
begin
    for granted in
        select distinct case when acl.grantee = 0 then 'public' else quote_ident(r.rolname) end as role
        from pg_class c cross join aclexplode(c.relacl) acl left join pg_roles r on r.oid = acl.grantee
        where c.oid = 'webhooks.endpoints'::regclass and acl.privilege_type = 'SELECT' and acl.grantee <> c.relowner
    loop
        execute 'grant select on webhooks.endpoint_settings to ' || granted.role;
    end loop;
end
$$;
