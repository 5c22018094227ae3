package sink

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/quintago/webhook-agent/secret"
)

// Target is where an endpoint's events go and what they are signed with, checked and parsed once for all of its attempts. It may
// be used by any number of goroutines.
type Target struct {
	url    *url.URL
	origin origin
	start  []byte // of every request: the request line and Host
	// keys are those that sign: the current one, then the former ones, the newest first. until is
	// when each of the latter ends.
	keys  []*signingKey
	until []time.Time
	// order is in which order the keys are tried for X-Quintago-Signature, which has room for one.
	// It is nil without a former one. What it points to is never changed.
	order *atomic.Pointer[[]*signingKey]
	// wentWith are the keys that got a 410 since another answer came. It is nil without a former one.
	wentWith *atomic.Pointer[[]*signingKey]

	// err is why nothing can be sent, and class what every attempt fails with; the rest is not
	// valid then.
	err   error
	class Class
}

// Former is a secret from before a rotation, which also signs until a time.
type Former struct {
	Secret secret.Text
	Until  time.Time
}

// Target makes the target of an endpoint with this URL and secret. Former are its secrets from
// before rotations, the newest first. One that CheckSecret refuses has never signed anything, and
// does not now; one that is there twice counts once.
func (w *Webhook) Target(rawURL string, current secret.Text, former ...Former) *Target {
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
	t := &Target{url: u, origin: originOf(u), start: startOf(u), keys: []*signingKey{&key}}
	for _, f := range former {
		if key, err := parseSecret(f.Secret); err == nil && !slices.ContainsFunc(t.keys, key.is) {
			t.keys, t.until = append(t.keys, &key), append(t.until, f.Until)
		}
	}
	if len(t.keys) > 1 {
		t.order, t.wentWith = new(atomic.Pointer[[]*signingKey]), new(atomic.Pointer[[]*signingKey])
		t.begin(t.keys[len(t.keys)-1])
	}
	return t
}

// Follow takes over from the target of before a rotation which secret the receiver is on.
func (t *Target) Follow(before *Target) {
	if t.order == nil || len(before.keys) == 0 {
		return
	}
	last := before.keys[0]
	if before.order != nil {
		last = (*before.order.Load())[0]
	}
	if i := slices.IndexFunc(t.keys, last.is); i >= 0 {
		t.begin(t.keys[i])
	}
}

// valid returns the keys that sign at a time: the current one, then the former ones, the newest
// first.
func (t *Target) valid(at time.Time) []*signingKey {
	ended := func(until time.Time) bool { return !at.Before(until) }
	if !slices.ContainsFunc(t.until, ended) {
		return t.keys
	}
	keys := []*signingKey{t.keys[0]}
	for i, until := range t.until {
		if !ended(until) {
			keys = append(keys, t.keys[1+i])
		}
	}
	return keys
}

// choices returns those of keys that are tried for X-Quintago-Signature in one attempt, the first
// one first. At first that is the oldest, which the receiver is still on, then the newest, which it
// changes to.
func (t *Target) choices(keys []*signingKey) []*signingKey {
	if len(keys) == 1 {
		return keys
	}
	choices := make([]*signingKey, 0, mostChoices)
	for _, key := range *t.order.Load() {
		if slices.Contains(keys, key) && len(choices) < mostChoices {
			choices = append(choices, key)
		}
	}
	return choices
}

// mostChoices is how many secrets one attempt tries at most; the next one goes on with others.
const mostChoices = 3

// begin has the next attempt begin with a key, which the receiver has accepted, and go on with the
// newest.
func (t *Target) begin(with *signingKey) {
	if before := t.order.Load(); before != nil && (*before)[0] == with {
		return
	}
	t.setOrder(append([]*signingKey{with}, without(t.keys, with)...))
}

// postpone has the next attempts try keys last, which the receiver seems not to be on.
func (t *Target) postpone(keys ...*signingKey) {
	t.setOrder(append(without(*t.order.Load(), keys...), keys...))
}

// gone takes note of an answer to a request that a key has signed, and reports whether each of keys
// has got a 410 in a row. Of answers that come at once one may be forgotten: a later one counts then.
func (t *Target) gone(keys []*signingKey, signer *signingKey, is410 bool) bool {
	before := t.wentWith.Load()
	if !is410 {
		if before != nil {
			t.wentWith.Store(nil)
		}
		return false
	}
	all := []*signingKey{signer}
	if before != nil {
		all = append(all, without(*before, signer)...)
	}
	t.wentWith.Store(&all)
	return len(without(keys, all...)) == 0
}

func (t *Target) setOrder(order []*signingKey) { t.order.Store(&order) }

func without(keys []*signingKey, not ...*signingKey) []*signingKey {
	return slices.DeleteFunc(slices.Clone(keys), func(key *signingKey) bool { return slices.Contains(not, key) })
}

// Err says in one sentence why nothing can be sent there, as CheckURL or CheckSecret does, or returns nil.
func (t *Target) Err() error { return t.err }

// Format implements fmt.Formatter without the secrets, for every verb and flag.
func (t Target) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[target]") }
