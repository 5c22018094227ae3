package outbox

import (
	"encoding/binary"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pglogrepl"
)

// tupleOf makes a row: nil is NULL, toast an unchanged value that was left out.
func tupleOf(values ...any) *pglogrepl.TupleData {
	row := &pglogrepl.TupleData{ColumnNum: uint16(len(values))}
	for _, v := range values {
		c := &pglogrepl.TupleDataColumn{DataType: pglogrepl.TupleDataTypeNull}
		switch v := v.(type) {
		case string:
			c.DataType, c.Data = pglogrepl.TupleDataTypeText, []byte(v)
		case toast:
			c.DataType = pglogrepl.TupleDataTypeToast
		}
		row.Columns = append(row.Columns, c)
	}
	return row
}

type toast struct{}

func relationOf(id uint32, schema, name string, columns ...string) *pglogrepl.RelationMessage {
	m := &pglogrepl.RelationMessage{RelationID: id, Namespace: schema, RelationName: name, ColumnNum: uint16(len(columns))}
	for _, c := range columns {
		m.Columns = append(m.Columns, &pglogrepl.RelationMessageColumn{Name: c})
	}
	return m
}

const (
	outboxRelation    = 1
	endpointsRelation = 2
	replaysRelation   = 3
	otherRelation     = 4
)

var endpointColumns = []string{"id", "venue", "url", "events", "secret", "previous_secret", "previous_secret_until", "description",
	"disabled_at", "disabled_reason", "managed_by", "generation", "created", "updated"}

// newTestDecoder returns a decoder that knows the relations by the constants above.
func newTestDecoder(t testing.TB) *decoder {
	d := newDecoder(testConfig("", ""), &mapping{})
	for _, m := range []*pglogrepl.RelationMessage{
		relationOf(outboxRelation, "webhooks", "outbox", "created", "added", "id", "type", "venue", "data"),
		relationOf(endpointsRelation, "webhooks", "endpoints", endpointColumns...),
		relationOf(replaysRelation, "webhooks", "replays", "id", "endpoint_id"),
		relationOf(otherRelation, "public", "outbox", "id"),
	} {
		if err := d.describe(m); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestDecoder_FindsEventColumnsByName(t *testing.T) {
	committed := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		created any
		want    time.Time
	}{
		{"2025-05-10 14:32:00.5+00", time.Date(2025, 5, 10, 14, 32, 0, 500_000_000, time.UTC)},
		{"infinity", committed},
		{nil, committed},
	} {
		c, ok, err := newTestDecoder(t).insert(&pglogrepl.InsertMessage{RelationID: outboxRelation,
			Tuple: tupleOf(test.created, "more", "evt_1", "lead.created", "venue_1", `{"a": 1}`)}, committed)
		must(t, err)
		want := &Event{ID: "evt_1", Type: "lead.created", Venue: "venue_1", Created: test.want, Undated: test.want.Equal(committed), Data: []byte(`{"a": 1}`)}
		if diff := cmp.Diff(want, c.Event, cmpopts.IgnoreUnexported(Event{})); !ok || diff != "" {
			t.Errorf("created %v: ok %t (-want +got):\n%s", test.created, ok, diff)
		}
	}
}

func TestDecoder_StopsAtAMissingColumnOnly(t *testing.T) {
	d := newTestDecoder(t)
	err := d.describe(relationOf(outboxRelation, "webhooks", "outbox", "id", "kind", "venue", "data", "created"))
	wantProblem(t, err, "table webhooks.outbox", `no column "type"`, "[outbox.columns]")
	must(t, d.describe(relationOf(outboxRelation, "webhooks", "outbox", "data", "created", "id", "venue", "type")))
	c, _, err := d.insert(&pglogrepl.InsertMessage{RelationID: outboxRelation, Tuple: tupleOf("{}", "2025-05-10", "evt_1", "v", "t")}, time.Time{})
	must(t, err)
	if c.Event.ID != "evt_1" || c.Event.Type != "t" || c.Event.Venue != "v" {
		t.Errorf("the latest description was not used: %+v", c.Event)
	}
	must(t, d.describe(relationOf(endpointsRelation, "webhooks", "endpoints", "id", "venue")))
	_, _, err = d.insert(&pglogrepl.InsertMessage{RelationID: endpointsRelation, Tuple: tupleOf("ep_1", "v")}, time.Time{})
	wantProblem(t, err, "schema webhooks", `no column "url"`, "webhook-agent migrate")
}

func TestDecoder_DecodesEndpoints(t *testing.T) {
	d := newTestDecoder(t)
	row := tupleOf("ep_1", "venue_1", "https://h.example/", `{lead.*,"a,\"b"}`, "s", "old", "2026-01-01 00:00:00+00", "books",
		"2025-01-01 00:00:00+00", "manual", nil, "7", "2024-01-01 00:00:00+00", "2024-01-02 00:00:00+00")
	c, ok, err := d.update(&pglogrepl.UpdateMessage{RelationID: endpointsRelation, NewTuple: row})
	must(t, err)
	e := c.Endpoint.Endpoint
	if !ok || c.Endpoint.ID != "ep_1" || e.Venue != "venue_1" || e.URL.Reveal() != "https://h.example/" || !cmp.Equal(e.Events, []string{"lead.*", `a,"b`}) ||
		e.Secret.Reveal() != "s" || e.Previous.Reveal() != "old" || e.PreviousUntil.Year() != 2026 || !e.Disabled || e.DisabledReason != ReasonManual ||
		e.Generation != 7 || e.Created.Year() != 2024 {
		t.Errorf("decoded %+v", e)
	}

	row = tupleOf("ep_2", "venue_1", toast{}, "{*,NULL}", toast{}, "old", nil, "", nil, nil, nil, "1", "infinity", nil)
	c, ok, err = d.insert(&pglogrepl.InsertMessage{RelationID: endpointsRelation, Tuple: row}, time.Time{})
	must(t, err)
	e = c.Endpoint.Endpoint
	if !ok || e.Disabled || !cmp.Equal(e.Events, []string{"*", ""}) || !e.Previous.IsZero() || !e.Created.IsZero() || !cmp.Equal(c.Endpoint.unchanged, []string{"url", "secret"}) {
		t.Errorf("decoded %+v, unchanged %q", e, c.Endpoint.unchanged)
	}
}

func TestDecoder_TellsRemovedEndpoints(t *testing.T) {
	d := newTestDecoder(t)
	c, ok, err := d.delete(&pglogrepl.DeleteMessage{RelationID: endpointsRelation, OldTuple: tupleOf("ep_1")})
	must(t, err)
	if !ok || !c.Endpoint.Removed || c.Endpoint.ID != "ep_1" {
		t.Errorf("delete: %t %+v", ok, c.Endpoint)
	}
	c, ok, err = d.truncate(&pglogrepl.TruncateMessage{RelationIDs: []uint32{otherRelation, endpointsRelation}})
	must(t, err)
	if !ok || !c.Endpoint.AllRemoved || c.Endpoint.Removed {
		t.Errorf("truncate: %t %+v", ok, c.Endpoint)
	}
}

func TestDecoder_LeavesOutTablesOfNoInterest(t *testing.T) {
	d := newTestDecoder(t)
	_, inserted, err := d.insert(&pglogrepl.InsertMessage{RelationID: otherRelation, Tuple: tupleOf("x")}, time.Time{})
	must(t, err)
	_, updated, err := d.update(&pglogrepl.UpdateMessage{RelationID: outboxRelation, NewTuple: tupleOf("x")})
	must(t, err)
	_, deleted, err := d.delete(&pglogrepl.DeleteMessage{RelationID: otherRelation, OldTuple: tupleOf("x")})
	must(t, err)
	_, truncated, err := d.truncate(&pglogrepl.TruncateMessage{RelationIDs: []uint32{outboxRelation}})
	must(t, err)
	if inserted || updated || deleted || truncated {
		t.Errorf("took in an insert %t, update %t, delete %t, truncate %t of tables of no interest", inserted, updated, deleted, truncated)
	}
	_, _, err = d.insert(&pglogrepl.InsertMessage{RelationID: 99, Tuple: tupleOf("x")}, time.Time{})
	wantError(t, err, errDecode)
	for _, short := range []*pglogrepl.TupleData{nil, tupleOf(), tupleOf("2025-05-10", "", "evt_1", "t", "v")} {
		_, _, err = d.insert(&pglogrepl.InsertMessage{RelationID: outboxRelation, Tuple: short}, time.Time{})
		wantError(t, err, errDecode)
	}
}

func TestParse_IgnoresTheStrayStreamAbort(t *testing.T) {
	if msg, err := parse([]byte{'A', 0, 0, 0, 1, 0, 0, 0, 1}); msg != nil || err != nil {
		t.Errorf("got %v, %v", msg, err)
	}
	truncated := insertBytes(outboxRelation, "evt_1")
	for _, data := range [][]byte{nil, {'Z'}, {'B', 1, 2}, {'R', 0, 0, 0, 1, 'x'}, {'I'}, truncated[:len(truncated)-1], truncated[:9],
		[]byte("R\x00\x00\x00\x01webhooks\x00outbox\x00d\x00\x02\x00id\x00")} {
		_, err := parse(data)
		if !errors.Is(err, errDecode) {
			t.Errorf("%q: %v", data, err)
		}
	}
}

func TestParseTimestamp_TakesWhatPostgreSQLPrints(t *testing.T) {
	for text, want := range map[string]time.Time{
		"2025-05-10 14:32:00+00":        time.Date(2025, 5, 10, 14, 32, 0, 0, time.UTC),
		"2025-05-10 14:32:00.123456+00": time.Date(2025, 5, 10, 14, 32, 0, 123_456_000, time.UTC),
		"2025-05-10 14:32:00.1":         time.Date(2025, 5, 10, 14, 32, 0, 100_000_000, time.UTC),
		"2025-05-10":                    time.Date(2025, 5, 10, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := parseTimestamp(text); err != nil || !got.Equal(want) || got.Location() != time.UTC {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "20000-01-01 00:00:00+00", "14:32"} {
		if got, err := parseTimestamp(text); err == nil {
			t.Errorf("%q: %v, want an error", text, got)
		}
	}
}

func FuzzParseTimestamp(f *testing.F) {
	f.Add("2025-05-10 14:32:00.123456+00")
	f.Add("2025-05-10 14:32:00")
	f.Add("infinity")
	f.Add("9999-12-31 23:00:00-05")
	f.Fuzz(func(t *testing.T, text string) {
		at, err := parseTimestamp(text)
		if err != nil || at.Year() < 0 || at.Year() > 9999 {
			return // only an offset can lead to such a year, and the session, being in UTC, prints none
		}
		again, err := parseTimestamp(at.Format("2006-01-02 15:04:05.999999999Z07"))
		if err != nil || !again.Equal(at) {
			t.Errorf("%q is %v, printed and parsed again %v (%v)", text, at, again, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{'A'})
	f.Add(insertBytes(outboxRelation, "evt_1"))
	f.Add(insertBytes(outboxRelation, "evt_1")[:9])
	f.Add([]byte("R\x00\x00\x00\x01webhooks\x00outbox\x00d\x00\x01\x00id\x00\x00\x00\x00\x19\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := parse(data); err != nil && !errors.Is(err, errDecode) {
			t.Errorf("%q: %v is not marked as undecodable", data, err)
		}
	})
}

// FuzzDecode feeds messages to a decoder that knows the tables, so that rows of any shape meet descriptions of any shape.
func FuzzDecode(f *testing.F) {
	f.Add(insertBytes(outboxRelation, "2025-05-10", "", "evt_1", "t", "v", "{}"), []byte{'T', 0, 0, 0, 1, 0, 0, 0, 0, 2})
	f.Add(insertBytes(outboxRelation, "2025-05-10", "", "evt_1", "t", "v"), []byte{})
	f.Add(insertBytes(endpointsRelation, "ep_1", "v", "u", "{*}", "s", "", "", "", "", "", "", "1", "2025-05-10", ""), []byte{})
	f.Add([]byte("R\x00\x00\x00\x01webhooks\x00outbox\x00d\x00\x01\x00id\x00\x00\x00\x00\x19\xff\xff\xff\xff"), insertBytes(outboxRelation, "x"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		d := newTestDecoder(t)
		for _, data := range [][]byte{first, second} {
			msg, err := parse(data)
			if err != nil {
				continue
			}
			switch m := msg.(type) {
			case *pglogrepl.RelationMessage:
				_ = d.describe(m)
			case *pglogrepl.InsertMessage:
				_, _, _ = d.insert(m, time.Time{})
			case *pglogrepl.UpdateMessage:
				_, _, _ = d.update(m)
			case *pglogrepl.DeleteMessage:
				_, _, _ = d.delete(m)
			case *pglogrepl.TruncateMessage:
				_, _, _ = d.truncate(m)
			}
		}
	})
}

// insertBytes spells an Insert message.
func insertBytes(relation uint32, values ...string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'I'}, relation)
	b = append(b, 'N')
	b = binary.BigEndian.AppendUint16(b, uint16(len(values)))
	for _, v := range values {
		b = append(b, 't')
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	return b
}

func TestParse_MakesNoRoomForWhatIsNotThere(t *testing.T) {
	for _, data := range []string{
		"T\x54\x54\x54\x54\x00abcd", "T\x00", "I\x00", "I\x00\x00\x00\x01N\x00", "I\x00\x00\x00\x01N\x00\x02t\x00\x00\x00\x01a",
		"I\x00\x00\x00\x01N\x00\x01t\x7f\xff\xff\xffabc", "U\x00\x00\x00\x01K\x00\x01nN\x00\x01t\x7f\xff\xff\xffabc",
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := parse([]byte(data))
		runtime.ReadMemStats(&after)
		if made := after.TotalAlloc - before.TotalAlloc; made > 1<<20 || !errors.Is(err, errDecode) {
			t.Errorf("%q: %d bytes were allocated, %v", data, made, err)
		}
	}
}
