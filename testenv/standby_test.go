package testenv

import (
	"testing"
	"time"
)

func TestCluster_RestoreBringsBackWhatWasSavedAndNothingSince(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, Options{})
	db := c.NewDB(t)
	db.Exec(t, `create table t (n int)`)
	db.Exec(t, `insert into t values (1)`)
	if err := c.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, `insert into t values (2)`)
	if err := c.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := QueryAll[int](t, db, `select n from t`); len(got) != 1 || got[0] != 1 {
		t.Errorf("the table holds %v, want what was saved", got)
	}
}

func TestCluster_FailOverPutsTheStandbyInItsPlaceWithoutSlots(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, Options{})
	db := c.NewDB(t)
	db.Exec(t, `create table t (n int)`)
	db.Exec(t, `select pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	standby := c.NewStandby(t)
	db.Exec(t, `insert into t values (1)`)
	Eventually(t, 20*time.Second, func() error { return standby.CaughtUp(t.Context(), c) })
	if err := c.FailOver(t.Context(), standby); err != nil {
		t.Fatal(err)
	}
	if got := QueryOne[int](t, db, `select count(*) from t`); got != 1 {
		t.Errorf("%d rows on the new primary, want the one that the standby had received", got)
	}
	db.Exec(t, `insert into t values (2)`)
	if file := QueryOne[string](t, db, `select pg_walfile_name(pg_current_wal_lsn())`); file[:8] != "00000002" {
		t.Errorf("the server writes %s, want one of the second timeline", file)
	}
	if got := QueryAll[string](t, db, `select slot_name::text from pg_replication_slots where slot_type = 'logical'`); len(got) != 0 {
		t.Errorf("the new primary has the slots %v, want none", got)
	}
}
