-- expansion: binaries of schema 18 or newer work with it
-- locks: nothing
-- What people who stay in SQL are told of an event type that is mistyped: the same as by endpoints add.

-- edit_distance returns how many bytes have to be inserted, removed or replaced to turn a into b, by the method of Wagner and
-- Fischer (1974) with one row.
create function webhooks.edit_distance(a text, b text) returns int
    language plpgsql immutable strict parallel safe
as $$
declare
    x bytea := convert_to(a, 'UTF8');
    y bytea := convert_to(b, 'UTF8');
    distances int[];
    diagonal int; -- the distance of the row above, one to the left
    above int;
begin
    distances := array(select j from generate_series(0, length(y)) j);
    for i in 1..length(x) loop
        diagonal := distances[1];
        distances[1] := i;
        for j in 1..length(y) loop
            above := distances[j + 1];
            distances[j + 1] := least(diagonal + (get_byte(x, i - 1) <> get_byte(y, j - 1))::int, distances[j] + 1, above + 1);
            diagonal := above;
        end loop;
    end loop;
    return distances[length(y) + 1];
end
$$;
comment on function webhooks.edit_distance is 'Returns how many bytes have to be inserted, removed or replaced to turn a text into another.';

-- meant_type returns the type of the catalogue, or the group of types, that is meant by a pattern that fits none, or null where
-- it fits one, and where none is like it: at most a third of the bytes differ, or two.
create function webhooks.meant_type(pattern text) returns text
    language plpgsql stable
as $$
declare
    grouped text := case when right(pattern, 2) = '.*' then left(pattern, -2) end;
    meant text;
begin
    if not has_table_privilege('webhooks.event_types', 'select') or octet_length(pattern) > 200
       or exists (select from webhooks.event_types where webhooks.event_matches(array[pattern], name)) then
        return null;
    end if;
    select known into meant
    from webhooks.event_types cross join lateral (values (1, name), (2, split_part(name, '.', 1) || '.*')) k (n, known)
    where lower(known) = lower(pattern) order by name, n limit 1;
    if meant is not null then
        return meant;
    elsif grouped is null then
        select name into meant from webhooks.event_types
        where octet_length(name) <= 200 and webhooks.edit_distance(pattern, name) <= greatest(2, octet_length(pattern) / 3)
        order by webhooks.edit_distance(pattern, name), name limit 1;
        return meant;
    end if;
    select known || '.*' into meant from (select distinct split_part(name, '.', 1) as known from webhooks.event_types where octet_length(name) <= 200) groups
    where webhooks.edit_distance(grouped, known) <= greatest(2, octet_length(grouped) / 3)
    order by webhooks.edit_distance(grouped, known), known limit 1;
    return meant;
end
$$;
comment on function webhooks.meant_type is 'Returns the event type of the catalogue that is meant by one that is mistyped, or null.';

create or replace function webhooks.check_endpoint(url text, events text[]) returns table (field text, problem text)
    language sql stable parallel safe
as $$
    select 'url', webhooks.check_url(url) where webhooks.check_url(url) is not null
    union all
    select 'events', webhooks.check_events(events) where webhooks.check_events(events) is not null
    union all
    select 'events', 'events has "' || pattern || '", which the catalogue of event types does not have; did you mean "' || meant
        || '"? Correct it, or add it to webhooks.event_types'
    from unnest(events) pattern cross join lateral (select webhooks.meant_type(pattern) as meant) m
    where webhooks.check_events(events) is null and meant is not null
$$;
comment on function webhooks.check_endpoint is 'What is wrong with a new endpoint, or most likely a mistake: no row when nothing is.';
