package outbox

// Traceparent says to which trace an event belongs. It is "" or has the form of the header
// traceparent, version 00, of https://www.w3.org/TR/trace-context/#traceparent-header.
type Traceparent string

// TraceID and SpanID return the two ids in hexadecimal digits. Sampled reports whether the producer
// records the trace. The Traceparent must not be "".
func (t Traceparent) TraceID() string { return string(t[3:35]) }

// SpanID is described at TraceID.
func (t Traceparent) SpanID() string { return string(t[36:52]) }

// Sampled is described at TraceID.
func (t Traceparent) Sampled() bool {
	last := t[54]
	return (last >= 'a' && (last-'a')%2 == 1) || (last <= '9' && (last-'0')%2 == 1)
}

// traceparentForm has 0 where a traceparent has a hexadecimal digit, and other characters as they
// are. Digits above 9 are in lower case.
const traceparentForm = "**-00000000000000000000000000000000-0000000000000000-00"

// parseTraceparent returns the traceparent of a row. It returns "" for one without the right form:
// a mistake in a trace must not stop an event.
func parseTraceparent(text []byte) Traceparent {
	if len(text) != len(traceparentForm) || text[0] != '0' || text[1] != '0' {
		return ""
	}
	trace, span := false, false // whether the id has a digit that is not zero
	for i := 2; i < len(text); i++ {
		switch c := text[i]; {
		case traceparentForm[i] == '-':
			if c != '-' {
				return ""
			}
		case !('0' <= c && c <= '9' || 'a' <= c && c <= 'f'):
			return ""
		case c != '0' && i < 35:
			trace = true
		case c != '0' && i < 52:
			span = true
		}
	}
	if !trace || !span {
		return ""
	}
	return Traceparent(text)
}
