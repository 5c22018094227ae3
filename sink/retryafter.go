package sink

import (
	"net/http"
	"strconv"
	"time"
)

// maxRetryAfter is the longest wait that a customer's server can ask for (DESIGN section 4).
const maxRetryAfter = time.Hour

// parseRetryAfter reads the value of a Retry-After header (RFC 9110, section 10.2.3), seconds or a date, as a wait from
// now between zero and maxRetryAfter. What is negative, past, too large for an integer or not of either form asks for
// nothing and gives zero.
func parseRetryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil {
		// Compared before it is multiplied: a large count would overflow a Duration.
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
