package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// eventTypes are the types that the writers write: the documented ones and two of the app's own.
var eventTypes = []string{
	"lead.created", "lead.updated", "lead.stage_changed", "lead.archived", "proposal.created", "proposal.sent",
	"proposal.viewed", "proposal.signed", "payment.received", "message.received", "lead", "invoice.line.added",
}

// oddities are JSON texts that change if a program parses them and writes them again. They differ
// in order and repetition of keys, in the spelling of numbers and strings, and in space.
var oddities = []string{
	`{"z":1,"a":2,"m":3}`,
	`{"a":1,"a":2}`,
	`{"n":1.0e2,"m":1E+2,"k":100.00,"zero":-0,"tiny":1e-400}`,
	`{"big":12345678901234567890123456789.10,"precise":0.1000000000000000055511151231257827}`,
	`{"name":"In\u00eas & Tom\u00E1s","face":"\ud83d\ude00","slash":"\/","lone":"\ud800","nul":"\u0000"}`,
	`{"raw":"Inês & Tomás 😀 </script>` + "\u2028" + `"}`,
	"{ \"spaced\" :\t[ 1 , 2,3 ] ,\r\n\t\"lines\":  { } }",
	`[]`, `{}`, `null`, `true`, `"text"`, `-1.50`,
	`{"deep":[[[[[[[[[["x"]]]]]]]]]],"empty":["",{},[],null,false]}`,
	`{"escapes":"\"\\\b\f\n\r\t"}`,
}

// newData returns the data of one event. It holds the number n, so no two events have the same
// data.
func newData(random *rand.Rand, n int) string {
	lead := fmt.Sprintf(`{"n":%d,"lead":{"stage":"proposal_sent","id":"lead_%08x","guests":%d.0},"odd":%s`,
		n, random.Uint32(), 40+random.IntN(200), oddities[random.IntN(len(oddities))])
	switch random.IntN(40) {
	case 0: // so long that PostgreSQL compresses it and stores it outside the row
		lead += `,"text":"` + strings.Repeat("Quinta da Boa Vista ", 200+random.IntN(800)) + `"`
	case 1, 2, 3:
		return oddities[random.IntN(len(oddities))]
	}
	return lead + "}"
}

// padding returns a text of about size bytes that does not compress.
func padding(random *rand.Rand, size int) string {
	var b strings.Builder
	for b.Len() < size {
		fmt.Fprintf(&b, "%016x", random.Uint64())
	}
	return b.String()
}

// newEventID returns an id as the app would make it: a ULID (https://github.com/ulid/spec) with its
// prefix.
func newEventID(random *rand.Rand, now time.Time) string {
	const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	id := []byte("evt_")
	for shift := 45; shift >= 0; shift -= 5 {
		id = append(id, alphabet[now.UnixMilli()>>shift&31])
	}
	for range 16 {
		id = append(id, alphabet[random.IntN(len(alphabet))])
	}
	return string(id)
}
