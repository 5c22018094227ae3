package outbox

import (
	"slices"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

func TestVitals_ShowSlotBacklogAndClock(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	v, err := db.configured().Vitals(t.Context())
	must(t, err)
	if v.WALStatus != "" || v.LagBytes != 0 || v.Pending != 0 {
		t.Errorf("without a slot: %+v", v)
	}
	env.Exec(t, `select pg_create_logical_replication_slot($1, 'pgoutput')`, env.Slot)
	addEvents(t, env, "evt", 100)
	addPending(t, env, "evt_1", "ep_1", time.Now(), 0)
	addDelivery(t, env, "evt_2", "ep_1", "v", "t", Failed, 1)
	v, err = db.configured().Vitals(t.Context())
	must(t, err)
	if v.WALStatus != "reserved" || v.LagBytes <= 0 || v.RetainedBytes < v.LagBytes || v.Pending != 1 || v.ClockSkew.Abs() > time.Second {
		t.Errorf("got %+v", v)
	}
}

// One process has two slots. A term of one does not fence that of the other, nor does it make the
// other read the outbox's columns anew.
func TestSlots_OfOneDatabaseDoNotKnowOfEachOther(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database)
	    select name, '0/0', 0, '', '', 0, current_database() from unnest(array['one', 'two']) name`)
	one, two := db.Slot("one"), db.Slot("two")
	first, err := one.TakeOver(t.Context(), &Tailer{}, "test")
	must(t, err)
	kept, err := one.mapping(t.Context())
	must(t, err)
	for range 2 {
		_, err := two.TakeOver(t.Context(), &Tailer{}, "test")
		must(t, err)
	}
	must(t, one.CheckEpoch(t.Context(), first))
	wantError(t, two.CheckEpoch(t.Context(), first), ErrFenced)
	if again, err := one.mapping(t.Context()); err != nil || again != kept {
		t.Errorf("a term of the other slot has had the outbox looked at anew (%v)", err)
	}
	env.Exec(t, `update webhooks.checkpoint set recovering = false, epoch = 2`)
	must(t, two.NoteGap(t.Context(), Term{Epoch: 2}))
	if got := testenv.QueryAll[string](t, env, `select slot from webhooks.checkpoint where recovering`); !slices.Equal(got, []string{"two"}) {
		t.Errorf("gaps are noted of %q", got)
	}
	if db.cfg.Slot != env.Slot {
		t.Errorf("the configured slot is %q now", db.cfg.Slot)
	}
}
