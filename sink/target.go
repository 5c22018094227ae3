package sink

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"sync/atomic"

	"github.com/quintago/webhook-agent/secret"
)

// Target is where an endpoint's events go and what they are signed with, checked and parsed once for all of its attempts. It may
// be used by any number of goroutines.
type Target struct {
	url      *url.URL
	origin   origin
	start    []byte // of every request: the request line and Host
	key      signingKey
	previous *signingKey // nil when there is none
	// changed reports, during a rotation, that the receiver has accepted the new secret last. It is nil without a former one.
	changed *atomic.Bool

	// err is why nothing can be sent, and class what every attempt fails with; the fields above are not valid then.
	err   error
	class Class
}

// Target makes the target of an endpoint with this URL and secret. Former is its secret before a rotation, empty when there is
// none; one that CheckSecret refuses has never signed anything, and does not now.
func (w *Webhook) Target(rawURL string, current, former secret.Text) *Target {
	u, err := w.parseURL(rawURL)
	if err != nil {
		if _, ok := errors.AsType[addressError](err); ok {
			return &Target{err: err, class: ClassBlockedAddress}
		}
		return &Target{err: err, class: ClassInvalidURL}
	}
	key, err := parseSecret(current)
	if err != nil {
		return &Target{err: err, class: ClassInvalidSecret}
	}
	t := &Target{url: u, origin: originOf(u), start: startOf(u), key: key}
	if previous, err := parseSecret(former); err == nil {
		t.previous, t.changed = &previous, new(atomic.Bool)
	}
	return t
}

// Err says in one sentence why nothing can be sent there, as CheckURL or CheckSecret does, or returns nil.
func (t *Target) Err() error { return t.err }

// Format implements fmt.Formatter without the secrets, for every verb and flag.
func (t Target) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[target]") }
