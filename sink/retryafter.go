package sink

import (
	"net/http"
	"strconv"
	"time"
)

// maxRetryAfter is the longest wait that a customer's server can ask for.
const maxRetryAfter = time.Hour

// parseRetryAfter parses the value of a Retry-After header, seconds or a date (RFC 9110, section
// 10.2.3). It returns the wait from now, between zero and maxRetryAfter. A value that is negative,
// in the past, or of neither form gives zero.
func parseRetryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil {
		// Compare before multiplying: a large number of seconds would overflow a Duration.
		if seconds > uint64(maxRetryAfter/time.Second) {
			return maxRetryAfter
		}
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(at.Sub(now), 0), maxRetryAfter)
	}
	return 0
}
