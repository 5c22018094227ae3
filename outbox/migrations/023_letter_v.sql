-- expansion: binaries of schema 18 or newer work with it
-- locks: nothing
-- check_url and check_events took the letter v for a blank: PostgreSQL has no escape \v and reads it as that letter. So they
-- refused what begins or ends with a v, such as visit.booked and https://crm.example.gov. \x0b is the vertical tab.

create or replace function webhooks.check_url(url text) returns text
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
    elsif url <> btrim(url, E' \t\n\x0b\f\r') then
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

create or replace function webhooks.check_events(events text[]) returns text
    language sql immutable parallel safe
as $$
    select case when coalesce(cardinality(events), 0) = 0 then 'events names no event type; use types such as lead.created, lead.* or *'
        else (select 'events has as number ' || n || ' what is no event type; use types such as lead.created, lead.* or *'
              from unnest(events) with ordinality e (pattern, n)
              where pattern is null or pattern <> '*' and pattern !~ '^[^*]+\.\*$' and (position('*' in pattern) > 0 or pattern = '' or right(pattern, 1) = '.')
                 or pattern <> btrim(pattern, E' \t\n\x0b\f\r') or pattern ~ '[[:cntrl:]]'
              order by n limit 1)
        end
$$;
