package outbox

import (
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

func TestAdopt_NobodyLeadsInACopyBeforeIt(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]string{
		"another server":                 `update webhooks.checkpoint set system_identifier = '1'`,
		"another database":               `update webhooks.checkpoint set database = 'other'`,
		"another server, slot renamed":   `update webhooks.checkpoint set system_identifier = '1', slot = 'elsewhere'`,
		"another database, slot renamed": `update webhooks.checkpoint set database = 'other', slot = 'elsewhere'`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			before := takeTerm(t, db)
			addEvents(t, env, "evt", 2)
			env.Exec(t, change+`, horizon = '2000000000:2000000000:', lsn = pg_current_wal_insert_lsn() + 1000000000`)
			_, err := db.Preflight(t.Context())
			wantProblem(t, err, "checkpoint: it is of another", "webhook-agent adopt --disable-endpoints")
			tailer := NewTailer(db.cfg, testLog(t))
			must(t, tailer.Connect(t.Context()))
			defer tailer.Close()
			_, err = db.configured().PrepareSlot(t.Context(), tailer, "test", func(LSN) (bool, error) { return true, nil }, func(error) {})
			wantProblem(t, err, "checkpoint: it is of another")
			_, err = db.configured().TakeOver(t.Context(), tailer, "test")
			if err == nil {
				t.Fatal("an agent took over in a copy")
			}
			done, err := db.Adopt(t.Context(), "somebody", false)
			must(t, err)
			if !done.Adopted || done.SystemID != tailer.System.SystemID || done.Database != env.Name {
				t.Errorf("adopted: %+v", done)
			}
			_, err = db.Preflight(t.Context())
			must(t, err)
			again, err := db.Adopt(t.Context(), "somebody", false)
			must(t, err)
			if again.Adopted {
				t.Error("there was something to adopt again")
			}
			c := compareFirst(t, db, env)
			if term := c.cfg.Term; term.Gap == "" || term.Epoch <= before.Epoch {
				t.Errorf("the term after adopt is %+v, the one before had epoch %d", term, before.Epoch)
			}
			if got := c.runSettled(t, true); got != 2 {
				t.Errorf("recovered %d of 2", got)
			}
		})
	}
}

func TestAdopt_AFailoverNeedsNobodyAndNeitherDoesAFirstRun(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	done, err := db.Adopt(t.Context(), "somebody", false)
	must(t, err)
	if done.Adopted {
		t.Error("there was something to adopt before the first run")
	}
	takeTerm(t, db)
	env.Exec(t, `update webhooks.checkpoint set timeline = timeline + 1`)
	_, err = db.Preflight(t.Context())
	must(t, err)
	// A slot under another name on its own server is no copy either.
	env.Exec(t, `update webhooks.checkpoint set slot = 'elsewhere'`)
	_, err = db.Preflight(t.Context())
	must(t, err)
}

func TestAdopt_OfACopySwitchesEverythingOff(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addReplay(t, env, "rpl_1", `{missed}`)
	takeTerm(t, db)
	_, err := db.Adopt(t.Context(), "somebody", true)
	wantProblem(t, err, "it is of this server and database already, so nothing was changed", "webhook-agent endpoints disable")
	if on := testenv.QueryOne[bool](t, env, selectAnythingOn); !on {
		t.Fatal("a refusal switched something off")
	}
	env.Exec(t, `update webhooks.checkpoint set database = 'other'`)
	done, err := db.Adopt(t.Context(), "somebody", true)
	must(t, err)
	if done.DisabledEndpoints != 1 || done.EndedReplays != 1 || testenv.QueryOne[bool](t, env, selectAnythingOn) {
		t.Errorf("adopted: %+v", done)
	}
	_, err = db.Adopt(t.Context(), "somebody", true)
	must(t, err) // everything is switched off already
}
