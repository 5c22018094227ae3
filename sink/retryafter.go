package sink

import (
	"net/http"
	"strings"
	"time"
)

const (
	// maxRetryAfter is the longest wait that a customer's server can ask for.
	maxRetryAfter = time.Hour
	// maxRetryAfterValues is how many values of one Retry-After field are read.
	maxRetryAfterValues = 8
)

// retryAfter is what a Retry-After field asks for (RFC 9110, section 10.2.3). The zero value asks
// for nothing.
type retryAfter struct {
	seconds time.Duration // not above maxRetryAfter
	date    time.Time     // in its place, if it is not zero
}

// parseRetryAfter parses the value of a Retry-After field and reports whether it is usable. Proxies
// join fields, so there may be several values. The first usable one counts. A negative number or a
// fraction is not usable.
func parseRetryAfter(value string) (retryAfter, bool) {
	parts := strings.SplitN(value, ",", maxRetryAfterValues+1)
	for i, part := range parts {
		part = strings.Trim(part, " \t")
		if seconds, ok := parseDelay(part); ok {
			return retryAfter{seconds: seconds}, true
		}
		if i+1 < len(parts) { // most dates have a comma
			part += ", " + strings.Trim(parts[i+1], " \t")
		}
		if date, ok := parseDate(part); ok {
			return retryAfter{date: date}, true
		}
	}
	return retryAfter{}, false
}

// wait returns the wait from now, between zero and maxRetryAfter.
func (r retryAfter) wait(now time.Time) time.Duration {
	if r.date.IsZero() {
		return r.seconds
	}
	return min(max(r.date.Sub(now), 0), maxRetryAfter)
}

// parseDelay reads any number of digits as seconds, up to maxRetryAfter.
func parseDelay(s string) (time.Duration, bool) {
	seconds := int64(0)
	for i := range len(s) {
		if !isDigit(s[i]) {
			return 0, false
		}
		seconds = min(10*seconds+int64(s[i]-'0'), int64(maxRetryAfter/time.Second))
	}
	return time.Duration(seconds) * time.Second, s != ""
}

// parseDate reads a date of HTTP (RFC 9110, section 5.6.7). It also takes other spellings of the
// zone than GMT, a day of one digit, and RFC 3339, which many servers send.
func parseDate(s string) (time.Time, bool) {
	for _, zone := range []string{" UTC", " UT", " Z", " GMT"} {
		if n := len(s) - len(zone); n > 0 && strings.EqualFold(s[n:], zone) {
			s = s[:n] + " GMT"
			break
		}
	}
	if date, err := http.ParseTime(s); err == nil {
		return date, true
	}
	for _, layout := range []string{"Mon, 2 Jan 2006 15:04:05 GMT", "Mon, 2 Jan 2006 15:04:05 -0700", time.RFC3339} {
		if date, err := time.Parse(layout, s); err == nil {
			return date, true
		}
	}
	return time.Time{}, false
}
