package outbox

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

// hasRowFilters reports whether the server has row filters. If it has none, hasRowFilters checks
// that none are read.
func hasRowFilters(t *testing.T, db *DB, env *testenv.DB) bool {
	t.Helper()
	if testenv.QueryOne[int](t, env, `select current_setting('server_version_num')::int`) >= 150000 {
		return true
	}
	if c := coverage(t, db); len(c.Filters) != 0 || c.streamed() != "true" {
		t.Errorf("filters are read: %v", c.Filters)
	}
	return false
}

// addKinds writes three events of a type to a table.
func addKinds(t *testing.T, env *testenv.DB, table, kind string) {
	t.Helper()
	env.Exec(t, fmt.Sprintf(`insert into %s (id, type, venue, data) select '%s_' || i, '%[2]s', 'venue_a', '{}' from generate_series(1, 3) i`, table, kind))
}

func TestRowFilter_WhatItLeavesOutIsNoEventForAComparison(t *testing.T) {
	t.Parallel()
	eachTable(t, func(t *testing.T, db *DB, env *testenv.DB) {
		if !hasRowFilters(t, db, env) {
			return
		}
		addEndpoint(t, env, "ep_1", "venue_a", "*")
		c := compare(t, db, env)
		before := coverage(t, db)
		env.Exec(t, fmt.Sprintf(`alter publication %s set table webhooks.replays, %s where (type like 'lead%%' or type is null)`,
			quoteIdent(db.cfg.Publication), db.cfg.table()))
		if coverage(t, db).Continues(before) {
			t.Error("the coverage does not change with the filter")
		}
		must(t, db.Published(t.Context()))
		for _, gap := range []bool{false, true} {
			addKinds(t, env, db.cfg.table(), fmt.Sprintf("lead.%t", gap))
			addKinds(t, env, db.cfg.table(), fmt.Sprintf("internal.%t", gap))
			if got := c.runSettled(t, gap); got != 3 {
				t.Errorf("gap %t: %d rows were given, want those of the three events that pass the filter", gap, got)
			}
		}
		f := follow(t, db)
		addKinds(t, env, db.cfg.table(), "lead.s")
		addKinds(t, env, db.cfg.table(), "internal.s")
		var got []string
		for !slices.Contains(got, "lead.s_3") {
			got = append(got, eventIDs(f.next(t).Changes)...)
		}
		addKinds(t, env, db.cfg.table(), "lead.t")
		got = append(got, eventIDs(f.next(t).Changes)...)
		if len(got) != 12 || slices.ContainsFunc(got, func(id string) bool { return !strings.HasPrefix(id, "lead") }) {
			t.Errorf("the stream brings %q, want the twelve events that pass the filter", got)
		}
	})
}

// The names of columns mean those of the outbox, whatever names the statements of a comparison use.
func TestRowFilter_NamesOnlyColumnsOfTheOutbox(t *testing.T) {
	t.Parallel()
	env, cfg := emptyDB(t)
	env.Exec(t, `create table "Order" (id text primary key, type text, venue text, data json, created timestamptz default now(),
	    place int default 1, relation int default 1, "O" int default 1, o int default 1, n int default 1, l int default 1, e int default 1)`)
	cfg.Table = "public.Order"
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	db, err := Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(db.Close)
	if !hasRowFilters(t, db, env) {
		return
	}
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	c := compare(t, db, env)
	env.Exec(t, fmt.Sprintf(`alter publication %s set table webhooks.replays, "Order" where
	    (place = 1 and relation = 1 and "O" = 1 and o = 1 and n = 1 and l = 1 and e = 1 and type <> 'x' and id like 'lead%%')`, quoteIdent(cfg.Publication)))
	addKinds(t, env, `"Order"`, "lead")
	addKinds(t, env, `"Order"`, "internal")
	if got := c.runSettled(t, true); got != 3 {
		t.Errorf("%d rows were given, want 3", got)
	}
}

func TestRowFilter_OfTheOutboxIsThatOfItsChildren(t *testing.T) {
	t.Parallel()
	db, env := openInherited(t)
	if !hasRowFilters(t, db, env) {
		return
	}
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	c := compare(t, db, env)
	env.Exec(t, `alter publication inherited set table webhooks.replays, events where (type like 'lead%')`)
	env.Exec(t, `create table "Late" () inherits (child_1)`)
	if said := strings.Join(notOK(db.Check(t.Context())), "\n"); !strings.Contains(said, `ADD TABLE public."Late" WHERE (`) {
		t.Errorf("check says\n%s", said)
	}
	mended, err := db.MendPublications(t.Context())
	must(t, err)
	if len(mended) != 1 {
		t.Errorf("mended: %q", mended)
	}
	if filters := coverage(t, db).Filters; len(filters) != 5 {
		t.Errorf("the filters are %+v", filters)
	}
	for i, table := range []string{"events", "child_1", "child_2", "grandchild", `"Late"`} {
		addKinds(t, env, table, fmt.Sprintf("lead.%d", i))
		addKinds(t, env, table, fmt.Sprintf("internal.%d", i))
	}
	if got := c.runSettled(t, true); got != 15 {
		t.Errorf("%d rows were given, want 15", got)
	}
}

func TestRowFilter_OfAPartitionedTableHoldsForItsPartitions(t *testing.T) {
	t.Parallel()
	env, cfg := emptyDB(t)
	env.Exec(t, `create table ob (id text, type text, venue text, data json, created timestamptz default now()) partition by list (venue)`)
	env.Exec(t, `create table part_a partition of ob for values in ('venue_a')`)
	cfg.Table = "public.ob"
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	db, err := Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(db.Close)
	if !hasRowFilters(t, db, env) {
		return
	}
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	c := compare(t, db, env)
	env.Exec(t, fmt.Sprintf(`alter publication %s set table webhooks.replays, ob where (type like 'lead%%')`, quoteIdent(cfg.Publication)))
	addKinds(t, env, "ob", "lead")
	addKinds(t, env, "ob", "internal")
	if got := c.runSettled(t, true); got != 3 {
		t.Errorf("%d rows were given, want 3", got)
	}
	// A filter counts only if no publication of the agent's brings all rows.
	env.Exec(t, fmt.Sprintf(`alter publication %s add table ob`, quoteIdent(cfg.endpointsPublication())))
	if got := c.runSettled(t, true); got != 0 && coverage(t, db).streamed() != "true" {
		t.Errorf("the filter of one publication hides what the other brings")
	}
}
