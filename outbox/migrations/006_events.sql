-- contraction: binaries of schema 6 or newer work with it
-- locks: webhooks.attempts (share update exclusive), webhooks.endpoints (access exclusive)
-- What an event is, and how it is read.

-- event_matches tells whether one of an endpoint's events, or of outbox.types, asks for an event type. The rule: '*' asks for every type;
-- 'lead.*' for those that begin with 'lead.'; a text without * that does not end with a dot for that very type. Anything else is no
-- pattern and asks for nothing. package outbox has the same rule (Patterns), and a test compares the two.
create function webhooks.event_matches(events text[], type text) returns boolean
    language plpgsql immutable parallel safe
as $$
declare
    pattern text;
begin
    if events is null then
        return false;
    end if;
    foreach pattern in array events loop
        if pattern = '*' then
            return true;
        elsif right(pattern, 2) = '.*' then
            if length(pattern) > 2 and strpos(left(pattern, -1), '*') = 0 and starts_with(type, left(pattern, -1)) then
                return true;
            end if;
        elsif pattern = type and pattern <> '' and strpos(pattern, '*') = 0 and right(pattern, 1) <> '.' then
            return true;
        end if;
    end loop;
    return false;
end
$$;

-- log_text returns the form in which an id, a type or a venue stands in the log: as it is up to 512 bytes, which the log's indexes take,
-- and abbreviated beyond. package outbox does the same to what the stream brings (logText), and a test compares the two. The digest is
-- that of the text as UTF-8; a database without an encoding has nothing but bytes.
create function webhooks.log_text(value text) returns text
    language sql stable parallel safe
as $$
    select case
        when octet_length(value) <= 128 then value -- 512 at most in any encoding
        when octet_length(convert_to(value, case getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end)) <= 512 then value
        else substring(value from '^[!-~]{0,64}') || '...sha256:' || encode(sha256(
            convert_to(value, case getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end)), 'hex')
    end
$$;

-- An event of a venue that is longer than what the log takes could not be matched with its endpoints.
alter table webhooks.endpoints
    add constraint endpoints_id_length check (octet_length(id) <= 512) not valid,
    add constraint endpoints_venue_length check (octet_length(venue) <= 512) not valid;

comment on column webhooks.attempts.class is
    'What kind of failure it was. id_taken: no attempt, but a second event of the outbox with the id of one that was pending.';
