package outbox

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

// producing inserts into the outbox until stop is called, which returns how many rows were inserted
// and how long the slowest of them took.
func producing(t *testing.T, env *testenv.DB) (stop func() (rows int, slowest time.Duration)) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), env.URL)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var (
		rows    int
		slowest time.Duration
		failed  error
		ended   sync.WaitGroup
	)
	ended.Go(func() { // ends by stop
		pace := time.NewTicker(5 * time.Millisecond)
		defer pace.Stop()
		for ctx.Err() == nil && failed == nil {
			began := time.Now()
			failed = exec(context.Background(), conn, `insert into webhooks.outbox (type, venue, data) values ('lead.created', 'v', '{}')`)
			slowest = max(slowest, time.Since(began))
			rows++
			<-pace.C
		}
	})
	return func() (int, time.Duration) {
		cancel()
		ended.Wait()
		closeConn(conn)
		must(t, failed)
		return rows, slowest
	}
}

// holding keeps a transaction open that has inserted into the outbox, for some seconds.
func holding(t *testing.T, env *testenv.DB, seconds int) (released <-chan error) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), env.URL)
	must(t, err)
	must(t, exec(t.Context(), conn, `begin; insert into webhooks.outbox (type, venue, data) values ('lead.created', 'held', '{}')`))
	ended := make(chan error, 1)
	go func() { // ends after these seconds
		defer closeConn(conn)
		ended <- exec(context.Background(), conn, fmt.Sprintf(`select pg_sleep(%d); commit`, seconds))
	}()
	return ended
}

// An INSERT may wait for a try to get the lock, and not longer.
const longestInsert = longLockTimeout + 400*time.Millisecond

func TestMigrate_TheAppDoesNotWaitBehindATransactionThatHoldsTheOutbox(t *testing.T) {
	t.Parallel()
	for _, version := range []int{3, 6} { // 4 builds an index, 7 adds a column
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			env, cfg := formerDB(t, version)
			stop := producing(t, env)
			released := holding(t, env, 3)
			var said []string
			began := time.Now()
			_, to, err := Migrator{Config: cfg, Progress: func(text string) { said = append(said, text) }}.Run(t.Context())
			took := time.Since(began)
			rows, slowest := stop()
			must(t, err)
			must(t, <-released)
			if to != SchemaVersion() || took < 2*time.Second {
				t.Errorf("to version %d in %s, want the newest, and not before the transaction has ended", to, took)
			}
			if slowest > longestInsert {
				t.Errorf("an INSERT took %s", slowest)
			}
			if text := strings.Join(said, "\n"); !strings.Contains(text, "webhooks.outbox") {
				t.Errorf("it does not say what it waits for: %q", text)
			}
			if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.outbox`); n != rows+1 {
				t.Errorf("%d events in the outbox, want %d", n, rows+1)
			}
			if diff := cmp.Diff(migratedCatalogue(t), catalogue(t, env)); diff != "" {
				t.Errorf("(-from nothing +under load):\n%s", diff)
			}
			t.Logf("%d INSERTs, the slowest took %s; said %q", rows, slowest, said)
		})
	}
}

func TestMigrate_NamesWhoHoldsALockWhenItGivesUp(t *testing.T) {
	t.Parallel()
	env, cfg := formerDB(t, 6)
	released := holding(t, env, 6)
	_, _, err := Migrator{Config: cfg, Patience: time.Millisecond}.Run(t.Context())
	wantProblem(t, err, "migration 007_recovery.sql: ", "a lock on webhooks.checkpoint, webhooks.endpoints, webhooks.outbox that the process ",
		"(role agent, ", "its transaction is open for ", "select pg_terminate_backend(", "what was migrated so far stays")
	must(t, <-released)
	from, to, err := Migrate(t.Context(), cfg)
	if err != nil || from != 6 || to != SchemaVersion() {
		t.Errorf("afterwards: from %d to %d, %v", from, to, err)
	}
}

func TestMigrate_BuildsAnIndexAgainWhoseBuildWasInterrupted(t *testing.T) {
	t.Parallel()
	env, cfg := formerDB(t, 13)
	addFormerData(t, env)
	env.Exec(t, `create index deliveries_unsuccessful on webhooks.deliveries (endpoint_id)`)
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `update pg_index set indisvalid = false where indexrelid = 'webhooks.deliveries_unsuccessful'::regclass`))
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	if diff := cmp.Diff(migratedCatalogue(t), catalogue(t, env)); diff != "" {
		t.Errorf("(-from nothing +after the interruption):\n%s", diff)
	}
}

// Who waits for its turn must not keep an index of the other from being built.
func TestMigrate_BuildsIndexesWhileOthersWaitForTheirTurn(t *testing.T) {
	t.Parallel()
	env, cfg := formerDB(t, 3)
	addFormerData(t, env)
	results := make(chan error, 4)
	for range cap(results) {
		go func() { // ends with its migration
			_, _, err := Migrate(context.Background(), cfg)
			results <- err
		}()
	}
	for range cap(results) {
		must(t, <-results)
	}
}
