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

// sealer seals the secrets of endpoints. It knows those whose latest row, as the router knows it, has secrets that are to be sealed.
type sealer struct {
	db     *outbox.DB
	log    *slog.Logger
	sealed prometheus.Counter

	mu  sync.Mutex      // guards ids
	ids map[string]bool // whether it is to be tried; false while run tries it, and until the router has seen what came of it
	// more reports that there are some; sent without waiting, so one place is enough.
	more chan struct{}
}

func newSealer(db *outbox.DB, log *slog.Logger, sealed prometheus.Counter) *sealer {
	return &sealer{db: db, log: log, sealed: sealed, ids: map[string]bool{}, more: make(chan struct{}, 1)}
}

// look takes note of an endpoint's latest row.
func (s *sealer) look(e *outbox.Endpoint) {
	if s.db.Unsealed(e) {
		s.add(e.ID)
	} else {
		s.remove(e.ID)
	}
}

func (s *sealer) add(ids ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		s.ids[id] = true
	}
	s.tellLocked()
}

func (s *sealer) tellLocked() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// remove takes an endpoint out: its latest row has nothing to seal, or it is gone.
func (s *sealer) remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}

// take returns up to n that are to be tried.
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

// again has endpoints tried once more that were taken, but for those that the router has removed since. It reports whether
// there are any.
func (s *sealer) again(ids []string) (left bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if _, is := s.ids[id]; is {
			s.ids[id], left = true, true
		}
	}
	s.tellLocked()
	return left
}

// run seals secrets, one endpoint after the other, until ctx ends. What it cannot seal, because the app holds the row
// or the database is away, it tries again, after the others; and so what it finds nothing to seal of, since the stream tells of a
// commit before queries see it. The rows tell what is done, so an agent that begins to lead goes on where
// the last one ended.
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
				trouble.Note(cmp.Or(errors.Unwrap(err), err), "endpoint", id) // err names the endpoint, so each would be another trouble
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
