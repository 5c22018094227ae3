package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"
)

// messageOf builds a message of a row. nil is NULL. toast is an unchanged value that was left out.
func messageOf(kind byte, relation uint32, role byte, values ...any) []byte {
	b := append(binary.BigEndian.AppendUint32([]byte{kind}, relation), role)
	b = binary.BigEndian.AppendUint16(b, uint16(len(values)))
	for _, v := range values {
		switch v := v.(type) {
		case string:
			b = append(binary.BigEndian.AppendUint32(append(b, 't'), uint32(len(v))), v...)
		case toast:
			b = append(b, 'u')
		default:
			b = append(b, 'n')
		}
	}
	return b
}

func insertOf(relation uint32, values ...any) []byte { return messageOf('I', relation, 'N', values...) }
func updateOf(relation uint32, values ...any) []byte { return messageOf('U', relation, 'N', values...) }
func deleteOf(relation uint32, values ...any) []byte { return messageOf('D', relation, 'K', values...) }

func truncateOf(relations ...uint32) []byte {
	b := append(binary.BigEndian.AppendUint32([]byte{'T'}, uint32(len(relations))), 0)
	for _, relation := range relations {
		b = binary.BigEndian.AppendUint32(b, relation)
	}
	return b
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

var allEndpointColumns = []string{"id", "venue", "url", "events", "secret", "previous_secret", "previous_secret_until", "description",
	"disabled_at", "disabled_reason", "managed_by", "generation", "created", "updated"}

// newTestDecoder returns a decoder that knows the relations of the constants above.
func newTestDecoder(t testing.TB) *decoder {
	d := newDecoder(testConfig("", ""), &mapping{})
	for _, m := range []*pglogrepl.RelationMessage{
		relationOf(outboxRelation, "webhooks", "outbox", "created", "added", "id", "type", "venue", "data"),
		relationOf(endpointsRelation, "webhooks", "endpoints", allEndpointColumns...),
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
		c, ok, err := newTestDecoder(t).change(insertOf(outboxRelation, test.created, "more", "evt_1", "lead.created", "venue_1", `{"a": 1}`), committed)
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
	c, _, err := d.change(insertOf(outboxRelation, "{}", "2025-05-10", "evt_1", "v", "t"), time.Time{})
	must(t, err)
	if c.Event.ID != "evt_1" || c.Event.Type != "t" || c.Event.Venue != "v" {
		t.Errorf("the latest description was not used: %+v", c.Event)
	}
	must(t, d.describe(relationOf(endpointsRelation, "webhooks", "endpoints", "id", "venue")))
	_, _, err = d.change(insertOf(endpointsRelation, "ep_1", "v"), time.Time{})
	wantProblem(t, err, "schema webhooks", `no column "url"`, "webhook-agent migrate")
}

func TestDecoder_DecodesEndpoints(t *testing.T) {
	d := newTestDecoder(t)
	row := updateOf(endpointsRelation, "ep_1", "venue_1", "https://h.example/", `{lead.*,"a,\"b"}`, "s", "old", "2026-01-01 00:00:00+00", "books",
		"2025-01-01 00:00:00+00", "manual", nil, "7", "2024-01-01 00:00:00+00", "2024-01-02 00:00:00+00")
	c, ok, err := d.change(row, time.Time{})
	must(t, err)
	e := c.Endpoint.Endpoint
	if !ok || c.Endpoint.ID != "ep_1" || e.Venue != "venue_1" || e.URL.Reveal() != "https://h.example/" || !cmp.Equal(e.Events, []string{"lead.*", `a,"b`}) ||
		e.Secret.Reveal() != "s" || e.Previous.Reveal() != "old" || e.PreviousUntil.Year() != 2026 || !e.Disabled || e.DisabledReason != ReasonManual ||
		e.Generation != 7 || e.Created.Year() != 2024 {
		t.Errorf("decoded %+v", e)
	}

	row = insertOf(endpointsRelation, "ep_2", "venue_1", toast{}, "{*,NULL}", toast{}, "old", nil, "", nil, nil, nil, "1", "infinity", nil)
	c, ok, err = d.change(row, time.Time{})
	must(t, err)
	e = c.Endpoint.Endpoint
	if !ok || e.Disabled || !cmp.Equal(e.Events, []string{"*", ""}) || !e.Previous.IsZero() || !e.Created.IsZero() || !cmp.Equal(c.Endpoint.unchanged, []string{"url", "secret"}) {
		t.Errorf("decoded %+v, unchanged %q", e, c.Endpoint.unchanged)
	}
}

func TestDecoder_TellsRemovedEndpoints(t *testing.T) {
	d := newTestDecoder(t)
	c, ok, err := d.change(deleteOf(endpointsRelation, "ep_1"), time.Time{})
	must(t, err)
	if !ok || !c.Endpoint.Removed || c.Endpoint.ID != "ep_1" {
		t.Errorf("delete: %t %+v", ok, c.Endpoint)
	}
	c, ok, err = d.truncate(truncateOf(otherRelation, endpointsRelation))
	must(t, err)
	if !ok || !c.Endpoint.AllRemoved || c.Endpoint.Removed {
		t.Errorf("truncate: %t %+v", ok, c.Endpoint)
	}
}

func TestDecoder_LeavesOutTablesOfNoInterest(t *testing.T) {
	d := newTestDecoder(t)
	_, inserted, err := d.change(insertOf(otherRelation, "x"), time.Time{})
	must(t, err)
	_, updated, err := d.change(updateOf(outboxRelation, "x"), time.Time{})
	must(t, err)
	_, deleted, err := d.change(deleteOf(otherRelation, "x"), time.Time{})
	must(t, err)
	_, truncated, err := d.truncate(truncateOf(outboxRelation))
	must(t, err)
	if inserted || updated || deleted || truncated {
		t.Errorf("took in an insert %t, update %t, delete %t, truncate %t of tables of no interest", inserted, updated, deleted, truncated)
	}
	_, _, err = d.change(insertOf(99, "x"), time.Time{})
	wantError(t, err, errDecode)
	for _, short := range [][]byte{insertOf(outboxRelation), insertOf(outboxRelation, "2025-05-10", "", "evt_1", "t", "v"), insertOf(endpointsRelation, "ep_1"), deleteOf(endpointsRelation)} {
		_, _, err = d.change(short, time.Time{})
		wantError(t, err, errDecode)
	}
}

// read reads a message of any kind as the tailer does.
func (d *decoder) read(message []byte) (c Change, ok bool, err error) {
	if len(message) == 0 {
		return c, false, errDecode
	}
	switch message[0] {
	case msgInsert, msgUpdate, msgDelete:
		return d.change(message, time.Time{})
	case msgTruncate:
		return d.truncate(message)
	}
	return c, false, d.learn(message)
}

func TestDecoder_IgnoresTheStrayStreamAbort(t *testing.T) {
	if _, ok, err := newTestDecoder(t).read([]byte{'A', 0, 0, 0, 1, 0, 0, 0, 1}); ok || err != nil {
		t.Errorf("got %v, %v", ok, err)
	}
}

func TestDecoder_RefusesWhatTheProtocolDoesNotHave(t *testing.T) {
	whole := insertOf(outboxRelation, "2025-05-10", "", "evt_1", "t", "v", "{}")
	for _, message := range []string{
		"Z", "R\x00\x00\x00\x01x", "R\x00\x00\x00\x01webhooks\x00outbox\x00d\x00\x02\x00id\x00",
		string(whole[:len(whole)-1]), string(whole[:9]), string(whole) + "x", string(messageOf('I', outboxRelation, 'K', "2025-05-10", "", "evt_1", "t", "v", "{}")),
		string(messageOf('D', endpointsRelation, 'N', "ep_1")), string(messageOf('U', endpointsRelation, 'K', "ep_1")),
	} {
		if _, _, err := newTestDecoder(t).read([]byte(message)); !errors.Is(err, errDecode) {
			t.Errorf("%q: %v", message, err)
		}
	}
}

// The old row or the old key comes with an update under REPLICA IDENTITY FULL, and with a change of
// the key.
func TestDecoder_ReadsTheNewRowOfAnUpdate(t *testing.T) {
	for _, role := range []byte{'K', 'O'} {
		message := append(messageOf('U', endpointsRelation, role, "ep_0", "v"), updateOf(endpointsRelation, "ep_1", "venue_1", "https://h.example/", "{*}", "s", nil, nil,
			"", nil, nil, nil, "1", "2024-01-01 00:00:00+00", nil)[5:]...)
		c, ok, err := newTestDecoder(t).read(message)
		must(t, err)
		if !ok || c.Endpoint.ID != "ep_1" || c.Endpoint.Endpoint.Venue != "venue_1" {
			t.Errorf("%q: %t %+v", role, ok, c.Endpoint)
		}
	}
}

// What the decoder keeps of a message must not change when the message's buffer changes.
func TestDecoder_KeepsNothingOfTheBuffer(t *testing.T) {
	d := newTestDecoder(t)
	event := insertOf(outboxRelation, "2025-05-10", "", "evt_1", "lead.created", "v", `{"a": 1}`)
	endpoint := insertOf(endpointsRelation, "ep_1", "venue_1", "https://h.example/", "{lead.*}", "s", "old", "2026-01-01 00:00:00+00", "", nil, nil, nil, "1", "2024-01-01 00:00:00+00", nil)
	var got, want [2]Change
	for i, message := range [][]byte{event, endpoint} {
		var err error
		want[i], _, err = newTestDecoder(t).read(bytes.Clone(message))
		must(t, err)
		got[i], _, err = d.read(message)
		must(t, err)
		clear(message)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v %+v, want %+v %+v", got[0].Event, got[1].Endpoint.Endpoint, want[0].Event, want[1].Endpoint.Endpoint)
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
			return // only an offset leads to such a year, and a session in UTC prints none
		}
		again, err := parseTimestamp(at.Format("2006-01-02 15:04:05.999999999Z07"))
		if err != nil || !again.Equal(at) {
			t.Errorf("%q is %v, printed and parsed again %v (%v)", text, at, again, err)
		}
	})
}

// FuzzParseUTC compares the fast path of parseTimestamp with time.Parse.
func FuzzParseUTC(f *testing.F) {
	for _, text := range []string{"2025-05-10 14:32:00.123456+00", "2024-02-29 00:00:00", "2025-02-30 00:00:00+00", "2025-13-01 00:00:00", "2025-05-10 24:00:00+00", "2025-05-10 14:32:00."} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		at, ok := parseUTC(text)
		if !ok {
			return
		}
		want, err := time.Parse("2006-01-02 15:04:05.999999999", strings.TrimSuffix(text, "+00"))
		if err != nil || !at.Equal(want) || at.Location() != time.UTC {
			t.Errorf("%q is %v, want %v (%v)", text, at, want, err)
		}
	})
}

// FuzzParseTextArray compares parseTextArray with the codec of pgx, for all texts that an array can
// hold.
func FuzzParseTextArray(f *testing.F) {
	f.Add("lead.*", "", true, uint8(2))
	f.Add(`a,"b\c}`, " NULL", false, uint8(1))
	f.Add("null", "NULL", true, uint8(0))
	types := pgtype.NewMap()
	f.Fuzz(func(t *testing.T, first, second string, null bool, lower uint8) {
		elements := []*string{&first, &second}
		want := []string{first, second}
		if null {
			elements, want = append(elements, nil), append(want, "")
		}
		array := pgtype.Array[*string]{Elements: elements, Dims: []pgtype.ArrayDimension{{Length: int32(len(elements)), LowerBound: int32(lower)}}, Valid: true}
		text, err := types.Encode(pgtype.TextArrayOID, pgtype.TextFormatCode, array, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := parseTextArray(string(text)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	})
}

func TestParseEvents_TakesWhatPostgreSQLPrints(t *testing.T) {
	for array, want := range map[string][]string{
		"{}": {}, "": nil, "{a}": {"a"}, "{a,b.*}": {"a", "b.*"}, `{"a,b","c\"d\\",""}`: {"a,b", `c"d\`, ""}, "{NULL,null}": {"", "null"}, `{"NULL"}`: {"NULL"},
		"[0:1]={a,b}": {"a", "b"}, "{{a,b},{c,NULL}}": {"a", "b", "c", ""}, `{{"a}","{b"},{c,"d"}}`: {"a}", "{b", "c", "d"}, `{"{a"}`: {"{a"},
	} {
		if got := parseTextArray(array); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", array, got, want)
		}
	}
}

// FuzzRow compares the reading of rows with that of pglogrepl.
func FuzzRow(f *testing.F) {
	f.Add(insertOf(outboxRelation, "evt_1", nil, toast{}))
	f.Add(append(messageOf('U', endpointsRelation, 'O', "ep_1"), updateOf(endpointsRelation, "ep_2")[5:]...))
	f.Add(deleteOf(endpointsRelation, "ep_1", nil))
	f.Add(insertOf(outboxRelation, "evt_1")[:9])
	f.Add([]byte("I\x00\x00\x00\x01N\x00\x01b\x00\x00\x00\x01a"))
	f.Add([]byte("I\x00\x00\x00\x01N\x00\x01t\x7f\xff\xff\xffabc"))
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) == 0 || message[0] != msgInsert && message[0] != msgUpdate && message[0] != msgDelete {
			return
		}
		m, err := readRow(message, nil)
		if err != nil {
			if !errors.Is(err, errDecode) {
				t.Errorf("%q: %v is not marked as undecodable", message, err)
			}
			return
		}
		parsed, err := pglogrepl.Parse(message)
		if err != nil {
			if len(message) < 9 { // pglogrepl has no rows without columns
				return
			}
			t.Fatalf("%q: %v", message, err)
		}
		var (
			relation uint32
			tuple    *pglogrepl.TupleData
		)
		switch p := parsed.(type) {
		case *pglogrepl.InsertMessage:
			relation, tuple = p.RelationID, p.Tuple
		case *pglogrepl.UpdateMessage:
			relation, tuple = p.RelationID, p.NewTuple
		case *pglogrepl.DeleteMessage:
			relation, tuple = p.RelationID, p.OldTuple
		}
		if m.relation != relation || len(m.row) != len(tuple.Columns) {
			t.Fatalf("%q: relation %d with %d values, want %d with %d", message, m.relation, len(m.row), relation, len(tuple.Columns))
		}
		for i, v := range m.row {
			if c := tuple.Columns[i]; v.kind != c.DataType || !bytes.Equal(v.text, c.Data) {
				t.Errorf("%q: value %d is %q %q, want %q %q", message, i, v.kind, v.text, c.DataType, c.Data)
			}
		}
	})
}

// FuzzDecode feeds messages to a decoder that knows the tables. So rows of any shape meet
// descriptions of any shape.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{'A'}, []byte{'Z'})
	f.Add(insertOf(outboxRelation, "2025-05-10", "", "evt_1", "t", "v", "{}"), truncateOf(endpointsRelation))
	f.Add(insertOf(outboxRelation, "2025-05-10", "", "evt_1", "t", "v"), []byte{})
	f.Add(insertOf(endpointsRelation, "ep_1", "v", "u", "{*}", "s", "", "", "", "", "", "", "1", "2025-05-10", ""), []byte{})
	f.Add([]byte("R\x00\x00\x00\x01webhooks\x00outbox\x00d\x00\x01\x00id\x00\x00\x00\x00\x19\xff\xff\xff\xff"), insertOf(outboxRelation, "x"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		d := newTestDecoder(t)
		for _, message := range [][]byte{first, second} {
			_, _, err := d.read(message)
			if err == nil || errors.Is(err, errDecode) {
				continue
			}
			if _, told := errors.AsType[*Problem](err); !told && !errors.Is(err, errMappingChanged) {
				t.Errorf("%q: %v is neither undecodable nor a problem", message, err)
			}
		}
	})
}

func TestDecoder_MakesNoRoomForWhatIsNotThere(t *testing.T) {
	for _, message := range []string{
		"T\x54\x54\x54\x54\x00abcd", "T\x00", "I\x00", "I\x00\x00\x00\x01N\x00", "I\x00\x00\x00\x01N\x00\x02t\x00\x00\x00\x01a",
		"I\x00\x00\x00\x01N\x00\x01t\x7f\xff\xff\xffabc", "U\x00\x00\x00\x01K\x00\x01nN\x00\x01t\x7f\xff\xff\xffabc",
	} {
		d := newTestDecoder(t)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := d.read([]byte(message))
		runtime.ReadMemStats(&after)
		if made := after.TotalAlloc - before.TotalAlloc; made > 1<<20 || !errors.Is(err, errDecode) {
			t.Errorf("%q: %d bytes were allocated, %v", message, made, err)
		}
	}
}
