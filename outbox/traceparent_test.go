package outbox

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/quintago/webhook-agent/testenv"
)

const testTraceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestParseTraceparent_TakesOnlyTheRightForm(t *testing.T) {
	got := parseTraceparent([]byte(testTraceparent))
	if got != testTraceparent || got.TraceID() != "4bf92f3577b34da6a3ce929d0e0e4736" || got.SpanID() != "00f067aa0ba902b7" || !got.Sampled() {
		t.Errorf("got %q, %s, %s, %t", got, got.TraceID(), got.SpanID(), got.Sampled())
	}
	for flags, sampled := range map[string]bool{"00": false, "01": true, "02": false, "03": true, "0a": false, "0b": true, "fe": false, "ff": true} {
		text := testTraceparent[:53] + flags
		if got := parseTraceparent([]byte(text)); string(got) != text || got.Sampled() != sampled {
			t.Errorf("flags %s: %q, sampled %t", flags, got, got.Sampled())
		}
	}
	for _, text := range []string{
		"", "x", testTraceparent + "-00", testTraceparent[:54], " " + testTraceparent[1:], "01" + testTraceparent[2:], "ff" + testTraceparent[2:],
		strings.ToUpper(testTraceparent), strings.Replace(testTraceparent, "-", "_", 1), strings.Replace(testTraceparent, "f0", "g0", 1),
		"00-" + strings.Repeat("0", 32) + testTraceparent[35:], testTraceparent[:36] + strings.Repeat("0", 16) + "-01",
		testTraceparent[:35] + "a" + testTraceparent[36:], "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7\r\nX",
	} {
		if got := parseTraceparent([]byte(text)); got != "" {
			t.Errorf("%q was taken", text)
		}
	}
}

// What FuzzParseTraceparent finds must be fit for a header.
func FuzzParseTraceparent(f *testing.F) {
	f.Add(testTraceparent)
	f.Add("00-00000000000000000000000000000000-0000000000000000-00")
	f.Fuzz(func(t *testing.T, text string) {
		got := parseTraceparent([]byte(text))
		if got == "" {
			return
		}
		if string(got) != text || len(text) != 55 || strings.Trim(text, "0123456789abcdef-") != "" {
			t.Errorf("%q became %q", text, got)
		}
		if again := "00-" + got.TraceID() + "-" + got.SpanID() + "-" + text[53:]; again != text {
			t.Errorf("%q has the parts of %q", text, again)
		}
	})
}

// A table has the column under another name. A row with none, and one with a wrong one, are events
// as well.
func TestTraceparent_ComesByTheStreamAndByARefill(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	env.Exec(t, `alter table webhooks.outbox add column trace text`)
	cfg := testConfig(env.URL, env.Slot)
	cfg.Columns.Traceparent = "trace"
	db, err := Open(t.Context(), cfg)
	must(t, err)
	defer db.Close()

	at := time.Now().Truncate(time.Microsecond)
	want := map[string]Traceparent{"evt_1": testTraceparent, "evt_2": "", "evt_3": ""}
	for id, trace := range map[string]any{"evt_1": testTraceparent, "evt_2": nil, "evt_3": "wrong"} {
		addPending(t, env, id, "ep_1", at, 0)
		env.Exec(t, `update webhooks.outbox set trace = $1 where id = $2`, trace, id)
	}
	refills, err := db.configured().Due(t.Context(), []Want{wantAll("ep_1", 10)}, at, 1<<20)
	must(t, err)
	if n := len(refills["ep_1"].Deliveries); n != len(want) {
		t.Fatalf("%d deliveries came back", n)
	}
	for _, d := range refills["ep_1"].Deliveries {
		if d.Traceparent != want[d.EventID] {
			t.Errorf("%s came back with %q, want %q", d.EventID, d.Traceparent, want[d.EventID])
		}
	}

	d := newDecoder(cfg, &mapping{})
	must(t, d.describe(relationOf(outboxRelation, "webhooks", "outbox", "id", "type", "venue", "data", "created", "trace")))
	for _, value := range []any{testTraceparent, nil, "wrong"} {
		c, _, err := d.change(insertOf(outboxRelation, "evt_1", "t", "v", "{}", "2025-05-10 14:32:00+00", value), time.Time{})
		must(t, err)
		var want Traceparent
		if value == testTraceparent {
			want = testTraceparent
		}
		if got := c.Event.Delivery("ep_1", time.Time{}, nil).Traceparent; got != want {
			t.Errorf("%v came by the stream as %q", value, got)
		}
	}
}

// The column only serves traces, so events come without it.
func TestTraceparent_StopsNothingWhereItsColumnIsGone(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	cfg := testConfig(env.URL, env.Slot)
	cfg.Columns.Traceparent = "trace"
	db, err := Open(t.Context(), cfg)
	must(t, err)
	defer db.Close()
	at := time.Now().Truncate(time.Microsecond)
	addPending(t, env, "evt_1", "ep_1", at, 0)
	refills, err := db.configured().Due(t.Context(), []Want{wantAll("ep_1", 10)}, at, 1<<20)
	must(t, err)
	if n := len(refills["ep_1"].Deliveries); n != 1 {
		t.Errorf("%d deliveries came back, want 1", n)
	}
	d := newTestDecoder(t)
	d.cfg.Columns.Traceparent = "trace"
	r := relationOf(outboxRelation, "webhooks", "outbox", "id", "type", "venue", "data", "created")
	r.Columns[4].DataType = pgtype.TimestamptzOID
	must(t, d.describe(r))
	if _, ok, err := d.change(insertOf(outboxRelation, "evt_1", "t", "v", "{}", "2025-05-10 14:32:00+00"), time.Time{}); !ok || err != nil {
		t.Errorf("the event came: %t, %v", ok, err)
	}
	if _, err := db.Preflight(t.Context()); err != nil {
		t.Errorf("no agent would start: %v", err)
	}
}
