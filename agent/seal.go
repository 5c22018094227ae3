package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
)

// sealBatch is how many endpoints are tried before a pause, if one of them could not be sealed.
const sealBatch = 100

// sealer seals the secrets of endpoints, one by one. The router reports each new row to it (look,
// remove), and run does the sealing.
type sealer struct {
	db     *outbox.DB
	log    *slog.Logger
	sealed prometheus.Counter

	mu sync.Mutex // guards ids
	// ids are the endpoints whose latest row, as the router knows it, has secrets to seal. The
	// value is true for one that is to be tried. It is false while run tries it, and after that
	// until the router has its new row.
	ids map[string]bool
	// more wakes run, because there are endpoints to try. The sender does not wait, so one place
	// is enough.
	more chan struct{}
}

func newSealer(db *outbox.DB, log *slog.Logger, sealed prometheus.Counter) *sealer {
	return &sealer{db: db, log: log, sealed: sealed, ids: map[string]bool{}, more: make(chan struct{}, 1)}
}

// look adds an endpoint whose latest row has secrets to seal, and removes another one. The router
// calls it with each new row.
func (s *sealer) look(e *outbox.Endpoint) {
	if !s.db.Unsealed(e) {
		s.remove(e.ID)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids[e.ID] = true
	s.wakeLocked()
}

func (s *sealer) wakeLocked() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// remove removes an endpoint: its latest row has nothing to seal, or it is gone.
func (s *sealer) remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}

// take returns up to n endpoints to try. The caller gives back those that were not sealed (again).
func (s *sealer) take(n int) (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, due := range s.ids {
		if len(ids) == n {
			break
		}
		if due {
			s.ids[id] = false
			ids = append(ids, id)
		}
	}
	return ids
}

// again gives back endpoints that were taken and not sealed, so that they are tried once more. It
// skips those that the router has removed since. left reports whether there are any.
func (s *sealer) again(ids []string) (left bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if _, is := s.ids[id]; is {
			s.ids[id], left = true, true
		}
	}
	s.wakeLocked()
	return left
}

// run seals secrets, one endpoint after the other, until ctx ends. It tries again later what it
// cannot seal because the app has locked the row or the database is away. It also tries again when
// a row has nothing to seal: the stream brings a commit before queries see it. The rows themselves
// show what is sealed, so the next leader goes on where this one ended.
func (s *sealer) run(ctx context.Context) {
	waits := backoff.New()
	trouble := backoff.Trouble{Log: s.log, Level: slog.LevelWarn, Begins: "cannot seal the secrets of an endpoint; trying again", Ends: "sealing goes on"}
	for {
		ids := s.take(sealBatch)
		if len(ids) == 0 {
			select {
			case <-s.more:
				continue
			case <-ctx.Done():
				return
			}
		}
		var again []string
		for _, id := range ids {
			sealed, err := s.db.SealSecrets(ctx, id)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				again = append(again, id)
				// Err itself names the endpoint, so each endpoint would be logged as another
				// trouble.
				trouble.Note(cmp.Or(errors.Unwrap(err), err), "endpoint", id)
			case sealed:
				s.sealed.Inc()
			default:
				again = append(again, id)
			}
		}
		if !s.again(again) {
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
