package outbox

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

func TestMigrations_EachSaysWhichBinariesWorkWithIt(t *testing.T) {
	ms, err := migrations()
	must(t, err)
	for i, m := range ms {
		lines := strings.SplitN(m.sql, "\n", 3)
		if !declaredKind.MatchString(lines[0]) {
			t.Errorf("%s does not begin with %q", m.name, "-- expansion: binaries of schema N or newer work with it")
		}
		if !declaredLocks.MatchString(lines[1]) {
			t.Errorf("the second line of %s is not %q", m.name, "-- locks: nothing")
		}
		number := i + 1
		switch {
		case number <= hasCompatible: // agents of before refuse what is newer
			if m.compatible != number {
				t.Errorf("%s: binaries of schema %d work with it, want %d", m.name, m.compatible, number)
			}
		case m.expansion && m.compatible != ms[i-1].compatible:
			t.Errorf("%s is an expansion, so binaries of schema %d work with it, not those of %d", m.name, ms[i-1].compatible, m.compatible)
		case !m.expansion && (m.compatible <= ms[i-1].compatible || m.compatible > number):
			t.Errorf("%s is a contraction, so the oldest binary must be newer than %d and not newer than %d, not %d", m.name, ms[i-1].compatible, number, m.compatible)
		}
	}
}

// contracting matches what takes something away that a former binary may use, or refuses what it
// may write.
var contracting = []*regexp.Regexp{
	regexp.MustCompile(`\bdrop (table|column|view|function|procedure|trigger|index|schema|type|constraint|default|not null|publication|rule)\b`),
	regexp.MustCompile(`\brename\b`),
	regexp.MustCompile(`\balter (column )?\w+ (set data )?type\b`),
	regexp.MustCompile(`\bset not null\b`),
	regexp.MustCompile(`\b(revoke|truncate|delete from)\b`),
	regexp.MustCompile(`\bcreate unique index\b`),
	regexp.MustCompile(`\balter table [^;]*\badd (constraint|check|unique|primary key|foreign key|exclude)\b`),
	regexp.MustCompile(`\b(disable|enable) (row level security|trigger)\b`),
}

var (
	sqlComment      = regexp.MustCompile(`(?m)--.*$`)
	sqlBlanks       = regexp.MustCompile(`\s+`)
	dollarQuoted    = regexp.MustCompile(`(?s)\$\w*\$.*?\$\w*\$`)
	textLiteral     = regexp.MustCompile(`'(?:[^']|'')*'`)
	addedColumn     = regexp.MustCompile(`\badd column (?:[^,;(]|\([^)]*\))*`)
	createdRelation = regexp.MustCompile(`\bcreate (?:table|view) (webhooks\.\w+)`)
	contractedTable = regexp.MustCompile(`\bon (webhooks\.\w+)`)
	indexedLog      = regexp.MustCompile(`\bcreate (?:unique )?index (?:if not exists )?\w+ on (webhooks\.(?:outbox|deliveries|attempts))\b`)
)

// contracts returns the statement, or its part, with which former binaries may not work; "" if none
// is found. Bodies of functions are not looked at.
func contracts(sql string) string {
	sql = sqlComment.ReplaceAllString(strings.ToLower(sql), "")
	sql = dollarQuoted.ReplaceAllString(sql, "$$")
	sql = sqlBlanks.ReplaceAllString(textLiteral.ReplaceAllString(sql, "''"), " ")
	var created []string
	for _, found := range createdRelation.FindAllStringSubmatch(sql, -1) {
		created = append(created, found[1])
	}
	for statement := range strings.SplitSeq(sql, ";") {
		for _, column := range addedColumn.FindAllString(statement, -1) {
			if strings.Contains(column, "not null") && !strings.Contains(column, "default") {
				return column
			}
		}
		if on := contractedTable.FindStringSubmatch(statement); len(on) == 2 && slices.Contains(created, on[1]) {
			continue // an index or a trigger of a table that is new
		}
		for _, pattern := range contracting {
			if found := pattern.FindString(statement); found != "" {
				return found
			}
		}
	}
	return ""
}

func TestMigrations_WhatTakesSomethingAwayIsAContraction(t *testing.T) {
	ms, err := migrations()
	must(t, err)
	for i, m := range ms {
		if found := contracts(m.sql); i+1 > hasCompatible && m.expansion && found != "" {
			t.Errorf("%s says that it is an expansion, and holds %q", m.name, found)
		}
		if found := indexedLog.FindStringSubmatch(strings.ToLower(m.sql)); found != nil && m.costs == "" && i > 0 {
			t.Errorf("%s builds an index on %s and has no line %q", m.name, found[1], "-- costs: ...")
		}
	}
}

func TestContracts_FindsWhatFormerBinariesDoNotBear(t *testing.T) {
	for _, sql := range []string{
		"drop table webhooks.replays", "alter table webhooks.outbox\n  DROP COLUMN xid", "alter table webhooks.outbox rename column xid to id2",
		"alter table webhooks.outbox rename to events", "alter table webhooks.outbox add column a text not null", "drop function webhooks.new_id(text)",
		"alter table webhooks.outbox add column a numeric(2, 3) not null, add column b text default ''", "alter table webhooks.outbox alter column a type int",
		"alter table webhooks.outbox alter a set not null", "revoke select on webhooks.outbox from public", "create unique index u on webhooks.outbox (venue)",
		"alter table webhooks.replays add constraint c check (total > 0)", "drop index webhooks.outbox_created", "create table webhooks.a (b int); drop view webhooks.c",
	} {
		if contracts(sql) == "" {
			t.Errorf("not found: %s", sql)
		}
	}
	for _, sql := range []string{
		"alter table webhooks.outbox add column a text", "alter table webhooks.outbox add column a text not null default 'not null', add column b int",
		"-- drop table a\ncreate table webhooks.a (b text not null, unique (b)); create unique index u on webhooks.a (b)",
		"create or replace function webhooks.f() returns int language sql as $$ delete from webhooks.outbox; select 1 $$",
		"comment on table webhooks.outbox is 'rename it? drop table webhooks.outbox'", "create index i on webhooks.deliveries (venue)",
	} {
		if found := contracts(sql); found != "" {
			t.Errorf("found %q in: %s", found, sql)
		}
	}
}

var (
	insertsRow   = regexp.MustCompile(`(?i)\binsert\s+into\s+(?:webhooks\.\w+|` + "`" + `\s*\+\s*versionTable\s*\+\s*` + "`" + `)(?:\s+as\s+\w+)?(\s*\(?)`)
	selectsWhole = regexp.MustCompile("(?i)`\\s*select\\s+\\*\\s+from\\s+webhooks\\.|\\breturning\\s+\\*") // of a statement, not of a query in it
)

// An older binary runs its statements on a table that has got more columns.
func TestStatements_NameTheirColumns(t *testing.T) {
	files, err := filepath.Glob("*.go")
	must(t, err)
	inserts := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		must(t, err)
		for _, found := range insertsRow.FindAllSubmatch(text, -1) {
			inserts++
			if !strings.HasSuffix(string(found[1]), "(") {
				t.Errorf("%s: %q names no columns", file, found[0])
			}
		}
		if found := selectsWhole.Find(text); found != nil {
			t.Errorf("%s: %q takes the columns as they come", file, found)
		}
	}
	if inserts < 10 {
		t.Errorf("only %d INSERTs were found", inserts)
	}
}

// locksOf returns the strongest lock that the session holds on each of the tables $1, if a
// statement of others may conflict with it: one that writes, or VACUUM, which itself waits for
// nobody that writes. A lock that is not declared is waited for without a bound, and in the name of
// another table.
const locksOf = `
select format('webhooks.%s (%s)', c.relname, (array['share update exclusive', 'share', 'share row exclusive', 'exclusive', 'access exclusive'])[max(m.place)])
from pg_locks l join pg_class c on c.oid = l.relation
join unnest(array['ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock']) with ordinality m (mode, place)
  on m.mode = l.mode
where l.pid = pg_backend_pid() and c.relnamespace = 'webhooks'::regnamespace and c.relkind in ('r', 'p') and c.relname = any($1)
group by c.relname order by c.relname`

func TestMigrations_EachSaysWhatItLocks(t *testing.T) {
	t.Parallel()
	env, _ := formerDB(t, 0)
	ms, err := migrations()
	must(t, err)
	conn, err := pgx.Connect(t.Context(), env.URL)
	must(t, err)
	defer closeConn(conn)
	for i, m := range ms {
		err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
			existing, err := queryRows(t.Context(), tx, `select tablename::text from pg_tables where schemaname = 'webhooks' and tablename <> 'schema_version'`, pgx.RowTo[string])
			must(t, err)
			must(t, exec(t.Context(), tx, m.sql))
			taken, err := queryRows(t.Context(), tx, locksOf, pgx.RowTo[string], existing)
			must(t, err)
			must(t, exec(t.Context(), tx, "update "+versionTable+" set "+m.setVersion(i+1)))
			var said []string
			for _, lock := range m.locks {
				said = append(said, lock.String())
			}
			slices.Sort(said)
			if diff := cmp.Diff(taken, said, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s must say \"-- locks: %s\" (-taken +said):\n%s", m.name, strings.Join(taken, ", "), diff)
			}
			return nil
		})
		must(t, err)
		for i, lock := range m.locks[min(1, len(m.locks)):] {
			if former := m.locks[i]; lock.mode == beside && former.mode != beside {
				t.Errorf("%s locks %s after %s, so others wait while it waits for a VACUUM", m.name, lock, former)
			} else if former.table == "webhooks.outbox" && former.mode != beside {
				t.Errorf("%s does not lock the outbox last, so the app's INSERTs wait while it waits for others", m.name)
			}
		}
	}
	if version := testenv.QueryOne[string](t, env, `select format('%s %s', version, compatible) from webhooks.schema_version`); version != fmt.Sprintf("%d %d", len(ms), ms[len(ms)-1].compatible) {
		t.Errorf("version and oldest binary are %s", version)
	}
}
