package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
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
	// noteTimeout bounds what an ending session still writes.
	noteTimeout = 2 * time.Second
)

// errCoverage ends a session: what the stream holds is not what it held when the term began. The next one begins with a recovery.
var errCoverage = errors.New("the publications or the outbox's tables have changed; the stream begins anew and the outbox is compared with the delivery log")

// stage is how far the recovery of a term has come.
type stage int

const (
	// sweeping is before the first comparison. It waits for no transaction, so that what was passed over is delivered soon.
	sweeping stage = iota
	// completing is before the comparison that sees all transactions that were open when the gap ended.
	completing
	// wellKnown is after that, and from the beginning of a term without a gap.
	wellKnown
)

// reconcile compares the outbox with the delivery log, again and again, until ctx ends. After a gap the first comparison finds what was
// passed over, beside the stream, and the second one completes the recovery. While the stream does not bring all, it does not
// bring all changes of endpoints and all replays either, so these are loaded anew before each comparison.
func (s *session) reconcile(ctx context.Context) {
	at, told := wellKnown, ""
	if s.term.Gap != "" {
		at = sweeping
	}
	var total int64 // recovered so far, by the recovery
	tellCompared := sync.OnceFunc(func() { close(s.compared) })
	select {
	case <-s.looked:
	case <-ctx.Done():
		return
	}
	for {
		uncovered := s.uncovered.Load() != nil
		if uncovered {
			s.reload(ctx)
		}
		recovered, took, err := s.compare(ctx, at, uncovered)
		total += recovered
		wait := max(barrierInterval, reconcileShare*took)
		switch {
		case err == nil && at == sweeping:
			at, told, wait = completing, "", 0
		case err == nil:
			s.tellRecovered(total, at, uncovered)
			tellCompared()
			at, told, total = wellKnown, "", 0
			wait = max(reconcileInterval, reconcileShare*took)
			if uncovered {
				wait = max(uncoveredInterval, reconcileShare*took)
			}
		default:
			if at != wellKnown {
				wait = barrierInterval // a recovery goes on where it stands
			}
			if text := err.Error(); text != told && !errors.Is(err, errCoverage) && ctx.Err() == nil {
				// Whatever is wrong with the database shows elsewhere too; this tells what it is that waits for it.
				told = text
				s.log.Warn("the outbox cannot be compared with the delivery log yet; trying again", "error", err)
			}
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

// compare makes one comparison and returns what it found, also when it fails, and how long the database worked on it. While
// transactions have not ended that a recovery must see, it returns an error that names the oldest. errCoverage reports that watch is
// about to end the session.
func (s *session) compare(ctx context.Context, at stage, uncovered bool) (recovered int64, took time.Duration, err error) {
	// The order holds the promises: what the horizon sees and the stream brings is recorded before anything is looked for.
	horizon, err := s.slot.Horizon(ctx)
	if err != nil {
		return 0, 0, err
	}
	if !uncovered && !horizon.Coverage.Continues(s.term.Coverage) {
		return 0, 0, errCoverage // a horizon of now would hide from the next term what was passed over
	}
	if at == completing && !uncovered {
		if !horizon.Passed(s.term.Barrier) {
			blocker, err := s.slot.Blocker(ctx)
			if err != nil {
				return 0, 0, err
			}
			return 0, 0, errors.New("a recovery ends when the transactions have ended that were open when it began, the oldest of them " + blocker)
		}
		horizon.Completes = true
	}
	if err := s.ledger.AwaitRecorded(ctx, horizon.LSN); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	recovered, err = s.slot.Reconcile(ctx, s.ledger, horizon, at != wellKnown || uncovered)
	return recovered, time.Since(began), err
}

// reload has the router load the endpoints and replays anew, and waits for it.
func (s *session) reload(ctx context.Context) {
	done := make(chan struct{})
	select {
	case s.reloads <- done:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// tellRecovered tells what a comparison, or a recovery, has found.
func (s *session) tellRecovered(recovered int64, at stage, uncovered bool) {
	s.recovering.Store(false)
	switch {
	case at != wellKnown && !uncovered:
		level := slog.LevelInfo
		if recovered > 0 {
			level = slog.LevelWarn
		}
		s.log.Log(context.Background(), level, "recovery is complete", "gap", s.term.Gap, "recovered_deliveries", recovered)
	case recovered > 0 && uncovered:
		s.log.Warn("events that the stream passed over were found in the outbox", "recovered_deliveries", recovered)
	case recovered > 0:
		s.log.Error("events had passed the stream unseen although nothing was known to be wrong; they were found in the outbox",
			"recovered_deliveries", recovered)
	}
}

// checkCoverage ends the session, by an error, when the stream may not hold what it held when the term began. When it does not bring
// everything now and that cannot be mended from here, the session goes on and lives on comparisons, which is better than
// standing still. In either case the next term begins with a recovery.
func (s *session) checkCoverage(ctx context.Context) error {
	now, err := s.db.Coverage(ctx)
	if err != nil {
		return nil // an error shows elsewhere
	}
	if now.Continues(s.term.Coverage) {
		if s.uncovered.Load() != nil {
			return errCoverage // all is as it was, but was not for a while
		}
		return nil
	}
	if !s.passedOver.Swap(true) {
		s.noteGap(ctx)
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
		select {
		case s.uncover <- struct{}{}:
		default:
		}
	}
	return nil
}

// noteGap notes in the checkpoint that the stream passes events over. An error shows elsewhere; it is noted once more when the
// session ends.
func (s *session) noteGap(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	if err := s.slot.NoteGap(ctx, s.term); err != nil {
		s.log.Debug("the gap could not be noted", "error", err)
	}
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
