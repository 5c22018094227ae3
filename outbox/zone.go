package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// A column of type timestamp holds a local time. PostgreSQL decides which moment that is, by its
// own time zone data and by its own rules for the hours that a clock change skips or repeats.
// Queries ask PostgreSQL (mapping.usableCreated). For the stream, the agent fetches the answers once:
// the offset from UTC stays the same over long stretches of local time.

// These bound the local times that a column of type timestamp may hold. Before the first, offsets
// do not change. After the last, they are not known yet. The stream and the queries both treat a
// later time as no time.
const (
	firstLocal = "1800-01-01"
	lastLocal  = "2100-01-01"
)

// localTime says how PostgreSQL reads a time without zone.
type localTime struct {
	from    []int64 // seconds of local time, ascending
	offsets []int64 // seconds by which local time is ahead of UTC from that time on
	end     int64
}

// utc returns the moment of a local time. The local time is given as if it were UTC. utc returns
// false for a time that is not known.
func (l *localTime) utc(local time.Time) (time.Time, bool) {
	seconds := local.Unix()
	if seconds >= l.end {
		return time.Time{}, false
	}
	i, found := slices.BinarySearch(l.from, seconds)
	if !found {
		i = max(0, i-1)
	}
	return local.Add(-time.Duration(l.offsets[i]) * time.Second), true
}

// selectOffsets finds the local times at which the offset changes. It looks at every day. Where a
// day ends with another offset than it began with, it halves the day until it has the second.
const selectOffsets = `
with recursive days as (
    select at, extract(epoch from (at at time zone 'UTC') - (at at time zone $1))::int as ahead
    from generate_series('` + firstLocal + `'::timestamp, '` + lastLocal + `', '1 day') at
), neighbors as (
    select lag(at) over (order by at) as low, lag(ahead) over (order by at) as former, at as high, ahead from days
), halves as (
    select low, high, former, ahead from neighbors where former <> ahead
    union all
    select case when earlier then middle else low end, case when earlier then high else middle end, former, ahead
    from halves, lateral (select date_trunc('second', low + (high - low) / 2) as middle) m,
         lateral (select extract(epoch from (middle at time zone 'UTC') - (middle at time zone $1))::int = former as earlier) e
    where high - low > '1 second'
)
(select extract(epoch from at)::bigint, ahead from days order by at limit 1)
union all
(select extract(epoch from high)::bigint, ahead from halves where high - low = '1 second' order by high)`

// readLocalTime asks PostgreSQL how it reads times without zone.
func readLocalTime(ctx context.Context, q rowQuerier, zone string) (*localTime, error) {
	end, _ := time.Parse(time.DateOnly, lastLocal)
	l := &localTime{end: end.Unix()}
	_, err := queryRows(ctx, q, selectOffsets, func(row pgx.CollectableRow) (struct{}, error) {
		var from, offset int64
		err := row.Scan(&from, &offset)
		l.from, l.offsets = append(l.from, from), append(l.offsets, offset)
		return struct{}{}, err
	}, zone)
	if SQLState(err) == codeInvalidParameter {
		return nil, &Problem{Thing: "outbox.time_zone", Reason: fmt.Sprintf("PostgreSQL knows no time zone %q", zone),
			Remedy: "use a name of the view pg_timezone_names, such as America/Sao_Paulo", Fatal: true, Err: err}
	}
	return l, err
}

// selectZone reads the time zone of a session that sets none itself. A setting of the agent's own
// role says nothing about the app's sessions, so the setting of the database takes precedence. If
// the database has no setting, the role's setting hides that of the server. The second column
// reports this.
const selectZone = `
with zones as (
    select s.setrole, s.setdatabase, split_part(c, '=', 2) as zone from pg_db_role_setting s, unnest(s.setconfig) c
    where s.setrole in (0, (select oid from pg_roles where rolname = current_user)) and lower(split_part(c, '=', 1)) = 'timezone'
      and s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
), of_database as (select zone from zones where setrole = 0 order by setdatabase desc limit 1)
select coalesce((select zone from of_database), current_setting('TimeZone')),
       not exists (select from of_database) and exists (select from zones)`

// databaseZone returns the time zone that sessions of the database have if they choose none. ofRole
// reports whether it is only that of the agent's role. The agent's own sessions choose UTC, so
// databaseZone opens a connection that does not.
func (c Config) databaseZone(ctx context.Context) (zone string, ofRole bool, err error) {
	cc, err := c.connConfig()
	if err != nil {
		return "", false, err
	}
	delete(cc.RuntimeParams, "timezone")
	conn, err := connect(ctx, cc)
	if err != nil {
		return "", false, c.explain("connect", err)
	}
	defer closeConn(conn)
	err = conn.QueryRow(ctx, selectZone).Scan(&zone, &ofRole)
	return zone, ofRole, c.explain("read the time zone", err)
}

// quoteText quotes a text as a literal for use in SQL.
func quoteText(s string) string {
	quoted := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return "E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}

// errMappingChanged ends a stream if the types of the outbox's columns have changed since it began.
// The columns are then looked up again.
var errMappingChanged = errors.New("the outbox's columns have changed their types")
