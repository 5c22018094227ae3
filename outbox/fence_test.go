package outbox

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

// TestLedger_IsFencedByEachColumnOfTheCheckpoint changes the checkpoint between two commits of a
// term, as somebody else would. A commit may succeed only if slot, epoch and sequence are as this
// term left them. Otherwise, the ledger may take the checkpoint for the result of its own commit
// only if both epoch and sequence say so.
func TestLedger_IsFencedByEachColumnOfTheCheckpoint(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		meanwhile string
		want      error
		lsn       LSN // the checkpoint's position afterwards
	}{
		"nothing":                                  {`select`, nil, 200},
		"another term":                             {`update webhooks.checkpoint set epoch = epoch + 1`, ErrFenced, 100},
		"another term that has committed once":     {`update webhooks.checkpoint set epoch = epoch + 1, sequence = sequence + 1`, ErrFenced, 100},
		"an earlier term, after a restore":         {`update webhooks.checkpoint set epoch = epoch - 1`, ErrFenced, 100},
		"more commits than one":                    {`update webhooks.checkpoint set sequence = sequence + 2`, ErrFenced, 100},
		"a commit taken back, after a restore":     {`update webhooks.checkpoint set sequence = sequence - 1`, ErrFenced, 100},
		"the checkpoint of another slot":           {`update webhooks.checkpoint set slot = slot || '_other'`, ErrFenced, 100},
		"the checkpoint gone":                      {`delete from webhooks.checkpoint`, ErrFenced, 0},
		"this very commit, whose answer was lost":  {`update webhooks.checkpoint set sequence = sequence + 1, lsn = '0/C8'`, nil, 200},
		"a position ahead, which never moves back": {`update webhooks.checkpoint set lsn = '0/1000'`, nil, 0x1000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			l := NewLedger(LedgerConfig{Config: db.cfg, Term: newTerm(t, db), Log: testLog(t), Clock: &Clock{}, ServerEnds: func() {},
				Confirm: func(LSN) {}, Stalled: func(bool) {}})
			nothing := func(context.Context, *pgx.Conn) error { return nil }
			must(t, l.transact(t.Context(), 100, nothing))
			defer func() { closeConn(l.conn) }()
			env.Exec(t, test.meanwhile)
			if err := l.transact(t.Context(), 200, nothing); err != test.want { //nolint:errorlint // it is returned as it is
				t.Errorf("the commit returned %v, want %v", err, test.want)
			}
			lsn := testenv.QueryOne[string](t, env, `select coalesce((select lsn::text from webhooks.checkpoint), '0/0')`)
			if lsn != test.lsn.String() {
				t.Errorf("the checkpoint is %s, want %s", lsn, test.lsn)
			}
		})
	}
}

func TestLedger_TouchesTheCheckpointOfItsOwnSlotOnly(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	term := newTerm(t, db)
	env.Exec(t, `insert into webhooks.checkpoint (slot, lsn, epoch, sequence, holder, system_identifier, timeline, database)
	    select 'another', lsn, epoch, sequence, holder, system_identifier, timeline, database from webhooks.checkpoint`)
	b := keepBook(t, db.cfg, term, nil)
	must(t, b.Write(t.Context(), success(b.track(t, 100, "evt_1")[0])))
	b.close(t)
	got := testenv.QueryOne[string](t, env, `select string_agg(lsn || ' ' || (slot = 'another'), ', ' order by slot = 'another') from webhooks.checkpoint`)
	if want := "0/64 false, 0/0 true"; got != want {
		t.Errorf("the checkpoints are %s, want %s", got, want)
	}
}
