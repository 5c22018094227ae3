package outbox

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

// oddTexts are texts of one to eight characters.
var oddTexts = []string{"a", "A ", " a", "  ", "", "é€", "ab\t", "a\n ", `"\'`, "12345678", "NULL", "{}"}

// TestReading_IsTheSameFromTheStreamAndFromSQL writes rows with columns of each type that the
// mapping accepts, and of a domain over each. It compares what the stream brings with what a query
// reads.
func TestReading_IsTheSameFromTheStreamAndFromSQL(t *testing.T) {
	t.Parallel()
	numbers := []string{"0", "-1", "32767"}
	types := []struct {
		name   string
		values []string
	}{
		{"text", oddTexts}, {"varchar(8)", oddTexts}, {"varchar", oddTexts}, {"char(8)", oddTexts}, {"bpchar", oddTexts}, {"name", oddTexts}, {"citext", oddTexts},
		{"uuid", []string{"A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "{00000000-0000-0000-0000-000000000000}"}},
		{"int2", numbers}, {"int4", append(numbers, "-2147483648")}, {"int8", append(numbers, "9223372036854775807")},
		{"numeric", append(numbers, "1.00", "1e-20", "NaN", strings.Repeat("9", 300), "-0.5")}, {"numeric(6,2)", []string{"1", "1.005"}},
		{"mood", []string{"so so ", "Good"}},
	}
	for _, domain := range []bool{false, true} {
		t.Run(fmt.Sprintf("domain %t", domain), func(t *testing.T) {
			t.Parallel()
			env := testenv.NewDB(t)
			haveCitext := testenv.QueryOne[bool](t, env, `select exists (select from pg_available_extensions where name = 'citext')`)
			if haveCitext {
				env.Exec(t, `create extension citext`)
			}
			env.Exec(t, `create type mood as enum ('so so ', 'Good')`)
			env.Exec(t, `create table ob (n int, id text, type text, venue text, data json, created timestamptz)`)
			db := mapTo(t, env, func(*Config) {})
			f := follow(t, db)
			for i, of := range types {
				name := of.name
				if name == "citext" && !haveCitext {
					continue
				}
				if domain {
					env.Exec(t, fmt.Sprintf(`create domain inner_%d as %s`, i, name))
					env.Exec(t, fmt.Sprintf(`create domain outer_%[1]d as inner_%[1]d check (true)`, i))
					name = fmt.Sprintf("outer_%d", i)
				}
				id := name
				if of.name == "mood" {
					id = "text"
				}
				env.Exec(t, `truncate ob`)
				env.Exec(t, fmt.Sprintf(`alter table ob alter id type %[2]s using null, alter type type %[1]s using null, alter venue type %[1]s using null`, name, id))
				env.Exec(t, fmt.Sprintf(`insert into ob select place, v::%[2]s, v::%[1]s, v::%[1]s, json '{}', now() from unnest($1::text[]) with ordinality x (v, place) union all select 99, null, null, null, json '{}', now() order by 1`, name, id), of.values)
				m, err := db.configured().mapping(t.Context())
				must(t, err)
				readID, venue, created, eventType := m.eventColumns()
				rows, err := db.pool.Query(t.Context(), fmt.Sprintf(`select coalesce(%s, ''), %s, %s, %s from ob o order by n`, logTextSQL(readID+"::text"), eventType, venue, created), planAnew)
				must(t, err)
				read, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct {
					ID, Type, Venue string
					Created         time.Time
				}])
				must(t, err)
				var streamed []*Event
				for len(streamed) < len(read) {
					for _, c := range f.next(t).Changes {
						streamed = append(streamed, c.Event)
					}
				}
				for j, want := range read {
					if e := streamed[j]; e.ID != want.ID || e.Type != want.Type || e.Venue != want.Venue || !e.Created.Equal(want.Created) {
						t.Errorf("%s: the stream has %q, %q, %q, %s, SQL %q, %q, %q, %s", of.name, e.ID, e.Type, e.Venue, e.Created, want.ID, want.Type, want.Venue, want.Created)
					}
				}
			}
		})
	}
}

func TestLogText_IsTheSameInGoAndSQL(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	r := rand.New(rand.NewPCG(1, 2))
	var texts []string
	for range 2000 {
		text := ""
		for n := r.IntN(700); len(text) < n; {
			text += []string{"a", "Z", "~", " ", "é", "€", "😀", "\n"}[min(r.IntN(40), 7)]
		}
		texts = append(texts, text)
	}
	for _, n := range []int{128, 129, 511, 512, 513, 100_000} {
		texts = append(texts, strings.Repeat("x", n), strings.Repeat("€", n/3)+strings.Repeat("x", n%3))
	}
	long := 0
	for i, got := range testenv.QueryAll[string](t, env, `select webhooks.log_text(s) from unnest($1::text[]) with ordinality x (s, place) order by place`, texts) {
		want := logText(texts[i])
		if got != want || len(got) > maxLogText || abbreviated(got) != (len(texts[i]) > maxLogText) {
			t.Errorf("%d bytes: SQL makes %q of it, Go %q", len(texts[i]), got, want)
		}
		if abbreviated(got) {
			long++
		}
	}
	if long < 100 {
		t.Errorf("%d texts are long: the test shows little", long)
	}
}

// TestLocalTime_IsReadAsPostgreSQLReadsIt compares times in zones with odd rules. Among them are
// times that a clock change skips or repeats.
func TestLocalTime_IsReadAsPostgreSQLReadsIt(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	_, env := openDB(t)
	conn, err := pgx.Connect(t.Context(), env.URL)
	must(t, err)
	defer closeConn(conn)
	_, err = conn.Exec(t.Context(), `set timezone = 'UTC'`)
	must(t, err)
	for _, zone := range []string{"America/Sao_Paulo", "Asia/Tokyo", "Australia/Lord_Howe", "Africa/Casablanca", "Europe/Dublin", "Africa/Monrovia", "<-03>+03", "UTC"} {
		l, err := readLocalTime(t.Context(), conn, zone)
		must(t, err)
		r := rand.New(rand.NewPCG(3, 4))
		var locals []time.Time
		for range 2000 {
			locals = append(locals, time.Unix(r.Int64N(l.end+6e9)-6e9, int64(r.IntN(1e6))*1000).UTC())
		}
		for _, from := range l.from { // around each change, by less than a second and by some hours
			for _, d := range []time.Duration{-time.Microsecond, 0, time.Microsecond, -time.Second, time.Second,
				-time.Hour, time.Hour, -30 * time.Minute, 30 * time.Minute} {
				locals = append(locals, time.Unix(from, 0).Add(d).UTC())
			}
		}
		rows, err := conn.Query(t.Context(), `select at at time zone $1 from unnest($2::timestamp[]) with ordinality x (at, place) order by place`, zone, locals)
		must(t, err)
		want, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
		must(t, err)
		wrong := 0
		for i, local := range locals {
			if got, known := l.utc(local); (!known || !got.Equal(want[i])) && local.Unix() < l.end {
				if wrong++; wrong < 5 {
					t.Errorf("%s: %s is read as %s, PostgreSQL reads %s", zone, local, got, want[i])
				}
			}
		}
	}
}

// TestCreated_IsReadInTheDatabasesZone puts many kinds of times into a column without a zone.
func TestCreated_IsReadInTheDatabasesZone(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ database, key, column, want string }{
		{"America/Sao_Paulo", "", "timestamp", "2026-01-01T15:00:00Z"},
		{"Asia/Tokyo", "", "timestamp(0)", "2026-01-01T03:00:00Z"},
		{"Asia/Tokyo", "America/Sao_Paulo", "timestamp", "2026-01-01T15:00:00Z"},
		{"Asia/Tokyo", "", "timestamptz", "2026-01-01T03:00:00Z"},
		{"UTC", "", "local_moment", "2026-01-01T12:00:00Z"},
	} {
		t.Run(test.database+" "+test.key+" "+test.column, func(t *testing.T) {
			t.Parallel()
			env := testenv.NewDB(t)
			env.Exec(t, `alter database `+env.Name+` set timezone = '`+test.database+`'`)
			env.Exec(t, `create domain local_moment as timestamp`)
			env.Exec(t, `create table ob (id text primary key, type text, venue text, data json, created `+test.column+`)`)
			db := mapTo(t, env, func(c *Config) { c.TimeZone = test.key })
			f := follow(t, db)
			env.Exec(t, `set timezone = '`+test.database+`'`)
			env.Exec(t, `insert into ob values ('noon', 't', 'v', '1', '2026-01-01 12:00:00')`)
			odd := []string{"infinity", "-infinity", "4713-01-01 00:00:00 BC", "294276-12-31 00:00:00", "10000-01-01 12:00:00"}
			for i, created := range append(odd, "") {
				env.Exec(t, `insert into ob values ('odd ' || $1::int, 't', 'v', '1', nullif($2, '')::timestamp)`, i, created)
			}
			m, err := db.configured().mapping(t.Context())
			must(t, err)
			for range len(odd) + 2 {
				b := f.next(t)
				e := b.Changes[0].Event
				read := testenv.QueryOne[*time.Time](t, env, `select `+m.usableCreated()+` from ob o where id = $1`, e.ID)
				switch {
				case e.ID == "noon":
					if got := e.Created.Format(time.RFC3339); got != test.want || read == nil || !read.Equal(e.Created) || e.Undated {
						t.Errorf("noon is %s by the stream, %v by SQL, want %s", got, read, test.want)
					}
				case !e.Undated || read != nil || !e.Created.Equal(b.Committed):
					t.Errorf("%s is %s by the stream (undated %t), %v by SQL", e.ID, e.Created, e.Undated, read)
				}
			}
		})
	}
}
