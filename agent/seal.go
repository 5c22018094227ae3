package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// OpenTarget returns the target of an endpoint whose secrets may be sealed. With an error, nothing
// can be sent to the target. A former secret that cannot be opened is left out, so it signs
// nothing.
func OpenTarget(webhook *sink.Webhook, keys secret.Keyring, e *outbox.Endpoint) (*sink.Target, error) {
	current, err := keys.Open(e.ID, e.Secret)
	var former []sink.Former
	for _, f := range e.Former() {
		// The command check names the missing key.
		if opened, err := keys.Open(e.ID, f.Secret); err == nil {
			former = append(former, sink.Former{Secret: opened, Until: f.Until})
		}
	}
	target := webhook.Target(e.URL.Reveal(), current, former...)
	if err == nil {
		err = target.Err()
	}
	return target, err
}

// sealBatch is how many endpoints are tried before a pause, if one of them could not be sealed.
const sealBatch = 100

// unsealed has the endpoints whose secrets are to be sealed, by the latest row that the router
// knows. The router adds and removes them, and term.seal tries them.
type unsealed struct {
	mu sync.Mutex // guards ids
	// True for an endpoint that is to be tried; false from when seal takes it until seal gives it
	// back or the router has its new row.
	ids map[string]bool
	// more wakes seal, because there are endpoints to try. The sender does not wait, so one place
	// is enough.
	more chan struct{}
}

func newUnsealed() *unsealed {
	return &unsealed{ids: map[string]bool{}, more: make(chan struct{}, 1)}
}

func (u *unsealed) add(ids ...string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, id := range ids {
		u.ids[id] = true
	}
	u.wakeLocked()
}

func (u *unsealed) wakeLocked() {
	select {
	case u.more <- struct{}{}:
	default:
	}
}

// remove removes an endpoint: its latest row has nothing to seal, or it is gone.
func (u *unsealed) remove(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.ids, id)
}

// take returns up to n endpoints to try. The caller gives back those that were not sealed (again).
func (u *unsealed) take(n int) (ids []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, due := range u.ids {
		if len(ids) == n {
			break
		}
		if due {
			u.ids[id] = false
			ids = append(ids, id)
		}
	}
	return ids
}

// again gives back endpoints that were taken and not sealed, so that they are tried once more. It
// skips those that the router has removed since. left reports whether there are any.
func (u *unsealed) again(ids []string) (left bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, id := range ids {
		if _, is := u.ids[id]; is {
			u.ids[id], left = true, true
		}
	}
	u.wakeLocked()
	return left
}

// seal seals the secrets of the endpoints in t.unsealed, one by one, until ctx ends. It tries again
// later what it cannot seal because the app has locked the row or the database is away. It also
// tries again when a row has nothing to seal: the stream brings a commit before queries see it. The
// rows themselves show what is sealed, so the next leader goes on where this one ended.
func (t *term) seal(ctx context.Context) {
	waits := backoff.New()
	trouble := backoff.Trouble{Log: t.log, Level: slog.LevelWarn, Begins: "cannot seal the secrets of an endpoint; trying again", Ends: "sealing goes on"}
	for {
		ids := t.unsealed.take(sealBatch)
		if len(ids) == 0 {
			select {
			case <-t.unsealed.more:
				continue
			case <-ctx.Done():
				return
			}
		}
		var again []string
		for _, id := range ids {
			sealed, err := t.db.SealSecrets(ctx, id)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				again = append(again, id)
				// Err itself names the endpoint, so each endpoint would be logged as another
				// trouble.
				trouble.Note(cmp.Or(errors.Unwrap(err), err), "endpoint", id)
			case sealed:
				t.metrics.sealed.Inc()
			default:
				again = append(again, id)
			}
		}
		if !t.unsealed.again(again) {
			waits = backoff.New()
			trouble.Note(nil)
			continue
		}
		wait, _ := waits.Next()
		if !backoff.Sleep(ctx, wait) {
			return
		}
	}
}
