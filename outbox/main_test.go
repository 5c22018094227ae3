package outbox

import (
	"context"
	"testing"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

// TestMain gives the tests of this package one PostgreSQL. Its databases begin with the agent's
// schema and publications.
func TestMain(m *testing.M) {
	testenv.Main(m, testenv.Options{Template: func(ctx context.Context, url string) error {
		_, _, err := Migrate(ctx, testConfig(url, ""))
		return err
	}})
}

// testConfig returns a configuration with the default names and the given database and slot.
func testConfig(url, slot string) Config {
	return Config{
		URL:         secret.New(url),
		Table:       "webhooks.outbox",
		Columns:     Columns{ID: "id", Type: "type", Venue: "venue", Data: "data", Created: "created"},
		Publication: "webhooks_outbox",
		Slot:        slot,
		Counts:      &Counts{},
	}
}

// openDB opens a new database for the test.
func openDB(t *testing.T) (*DB, *testenv.DB) {
	t.Helper()
	env := testenv.NewDB(t)
	return open(t, env), env
}

func open(t *testing.T, env *testenv.DB) *DB {
	t.Helper()
	db, err := Open(t.Context(), testConfig(env.URL, env.Slot))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}
