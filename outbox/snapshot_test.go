package outbox

import (
	"math"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

func TestSnapshot_SeesWhatHadEnded(t *testing.T) {
	const epoch = 1 << 32
	for _, test := range []struct {
		snapshot string
		xid      uint32
		want     bool
	}{
		{"100:105:100,103", 99, true},
		{"100:105:100,103", 100, false},
		{"100:105:100,103", 101, true},
		{"100:105:100,103", 103, false},
		{"100:105:100,103", 104, true},
		{"100:105:100,103", 105, false},
		{"100:105:100,103", 106, false},
		{"100:100:", 99, true},
		{"100:100:", 100, false},
		// These are the same low halves in a later epoch.
		{strconv.Itoa(epoch+100) + ":" + strconv.Itoa(epoch+105) + ":" + strconv.Itoa(epoch+103), 103, false},
		{strconv.Itoa(epoch+100) + ":" + strconv.Itoa(epoch+105) + ":" + strconv.Itoa(epoch+103), 104, true},
		// These are around the wraparound: an id just below it is before the snapshot, and one just
		// above it is after.
		{strconv.Itoa(epoch+3) + ":" + strconv.Itoa(epoch+3) + ":", math.MaxUint32, true},
		{strconv.Itoa(epoch-2) + ":" + strconv.Itoa(epoch+3) + ":" + strconv.Itoa(epoch-1), math.MaxUint32, false},
		{strconv.Itoa(epoch-2) + ":" + strconv.Itoa(epoch+3) + ":" + strconv.Itoa(epoch-1), math.MaxUint32 - 1, true},
		{strconv.Itoa(epoch-2) + ":" + strconv.Itoa(epoch-2) + ":", 3, false},
	} {
		snapshot, err := ParseSnapshot(test.snapshot)
		if err != nil {
			t.Errorf("%s: %v", test.snapshot, err)
		} else if got := snapshot.Sees(test.xid); got != test.want {
			t.Errorf("%s sees %d: %t, want %t", test.snapshot, test.xid, got, test.want)
		}
	}
}

func TestParseSnapshot_RefusesOtherText(t *testing.T) {
	for _, text := range []string{"", "1:2", "1:2:3:4", "a:2:", "1:b:", "1:2:c", "-1:2:", "1:2:3,,x"} {
		if s, err := ParseSnapshot(text); err == nil {
			t.Errorf("%q gave %+v", text, s)
		}
	}
}

func TestSnapshot_AgreesWithPostgreSQL(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	const transactions = 20
	// Every third transaction ends before the snapshot, every third ends after it, and every third
	// is rolled back.
	var xids []string
	var open []pgx.Tx
	for i := range transactions {
		tx := begin(t, env)
		var xid string
		must(t, tx.QueryRow(t.Context(), `select pg_current_xact_id()::text`).Scan(&xid))
		xids = append(xids, xid)
		switch i % 3 {
		case 0:
			must(t, tx.Commit(t.Context()))
		case 1:
			open = append(open, tx)
		case 2:
			must(t, tx.Rollback(t.Context()))
		}
	}
	text := testenv.QueryOne[string](t, env, `select pg_current_snapshot()::text`)
	snapshot, err := ParseSnapshot(text)
	must(t, err)
	for _, tx := range open {
		must(t, tx.Commit(t.Context()))
	}
	after := begin(t, env)
	var xid string
	must(t, after.QueryRow(t.Context(), `select pg_current_xact_id()::text`).Scan(&xid))
	must(t, after.Commit(t.Context()))
	for _, xid := range append(xids, xid) {
		want := testenv.QueryOne[bool](t, env, `select pg_visible_in_snapshot($1::text::xid8, $2::text::pg_snapshot)`, xid, text)
		full, err := strconv.ParseUint(xid, 10, 64)
		must(t, err)
		if got := snapshot.Sees(uint32(full)); got != want {
			t.Errorf("snapshot %s sees %s: %t, PostgreSQL says %t", text, xid, got, want)
		}
	}
}
