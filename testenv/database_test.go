package testenv

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestNewDB_GivesEachTestADatabaseOfItsOwn(t *testing.T) {
	t.Parallel()
	for i := range 8 {
		t.Run(fmt.Sprintf("database %d", i), func(t *testing.T) {
			t.Parallel()
			db := NewDB(t)
			db.Exec(t, "insert into guests values ($1)", t.Name())
			got := QueryAll[string](t, db, "select name from guests order by name collate \"C\"")
			if len(got) != 2 || got[0] != "Ana" || got[1] != t.Name() {
				t.Errorf("the table holds %q, want the template's row and the one of this test", got)
			}
			if db.Slot == "" || db.Slot == db.Name {
				t.Errorf("slot %q of database %q", db.Slot, db.Name)
			}
			db.Exec(t, "select pg_create_logical_replication_slot($1, 'pgoutput')", db.Slot)
		})
	}
}

func TestNewDB_ConnectsWithTheRightsOfAnAgentAndNoMore(t *testing.T) {
	t.Parallel()
	db := NewDB(t)
	const isSuperuser = "select rolsuper from pg_roles where rolname = current_user"
	if QueryOne[bool](t, db, isSuperuser) {
		t.Error("the owner of the database is a superuser")
	}
	if !QueryOne[bool](t, db, "select rolreplication from pg_roles where rolname = current_user") {
		t.Error("the owner of the database may not replicate")
	}
	conn, err := pgx.Connect(t.Context(), db.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var super bool
	if err := conn.QueryRow(t.Context(), isSuperuser).Scan(&super); err != nil || !super {
		t.Errorf("SuperuserURL does not connect as a superuser: %v", err)
	}
}

func TestNewDB_RemovesDatabaseAndSlotAfterTheTest(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, Options{})
	var name string
	t.Run("inner", func(t *testing.T) {
		db := c.NewDB(t)
		name = db.Name
		db.Exec(t, "select pg_create_logical_replication_slot($1, 'pgoutput')", db.Slot)
	})
	watch := c.NewDB(t)
	if n := QueryOne[int](t, watch, "select count(*) from pg_database where datname = $1", name); n != 0 {
		t.Errorf("database %s is still there", name)
	}
	if n := QueryOne[int](t, watch, "select count(*) from pg_replication_slots"); n != 0 {
		t.Errorf("%d slots are still there", n)
	}
}

func TestIdentifier_NeedsNoQuotesAndLeavesRoom(t *testing.T) {
	for name, want := range map[string]string{
		"TestTailer_Stops/on é/1": "t_tailer_stops_on___1",
		"TestA":                   "t_a",
		"Test_B":                  "t_b",
		"TestLedger_ConfirmsOnlyWhatIsCommittedToTheLogOfDeliveries": "t_ledger_confirmsonlywhatiscommittedtothel",
	} {
		if got := identifier(name); got != want {
			t.Errorf("identifier(%q) is %q, want %q", name, got, want)
		}
	}
}
