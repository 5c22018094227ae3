package outbox

import (
	"context"
	"errors"
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
	wantProblem(t, err, "migration 007_recovery.sql: ", "a lock on webhooks.outbox that the process ",
		"(role agent, ", "its transaction is open for ", "select pg_terminate_backend(", "what was migrated so far stays")
	must(t, <-released)
	from, to, err := Migrate(t.Context(), cfg)
	if err != nil || from != 6 || to != SchemaVersion() {
		t.Errorf("afterwards: from %d to %d, %v", from, to, err)
	}
}

// vacuuming runs a VACUUM of a table until stop is called. It rests for 0.4 s after each of some
// sixty pages.
func vacuuming(t *testing.T, env *testenv.DB, table string) (stop func()) {
	t.Helper()
	env.Exec(t, `insert into `+table+` (event_id, endpoint_id, venue, type, status, created)
	    select 'evt_' || i, 'ep_1', 'v', 'lead.created', 'succeeded', now() from generate_series(1, 5000) i`)
	conn, err := pgx.Connect(t.Context(), env.URL)
	must(t, err)
	must(t, exec(t.Context(), conn, `set vacuum_cost_delay = 100; set vacuum_cost_limit = 1; set vacuum_cost_page_hit = 10000`))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- exec(ctx, conn, `vacuum `+table) }() // ends by stop
	testenv.Eventually(t, 10*time.Second, func() error {
		// An autovacuum of the table would give way.
		if !testenv.QueryOne[bool](t, env, `select exists (select from pg_stat_progress_vacuum where relid = $1::regclass and pid = $2)`, table, int(conn.PgConn().PID())) {
			return errors.New("no VACUUM")
		}
		return nil
	})
	return func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the VACUUM ended by itself: %v", err)
		}
		closeConn(conn)
	}
}

// VACUUM and COMMENT have the same kind of lock, and a VACUUM of a large log takes hours.
func TestMigrate_NamesTheVACUUMThatItWaitsFor(t *testing.T) {
	t.Parallel()
	env, cfg := formerDB(t, 19)
	stop := vacuuming(t, env, "webhooks.deliveries")
	_, _, err := Migrator{Config: cfg, Patience: time.Millisecond}.Run(t.Context())
	wantProblem(t, err, "migration 020_support.sql: in 1ms it did not get a lock on webhooks.deliveries that the process ", " holds (VACUUM of webhooks.deliveries, role agent, ",
		"run migrate again when it has ended, or cancel it (select pg_cancel_backend(", "what was migrated so far stays")
	stop()
	_, to, err := Migrate(t.Context(), cfg)
	if err != nil || to != SchemaVersion() {
		t.Errorf("afterwards: to %d, %v", to, err)
	}
}

func TestLockHolder_IsNamedByWhatItDoes(t *testing.T) {
	locks := []tableLock{{"webhooks.deliveries", beside}, {"webhooks.replays", "share"}}
	for _, test := range []struct {
		holder     lockHolder
		on, remedy string
	}{
		{lockHolder{}, "webhooks.deliveries, webhooks.replays", "run migrate again when less is written"},
		{lockHolder{pid: 7, table: "webhooks.deliveries", work: "VACUUM", automatic: true, seconds: 61},
			"webhooks.deliveries that the process 7 holds (autovacuum, VACUUM of webhooks.deliveries, its transaction is open for 1m1s)",
			"run migrate again when it has ended; an autovacuum that does not give way prevents a wraparound of transaction ids, so let it end"},
		{lockHolder{pid: 7, table: "webhooks.replays", work: "ANALYZE", role: "r", program: "psql", state: "active"},
			"webhooks.replays that the process 7 holds (ANALYZE of webhooks.replays, role r, psql, active, its transaction is open for 0s)",
			"run migrate again when it has ended, or cancel it (select pg_cancel_backend(7)) and start it again after migrate"},
		{lockHolder{pid: 7, table: "webhooks.replays", role: "r"}, "webhooks.replays that the process 7 holds (role r, its transaction is open for 0s)",
			"end its transaction (select pg_terminate_backend(7)), or run migrate again when it has ended"},
	} {
		if on, remedy := test.holder.on(locks), test.holder.remedy(); on != test.on || remedy != test.remedy+"; what was migrated so far stays" {
			t.Errorf("%+v: %q; %q", test.holder, on, remedy)
		}
	}
	if on := (lockHolder{}).on(nil); on != "its tables" {
		t.Errorf("nothing is declared: %q", on)
	}
}

// keeping runs statements in a transaction that stays open until release is called.
func keeping(t *testing.T, env *testenv.DB, statements string) (release func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), env.URL)
	must(t, err)
	must(t, exec(t.Context(), conn, statements))
	return func() {
		must(t, exec(t.Context(), conn, "commit"))
		closeConn(conn)
	}
}

func TestMigrate_BoundsTheWaitForAPublication(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	cfg := testConfig(env.URL, env.Slot)
	env.Exec(t, `drop publication `+quoteIdent(cfg.Publication))
	release := keeping(t, env, `begin; lock table webhooks.outbox in share update exclusive mode`)
	var said []string
	_, _, err := Migrator{Config: cfg, Patience: time.Millisecond, Progress: func(text string) { said = append(said, text) }}.Run(t.Context())
	wantProblem(t, err, "publication "+cfg.Publication+": in 1ms it did not get a lock on webhooks.outbox that the process ", "(role agent, ", "select pg_terminate_backend(")
	release()
	_, _, err = Migrate(t.Context(), cfg)
	must(t, err)
	if !testenv.QueryOne[bool](t, env, `select exists (select from pg_publication where pubname = $1)`, cfg.Publication) {
		t.Error("the publication was not made")
	}
}

// The build of an index waits for who writes to its table, and in the end for every transaction
// that still sees the table without the index.
func TestMigrate_BoundsTheWaitsOfAnIndexBuildAndBuildsItAnew(t *testing.T) {
	t.Parallel()
	for name, statements := range map[string]string{
		"a writer":   `begin; update webhooks.deliveries set venue = 'w' where event_id = 'evt_1'`,
		"a snapshot": `begin isolation level repeatable read; select from webhooks.endpoints`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env, cfg := formerDB(t, 13)
			addFormerData(t, env)
			release := keeping(t, env, statements)
			for range 2 { // the second time there is an index that is not valid
				_, _, err := Migrator{Config: cfg, Patience: 200 * time.Millisecond}.Run(t.Context())
				wantProblem(t, err, "index webhooks.deliveries_unsuccessful: it waits for the transactions of others, and in 200ms that of the process ",
					"(role agent, idle in transaction, its transaction is open for ", "select pg_terminate_backend(", ", and the index is built anew")
				if testenv.QueryOne[bool](t, env, `select indisvalid from pg_index where indexrelid = 'webhooks.deliveries_unsuccessful'::regclass`) {
					t.Fatal("the index is valid")
				}
			}
			release()
			from, to, err := Migrate(t.Context(), cfg)
			if err != nil || from != 13 || to != SchemaVersion() {
				t.Errorf("afterwards: from %d to %d, %v", from, to, err)
			}
			if diff := cmp.Diff(migratedCatalogue(t), catalogue(t, env)); diff != "" {
				t.Errorf("(-from nothing +after the interruption):\n%s", diff)
			}
		})
	}
}

func TestMigrate_BoundsTheWaitOfAnIndexForAVACUUM(t *testing.T) {
	t.Parallel()
	env, cfg := formerDB(t, 13)
	stop := vacuuming(t, env, "webhooks.deliveries")
	_, _, err := Migrator{Config: cfg, Patience: time.Millisecond}.Run(t.Context())
	stop()
	wantProblem(t, err, "index webhooks.deliveries_unsuccessful: in 1ms it did not get a lock on webhooks.deliveries that the process ", "(VACUUM of webhooks.deliveries, ")
	if testenv.QueryOne[bool](t, env, `select to_regclass('webhooks.deliveries_unsuccessful') is not null`) {
		t.Error("the build began, and left an index that is not valid")
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
