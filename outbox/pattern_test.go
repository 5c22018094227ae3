package outbox

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/testenv"
)

func TestParsePatterns_NamesWhatIsWrongAndKeepsWhatIsRight(t *testing.T) {
	for _, wrong := range []string{"", "lead*", "*.x", "**", ".*", "lead.*.x", "lead.**", "lead. *", "l*ad", "lead.", "."} {
		p, err := ParsePatterns([]string{"payment.*", wrong, "lead.created"})
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("events has %q", wrong)) {
			t.Errorf("%q: error %v does not name it", wrong, err)
		}
		if want := (Patterns{Prefixes: []string{"payment."}, Types: []string{"lead.created"}}); !cmp.Equal(want, p) {
			t.Errorf("%q spoils the patterns beside it: %+v", wrong, p)
		}
	}
	if _, err := ParsePatterns(nil); err == nil || !strings.HasPrefix(err.Error(), "events names no event type") {
		t.Errorf("no patterns: %v", err)
	}
}

func TestParsePatterns_TakesARealTypeAsItIs(t *testing.T) {
	for _, eventType := range []string{"Lead Created", "LEAD", "a b.c", "lead/created", "Größe geändert", "a..b"} {
		p, err := ParsePatterns([]string{eventType})
		if err != nil || !p.Match(eventType) || p.Match(eventType+"x") || p.Match(strings.ToLower(eventType)+" ") {
			t.Errorf("%q: %+v, %v", eventType, p, err)
		}
	}
}

func TestParsePatterns_RefusesBlanksAtTheEndsAndInvisibleCharactersButKeepsTheEvents(t *testing.T) {
	for _, wrong := range []string{" lead.created", "lead.created ", "lead.created\t", "lead\u200b.created", "\ufefflead", "lead\ncreated", "\u00a0lead"} {
		p, err := ParsePatterns([]string{wrong})
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("events has %q", wrong)) {
			t.Errorf("%q: error %v does not name it", wrong, err)
		}
		if !p.Match(wrong) {
			t.Errorf("%q: an event of this type would not be kept, as SQL says", wrong)
		}
	}
	if p, err := ParsePatterns([]string{" lead.*"}); err == nil || !p.Match(" lead.x") {
		t.Errorf("below a blank: %+v, %v", p, err)
	}
}

func TestCheckVenue_SaysWhatIsWrong(t *testing.T) {
	for venue, want := range map[string]string{"venue_1": "", "a b": "", "padded  ": "", "": "blank", " ": "blank", "\u00a0": "blank",
		" v": "begins with a blank", "v\u200b": "invisible", "v\n": "invisible", "v\x00": "invisible", "v\xff": "UTF-8",
		strings.Repeat("v", 512): "", strings.Repeat("v", 511) + "é": "has more than 512 bytes"} {
		if err := CheckVenue(venue); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", venue, err, want)
		}
	}
}

// TestPatterns_MeanTheSameInGoAndSQL compares Go and SQL for random arrays of patterns and random
// types. The arrays have the form in which PostgreSQL writes them and the stream brings them.
func TestPatterns_MeanTheSameInGoAndSQL(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	r := rand.New(rand.NewPCG(9, 10))
	pieces := []string{"lead", "Lead", ".", "..", "*", " ", "created", "é", "€", "_", "%", `\`, `"`, ",", "{", "null", ""}
	text := func() (s string) {
		for range r.IntN(5) {
			s += pieces[r.IntN(len(pieces))]
		}
		return s
	}
	var arrays, types []string
	add := func(array, eventType string) { arrays, types = append(arrays, array), append(types, eventType) }
	for _, odd := range []string{"Lead Created", ".*", "lead.", "lead*", "", "*", "lead.*", "lead..*"} {
		for _, eventType := range []string{odd, "lead.created", "lead.", "lead", "lead..x", ""} {
			add(`{"`+odd+`"}`, eventType)
		}
	}
	for _, array := range []string{"{}", "{NULL}", "{NULL,*}", `{{a},{b}}`, `{{"*"}}`, "[2:3]={a,b}", `{"NULL"}`} {
		add(array, "a")
		add(array, "NULL")
	}
	for range 20_000 {
		elements := make([]string, r.IntN(4))
		for i := range elements {
			elements[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text()) + `"`
		}
		eventType := text()
		if len(elements) > 0 && r.IntN(3) == 0 { // a type that may match
			eventType = strings.TrimSuffix(strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(strings.Trim(elements[0], `"`)), "*") + text()
		}
		add("{"+strings.Join(elements, ",")+"}", eventType)
	}
	var yes int
	for i, answer := range testenv.QueryAll[string](t, env, `select webhooks.event_matches(e::text[], type)::text || ' ' || e::text[]::text
	    from unnest($1::text[], $2::text[]) with ordinality x (e, type, place) order by place`, arrays, types) {
		verdict, array, _ := strings.Cut(answer, " ")
		sql := verdict == "true"
		p, _ := ParsePatterns(parseTextArray(array))
		if got := p.Match(types[i]); got != sql {
			t.Errorf("%s and the type %q: Go says %t, SQL %t", array, types[i], got, sql)
		}
		if sql {
			yes++
		}
	}
	if yes < 1000 {
		t.Errorf("%d of %d match: the test shows little", yes, len(types))
	}
}
