package agent

import (
	"context"
	"errors"
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

const (
	// reconcileInterval is how often the outbox is compared with the delivery log while all is well, and
	// uncoveredInterval while a publication does not hold the outbox, so that the comparison is all that delivers.
	reconcileInterval = 3 * time.Minute
	uncoveredInterval = 5 * time.Second
	// reconcileShare bounds what the comparison may cost: it rests that many times as long as it took.
	reconcileShare = 50
	// barrierInterval is the wait before a comparison that could not be made is tried again.
	barrierInterval = time.Second
)

// errCoverage ends a session: what the stream holds is not what it held when the term began. The next one begins with a sweep.
var errCoverage = errors.New("the publications or the outbox's tables have changed; the stream begins anew and the outbox is swept")

// reconcile compares the outbox with the delivery log, again and again, until ctx ends. After a gap the first comparison
// completes the recovery.
func (s *session) reconcile(ctx context.Context) {
	gap, told := s.term.Gap, ""
	for {
		uncovered := s.uncovered.Load() != nil
		recovered, took, err := s.compare(ctx, gap != "" || uncovered)
		wait := barrierInterval
		if err == nil {
			s.tellRecovered(recovered, gap, uncovered)
			gap, told = "", ""
			wait = max(reconcileInterval, reconcileShare*took)
			if uncovered {
				wait = max(uncoveredInterval, reconcileShare*took)
			}
		} else if text := err.Error(); text != told && ctx.Err() == nil {
			// Whatever is wrong with the database shows elsewhere too; this tells what it is that waits for it.
			told = text
			s.log.Warn("the outbox cannot be compared with the delivery log yet; trying again", "error", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.uncover:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// compare makes one comparison and returns how long the database worked on it. While transactions have not ended that a
// recovery must see, it returns an error that names them.
func (s *session) compare(ctx context.Context, gap bool) (recovered int64, took time.Duration, err error) {
	horizon, err := s.db.Horizon(ctx)
	if err != nil {
		return 0, 0, err
	}
	if !horizon.Passed(s.term.Barrier) {
		blockers, err := s.db.Blockers(ctx)
		if err != nil {
			return 0, 0, err
		}
		return 0, 0, errors.New("a recovery ends when the transactions have ended that were open when it began: " + blockers)
	}
	if err := s.ledger.AwaitRecorded(ctx, horizon.LSN); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	recovered, err = s.db.Reconcile(ctx, s.ledger, horizon, gap)
	return recovered, time.Since(began), err
}

// tellRecovered tells what a comparison has found.
func (s *session) tellRecovered(recovered int64, gap string, uncovered bool) {
	s.recovering.Store(false)
	s.metrics.swept.Add(float64(recovered))
	switch {
	case gap != "":
		s.log.Info("recovery is complete", "gap", gap, "recovered_deliveries", s.term.Swept+recovered)
	case recovered > 0 && uncovered:
		s.log.Warn("events that the stream passed over were found in the outbox", "recovered_deliveries", recovered)
	case recovered > 0:
		s.log.Error("events had passed the stream unseen although nothing was known to be wrong; they were found in the outbox",
			"recovered_deliveries", recovered)
	}
}

// checkCoverage ends the session, by an error, when the stream may not hold what it held when the term began. When it does not hold the
// outbox now and that cannot be mended from here, the session goes on and lives on comparisons, which is better than
// standing still.
func (s *session) checkCoverage(ctx context.Context) error {
	now, err := s.db.Coverage(ctx)
	if err != nil {
		return nil // an error shows elsewhere
	}
	if now.Continues(s.term.Coverage) {
		return nil
	}
	s.mend(ctx)
	problem := s.db.Published(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if problem == nil {
		return errCoverage
	}
	if p, ok := errors.AsType[*outbox.Problem](problem); !ok || !p.Fatal {
		return nil // it could not be looked at
	}
	text := problem.Error()
	if last := s.uncovered.Swap(&text); last == nil || *last != text {
		s.log.Error("the stream does not bring all events any more; the outbox is compared with the delivery log instead", "error", problem)
	}
	select {
	case s.uncover <- struct{}{}:
	default:
	}
	return nil
}

// mend makes what is missing of the publications where the agent's role may. What it may not make, Preflight and checkCoverage
// tell.
func (s *session) mend(ctx context.Context) {
	mended, err := s.db.MendPublications(ctx)
	for _, statement := range mended {
		s.log.Warn("a publication was mended", "statement", statement)
	}
	if err != nil {
		s.log.Debug("the publications could not be mended", "error", err)
	}
}
