package outbox

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A notice is an event of the agent's own about an endpoint: it keeps failing, it was disabled, or
// it is well again. The Ledger inserts it into the outbox in the transaction that records the state
// (announcer). From there it goes the way of every event, to the endpoints of the venue that ask
// for its type. It never goes to the endpoint that it is about. docs/notices.md describes notices
// for the people who get them.

// These are the types of notices.
const (
	TypeEndpointFailing   = "webhook.endpoint_failing"
	TypeEndpointDisabled  = "webhook.endpoint_disabled"
	TypeEndpointRecovered = "webhook.endpoint_recovered"
)

var noticeTypes = []string{TypeEndpointFailing, TypeEndpointDisabled, TypeEndpointRecovered}

// The levels of notices (endpoint_health.notified). Levels between NoticeFormer and NoticeDisabled
// are the percentage of the failures that disable an endpoint. In the database a level is below
// zero while a disabling is still to be announced: the level before it, and NoticeFormer for none.
const (
	NoticeWell     = 0
	NoticeFormer   = 1 // in memory alone: a level of an earlier generation
	NoticeDisabled = 100
)

// Notice is what is to be announced about an endpoint. Only a Disabling makes one of the level
// NoticeDisabled.
type Notice struct {
	// Number increases with each notice of a term, whichever endpoint it is about.
	Number     int64
	Generation int64 // the endpoint's
	Level      int
	Failures   int // consecutive failures
	// FirstFailure is when they began. With NoticeWell, it is when those began that are over.
	FirstFailure time.Time
	LastError    string
}

func (n Notice) eventType() string {
	switch n.Level {
	case NoticeWell:
		return TypeEndpointRecovered
	case NoticeDisabled:
		return TypeEndpointDisabled
	}
	return TypeEndpointFailing
}

// maxNoticeText is the most bytes of a text in a notice. The whole then stays below the least value
// of delivery.max_body, unless an id is long.
const maxNoticeText = 160

// data returns the event's data. endpoint is the endpoint's row, disableAfter is
// delivery.disable_after. The keys have the order of docs/notices.md.
func (n Notice) data(endpoint noticed, disableAfter int) string {
	b := append([]byte(nil), noticeKey...)
	b = append(b, jsonText(endpoint.id)...)
	text := func(key, value string) {
		b = appendJSONString(append(b, `,"`+key+`":`...), clip(value))
	}
	textOrNull := func(key, value string) {
		if value == "" {
			b = append(b, `,"`+key+`":null`...)
			return
		}
		text(key, value)
	}
	text("host", endpoint.host)
	text("description", endpoint.description)
	b = fmt.Appendf(b, `,"consecutive_failures":%d,"disable_after":%d`, n.Failures, disableAfter)
	first := ""
	if usable(n.FirstFailure) && !n.FirstFailure.IsZero() {
		first = n.FirstFailure.UTC().Format(time.RFC3339)
	}
	textOrNull("first_failure_at", first)
	textOrNull("last_error", n.LastError)
	reason := ""
	if n.Level == NoticeDisabled {
		reason = endpoint.disabledReason
	}
	textOrNull("disabled_reason", reason)
	text("what_to_do", n.remedy(reason, disableAfter))
	return string(append(b, '}'))
}

func (n Notice) remedy(disabledReason string, disableAfter int) string {
	switch {
	case n.Level == NoticeWell:
		return "Nothing. To send what it has missed, replay its missed and failed events."
	case disabledReason == ReasonGone:
		return "Its server answered 410 Gone. Remove the endpoint, or enable it again if its server wants events after all."
	case n.Level == NoticeDisabled:
		return "Repair its server and enable the endpoint again. Its events are kept as missed meanwhile, and can be replayed."
	}
	return "See why its server does not answer 2xx. After " + strconv.Itoa(disableAfter) + " failed attempts in a row the endpoint is disabled."
}

// clip shortens a text to maxNoticeText bytes, at the end of a character.
func clip(s string) string {
	if len(s) <= maxNoticeText {
		return s
	}
	const mark = "..."
	return strings.ToValidUTF8(s[:maxNoticeText-len(mark)], "") + mark
}

// noticeKey is how the data of a notice begin. A column of the type jsonb moves the key, and puts a
// blank behind it.
const (
	noticeKey = `{"endpoint_id":`
	idKey     = `"endpoint_id":`
)

// Concerns reports whether the event is a notice about an endpoint. Such an event is not for that
// endpoint. The rule goes by type and data alone, so that it holds for a row however it is found.
// aboutSQL is the same in SQL. Within a JSON string every quote has a backslash before it, so no
// other text in the data looks like the key.
func (e *Event) Concerns(endpointID string) bool {
	return slices.Contains(noticeTypes, e.Type) && names(e.Data, endpointID)
}

// IsNotice reports whether the event has the type of a notice.
func (e *Event) IsNotice() bool { return slices.Contains(noticeTypes, e.Type) }

func names(data []byte, endpointID string) bool {
	id := jsonText(endpointID)
	return bytes.Contains(data, []byte(idKey+id)) || bytes.Contains(data, []byte(idKey+" "+id))
}

// noticeSQL returns the SQL expression for the data of an event that has the type of a notice. It
// is null for any other event, whose data are then not read.
func (m *mapping) noticeSQL(eventType string) string {
	var quoted []string
	for _, t := range noticeTypes {
		quoted = append(quoted, quoteText(t))
	}
	return pieces{"type": eventType, "types": strings.Join(quoted, ", "), "data": "o." + quoteIdent(m.cfg.Columns.Data)}.in(
		`case when ${type} in (${types}) then ${data}::text end`)
}

// aboutSQL returns the condition that the data of a notice, as of noticeSQL, name an endpoint.
func aboutSQL(notice, endpointID string) string {
	return pieces{"notice": notice, "id": "to_json(" + endpointID + ")::text", "key": quoteText(idKey)}.in(
		`coalesce(position(${key} || ${id} in ${notice}) > 0 or position(${key} || ' ' || ${id} in ${notice}) > 0, false)`)
}

// jsonText returns a text as JSON, as PostgreSQL's to_json does. In a column of the type jsonb,
// PostgreSQL writes texts in that way.
func jsonText(s string) string {
	b := []byte{'"'}
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, `\b`...)
		case '\f':
			b = append(b, `\f`...)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		default:
			if c < ' ' {
				b = fmt.Appendf(b, `\u%04x`, c)
				continue
			}
			b = append(b, c)
		}
	}
	return string(append(b, '"'))
}
