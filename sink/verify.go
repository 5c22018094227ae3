package sink

import (
	"crypto/hmac"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/secret"
)

// timestampTolerance is the largest difference between a request's timestamp and the receiver's
// clock. Five minutes is what the reference libraries of Standard Webhooks have.
const timestampTolerance = 5 * time.Minute

// Verification is the result of Verify. Each field is nil if its scheme verified, or says why it
// did not in one sentence.
type Verification struct {
	Quintago error // X-Quintago-Signature
	Standard error // Webhook-Id, -Timestamp and -Signature
}

// Err returns both failures joined, or nil if both schemes verified.
func (v Verification) Err() error { return errors.Join(v.Quintago, v.Standard) }

// Verify checks both signatures of a received request against each secret: the current one and,
// during a rotation, the former ones. Empty secrets are ignored. A scheme verifies if any signature
// in its header matches any secret.
//
// X-Quintago-Signature holds one signature only. So a receiver that knows one secret may refuse a
// request, and the agent then sends it again with another secret. Signatures are compared in
// constant time.
func Verify(h http.Header, body []byte, now time.Time, secrets ...secret.Text) Verification {
	var keys []signingKey
	for _, s := range secrets {
		if s.IsZero() {
			continue
		}
		key, err := parseSecret(s)
		if err != nil {
			return Verification{Quintago: err, Standard: err}
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		err := errors.New("no secret to verify with")
		return Verification{Quintago: err, Standard: err}
	}
	return Verification{Quintago: verifyQuintago(h, body, keys), Standard: verifyStandard(h, body, now, keys)}
}

func verifyQuintago(h http.Header, body []byte, keys []signingKey) error {
	// Only this header is checked, as a receiver written to the customers' page does.
	presented := h.Values(HeaderSignature)
	if len(presented) == 0 {
		return fmt.Errorf("%s is missing", HeaderSignature)
	}
	for _, key := range keys {
		if matches(presented, key.signQuintago(body)) {
			return nil
		}
	}
	return fmt.Errorf("%s does not match: another secret, or the body was changed on its way", HeaderSignature)
}

func verifyStandard(h http.Header, body []byte, now time.Time, keys []signingKey) error {
	id, timestamp, signatures := h.Get(HeaderID), h.Get(HeaderTimestamp), h.Get(HeaderStandardSignature)
	for _, header := range []string{HeaderID, HeaderTimestamp, HeaderStandardSignature} {
		if h.Get(header) == "" {
			return fmt.Errorf("%s is missing", header)
		}
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return fmt.Errorf("%s is not a count of seconds", HeaderTimestamp)
	}
	// Compare times, not differences: the difference to an absurd timestamp would overflow a
	// Duration.
	sent := time.Unix(seconds, 0)
	if sent.Before(now.Add(-timestampTolerance)) {
		return fmt.Errorf("%s is more than %v in the past", HeaderTimestamp, timestampTolerance)
	}
	if sent.After(now.Add(timestampTolerance)) {
		return fmt.Errorf("%s is more than %v in the future", HeaderTimestamp, timestampTolerance)
	}
	// Entries of other versions (v1a) do not match anything.
	for _, key := range keys {
		if matches(strings.Fields(signatures), key.signStandard(id, timestamp, body)) {
			return nil
		}
	}
	return fmt.Errorf("%s does not match: another secret, or the id, timestamp or body was changed on its way",
		HeaderStandardSignature)
}

// matches reports whether one of presented is want, in constant time.
func matches(presented []string, want string) bool {
	for _, p := range presented {
		if hmac.Equal([]byte(p), []byte(want)) {
			return true
		}
	}
	return false
}
