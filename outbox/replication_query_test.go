package outbox

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

func TestReplicationQuerier_WritesArgumentsSoThatTheyAreReadAsTheyWere(t *testing.T) {
	t.Parallel()
	q := connectedQuerier(t)
	for _, text := range []string{"", "a", `it's \ "quoted"`, "$1 $2", "é\n"} {
		got, err := queryRows(t.Context(), q, `select $1::text || of_list from unnest($2::text[]) of_list`, pgx.RowTo[string], text, []string{text, "$1"})
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if diff := cmp.Diff([]string{text + text, text + "$1"}, got); diff != "" {
			t.Errorf("%q is read as (-want +got):\n%s", text, diff)
		}
	}
}

func TestReplicationQuerier_GoesOnAfterAnError(t *testing.T) {
	t.Parallel()
	q := connectedQuerier(t)
	for _, sql := range []string{`selec`, `select 1 / n from generate_series(1, 0, -1) n`} {
		if _, err := queryRows(t.Context(), q, sql, pgx.RowTo[int]); SQLState(err) == "" {
			t.Errorf("%s: error %v, want that of PostgreSQL", sql, err)
		}
	}
	if _, err := queryRows(t.Context(), q, `select $1`, pgx.RowTo[int], 1); err == nil {
		t.Error("an argument that cannot be written is no error")
	}
	if got, err := queryRows(t.Context(), q, `select 1`, pgx.RowTo[int]); err != nil || len(got) != 1 {
		t.Errorf("after errors a statement returns %v, %v", got, err)
	}
}

// TestTailer_ConnectsWithOneConnection shows that no query before the stream begins needs a further
// connection. The limit of a role does not count the stream's own connection.
func TestTailer_ConnectsWithOneConnection(t *testing.T) {
	env := testenv.NewDB(t)
	url := plainRole(t, env)
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `alter role `+env.Name+`_plain connection limit 0;
		grant usage on schema webhooks to `+env.Name+`_plain`))
	tailer := NewTailer(testConfig(url, env.Slot), testLog(t))
	defer tailer.Close()
	must(t, tailer.Connect(t.Context()))
}

// connectedQuerier returns a replication connection of a Tailer.
func connectedQuerier(t *testing.T) replicationQuerier {
	t.Helper()
	db, _ := openDB(t)
	tailer := NewTailer(db.cfg, testLog(t))
	must(t, tailer.Connect(t.Context()))
	t.Cleanup(tailer.Close)
	return replicationQuerier{tailer.conn}
}
