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

// OpenTarget makes the target of an endpoint whose secrets may be sealed. With an error nothing can be sent there. A former secret that
// cannot be opened signs nothing.
func OpenTarget(webhook *sink.Webhook, keys secret.Keyring, e *outbox.Endpoint) (*sink.Target, error) {
	current, err := keys.Open(e.ID, e.Secret)
	var former []sink.Former
	for _, f := range e.Former() {
		if opened, err := keys.Open(e.ID, f.Secret); err == nil { // check names the key that is missing
			former = append(former, sink.Former{Secret: opened, Until: f.Until})
		}
	}
	target := webhook.Target(e.URL.Reveal(), current, former...)
	if err != nil {
		return target, err
	}
	return target, target.Err()
}

// sealBatch is how many endpoints are tried before a pause, if one of them could not be sealed.
const sealBatch = 100

// unsealed are the endpoints whose latest row, as the router knows it, has secrets that are to be sealed. The router adds and removes
// them, seal tries them.
type unsealed struct {
	mu  sync.Mutex      // guards ids
	ids map[string]bool // whether it is to be tried; false while seal tries it, and until the router has seen what came of it
	// more reports that there are some; sent without waiting, so one place is enough.
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
	u.tellLocked()
}

func (u *unsealed) tellLocked() {
	select {
	case u.more <- struct{}{}:
	default:
	}
}

// remove takes an endpoint out: its latest row has nothing to seal, or it is gone.
func (u *unsealed) remove(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.ids, id)
}

// take returns up to n that are to be tried.
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

// again has endpoints tried once more that were taken, but for those that the router has removed since. It reports whether
// there are any.
func (u *unsealed) again(ids []string) (left bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, id := range ids {
		if _, is := u.ids[id]; is {
			u.ids[id], left = true, true
		}
	}
	u.tellLocked()
	return left
}

// seal seals the secrets of the endpoints in t.unsealed, one by one, until ctx ends. What it cannot seal, because the app holds the row
// or the database is away, it tries again, after the others; and so what it finds nothing to seal of, since the stream tells of a
// commit before queries see it. The rows tell what is done, so an agent that begins to lead goes on where
// the last one ended.
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
				trouble.Note(cmp.Or(errors.Unwrap(err), err), "endpoint", id) // err names the endpoint, so each would be another trouble
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
