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

// Target is the destination of an endpoint's events, with the secrets that sign them. It is checked
// and parsed once for all attempts. Any number of goroutines may use it at the same time.
type Target struct {
	url    *url.URL
	origin origin
	start  []byte // the request line and Host, with which every request starts
	// keys are the keys that sign: the current one, then the former ones, the newest first. until
	// says when each former one ends, so until[i] belongs to keys[i+1].
	keys  []*signingKey
	until []time.Time
	// order is the order in which the keys are tried for X-Quintago-Signature, which has room for
	// one. It is nil without a former key. The slice that it points to is never changed: a new
	// order is a new slice.
	order *atomic.Pointer[[]*signingKey]
	// wentWith are the keys that got a 410 since another answer came. It is nil without a former
	// one.
	wentWith *atomic.Pointer[[]*signingKey]

	// err says why nothing can be sent, or is nil. class is then the class of every attempt, and
	// the other fields are not valid.
	err   error
	class Class
}

// Former is a secret from before a rotation. It also signs, until the time Until.
type Former struct {
	Secret secret.Text
	Until  time.Time
}

// Target makes the target of an endpoint. It never fails: the Err of the target says why nothing
// can be sent to it.
//
// former are the endpoint's secrets from before rotations, the newest first. One that CheckSecret
// refuses is left out, because it can never have signed anything. One that occurs twice counts
// once.
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
		t.prefer(t.keys[len(t.keys)-1])
	}
	return t
}

// Host returns the host of the URL, without a port. It is "" if nothing can be sent.
func (t *Target) Host() string {
	if t.url == nil {
		return ""
	}
	return t.url.Hostname()
}

// Follow copies from an endpoint's earlier target which secret the receiver accepted last. Without
// it every change of an endpoint would begin with the oldest secret again.
func (t *Target) Follow(before *Target) {
	if t.order == nil || len(before.keys) == 0 {
		return
	}
	last := before.keys[0]
	if before.order != nil {
		last = (*before.order.Load())[0]
	}
	if i := slices.IndexFunc(t.keys, last.is); i >= 0 {
		t.prefer(t.keys[i])
	}
}

// valid returns the keys that sign at the time at: the current one, then the former ones, the
// newest first.
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

// choices returns the keys to try for X-Quintago-Signature in one attempt, in the order to try
// them. While no key was accepted, the first is the oldest, which the receiver still has. The
// second is the newest, which it will change to.
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

// mostChoices bounds the secrets that one attempt tries. The next attempt tries others.
const mostChoices = 3

// prefer makes the next attempt start with a key that the receiver has accepted, and go on with the
// newest.
func (t *Target) prefer(with *signingKey) {
	if before := t.order.Load(); before != nil && (*before)[0] == with {
		return
	}
	t.setOrder(append([]*signingKey{with}, without(t.keys, with)...))
}

// postpone makes the next attempts try keys last, because the receiver seems not to have them.
func (t *Target) postpone(keys ...*signingKey) {
	t.setOrder(append(without(*t.order.Load(), keys...), keys...))
}

// gone records an answer to a request that a key has signed, and reports whether each of keys has
// got a 410 in a row. If answers come at the same time, one may be forgotten. A later answer then
// counts.
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

// Err says in one sentence why nothing can be sent to the target, as CheckURL or CheckSecret does,
// or returns nil.
func (t *Target) Err() error { return t.err }

// Format implements fmt.Formatter. It hides the URL and the secrets, for every verb and flag.
func (t Target) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[target]") }
