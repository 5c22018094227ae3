package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quintago/webhook-agent/backoff"
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
	// noteTimeout bounds what an ending term still writes.
	noteTimeout = 2 * time.Second
)

// errCoverage ends a term: what the stream holds is not what it held when it began. The next one begins with a recovery.
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

// recovery finds what the stream has not brought: it compares the outbox with the delivery log, soon and completely after a gap, now and
// then while all is well, and all the time while the stream does not bring everything. It runs beside the stream.
type recovery struct {
	db     *outbox.DB
	slot   *outbox.Slot
	log    *slog.Logger
	mend   func(context.Context) // makes what is missing of the publications where it may
	term   outbox.Term
	ledger *outbox.Ledger

	recovering atomic.Bool            // events may have passed by unseen and the comparison is not complete
	uncovered  atomic.Pointer[string] // why the stream does not bring all events; nil while it does
	// passedOver reports that the stream has passed events over in this term, or may have.
	passedOver atomic.Bool
	// uncover wakes run when uncovered is set; look sends without waiting, so one place is enough.
	uncover chan struct{}
	// reloads asks the router to load endpoints and replays anew. It closes what it gets afterwards.
	reloads chan chan<- struct{}
	// looked is closed after the first look at the database's vitals. What comes after it finds a connection that is free, and need not
	// open one.
	looked    chan struct{}
	hasLooked func() // closes looked
	// compared is closed after the first comparison.
	compared chan struct{}
	mending  backoff.Trouble // the stream does not bring everything
}

func newRecovery(db *outbox.DB, slot *outbox.Slot, log *slog.Logger, held outbox.Term, ledger *outbox.Ledger, mend func(context.Context)) *recovery {
	r := &recovery{
		db: db, slot: slot, log: log, mend: mend, term: held, ledger: ledger,
		uncover: make(chan struct{}, 1), reloads: make(chan chan<- struct{}), looked: make(chan struct{}), compared: make(chan struct{}),
		mending: backoff.Trouble{
			Log: log, Level: slog.LevelError, // errCoverage is its end
			Begins: "the stream does not bring all events any more; the outbox is compared with the delivery log instead",
		},
	}
	r.hasLooked = sync.OnceFunc(func() { close(r.looked) })
	if held.Gap != "" {
		r.recovering.Store(true)
		log.Info("events may have passed the stream unseen; the outbox is compared with the delivery log beside the stream", "gap", held.Gap)
	}
	return r
}

// run compares again and again until ctx ends. After a gap the first comparison finds what was passed over, beside the stream, and the
// second one completes the recovery. While the stream does not bring all, it does not bring all changes of endpoints and all replays
// either, so these are loaded anew before each comparison.
func (r *recovery) run(ctx context.Context) {
	at := wellKnown
	if r.term.Gap != "" {
		at = sweeping
	}
	var total int64 // recovered so far, by the recovery
	hasCompared := sync.OnceFunc(func() { close(r.compared) })
	// Whatever is wrong with the database shows elsewhere too; this says what it is that waits for it.
	waiting := backoff.Trouble{
		Log: r.log, Level: slog.LevelWarn, Begins: "the outbox cannot be compared with the delivery log yet; trying again",
		Ends: "the outbox is compared with the delivery log again",
	}
	select {
	case <-r.looked:
	case <-ctx.Done():
		return
	}
	for {
		uncovered := r.uncovered.Load() != nil
		if uncovered {
			r.reload(ctx)
		}
		recovered, took, err := r.compare(ctx, at, uncovered)
		if ctx.Err() != nil {
			return
		}
		total += recovered
		if !errors.Is(err, errCoverage) {
			waiting.Note(err)
		}
		wait := max(barrierInterval, reconcileShare*took)
		switch {
		case err == nil && at == sweeping:
			at, wait = completing, 0
		case err == nil:
			r.tellRecovered(total, at, uncovered)
			hasCompared()
			at, total = wellKnown, 0
			wait = max(reconcileInterval, reconcileShare*took)
			if uncovered {
				wait = max(uncoveredInterval, reconcileShare*took)
			}
		case at != wellKnown:
			wait = barrierInterval // a recovery goes on where it stands
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-r.uncover:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// compare makes one comparison and returns what it found, also when it fails, and how long the database worked on it. While
// transactions have not ended that a recovery must see, it returns an error that names the oldest. errCoverage reports that look is
// about to end the term.
func (r *recovery) compare(ctx context.Context, at stage, uncovered bool) (recovered int64, took time.Duration, err error) {
	// The order holds the promises: what the horizon sees and the stream brings is recorded before anything is looked for.
	horizon, err := r.slot.Horizon(ctx)
	if err != nil {
		return 0, 0, err
	}
	if !uncovered && !horizon.Coverage.Continues(r.term.Coverage) {
		return 0, 0, errCoverage // a horizon of now would hide from the next term what was passed over
	}
	if at == completing && !uncovered {
		if !horizon.Passed(r.term.Barrier) {
			blocker, err := r.slot.Blocker(ctx)
			if err != nil {
				return 0, 0, err
			}
			return 0, 0, errors.New("a recovery ends when the transactions have ended that were open when it began, the oldest of them " + blocker)
		}
		horizon.Completes = true
	}
	if err := r.ledger.AwaitRecorded(ctx, horizon.LSN); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	recovered, err = r.slot.Reconcile(ctx, r.ledger, horizon, at != wellKnown || uncovered)
	return recovered, time.Since(began), err
}

// reload has the router load the endpoints and replays anew, and waits for it.
func (r *recovery) reload(ctx context.Context) {
	done := make(chan struct{})
	select {
	case r.reloads <- done:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// isOpen reports whether events may have passed by unseen that no comparison has found yet.
func (r *recovery) isOpen() bool { return r.recovering.Load() || r.uncovered.Load() != nil }

// tellRecovered tells what a comparison, or a recovery, has found.
func (r *recovery) tellRecovered(recovered int64, at stage, uncovered bool) {
	r.recovering.Store(false)
	switch {
	case at != wellKnown && !uncovered:
		level := slog.LevelInfo
		if recovered > 0 {
			level = slog.LevelWarn
		}
		r.log.Log(context.Background(), level, "recovery is complete", "gap", r.term.Gap, "recovered_deliveries", recovered)
	case recovered > 0 && uncovered:
		r.log.Warn("events that the stream passed over were found in the outbox", "recovered_deliveries", recovered)
	case recovered > 0:
		r.log.Error("events had passed the stream unseen although nothing was known to be wrong; they were found in the outbox",
			"recovered_deliveries", recovered)
	}
}

// look returns errCoverage when the stream may not hold what it held when the term began. When it does not bring everything now and that
// cannot be mended from here, the term goes on and lives on comparisons, which is better than standing still. In either case the
// next term begins with a recovery.
func (r *recovery) look(ctx context.Context) error {
	now, err := r.db.Coverage(ctx)
	if err != nil {
		return nil //nolint:nilerr // it shows elsewhere
	}
	if now.Continues(r.term.Coverage) {
		if r.uncovered.Load() != nil {
			return errCoverage // all is as it was, but was not for a while
		}
		return nil
	}
	if !r.passedOver.Swap(true) {
		r.noteGap(ctx)
	}
	r.mend(ctx)
	problem := r.db.Published(ctx)
	switch {
	case ctx.Err() != nil:
		return nil //nolint:nilerr // what could not be looked at says nothing
	case problem == nil:
		return errCoverage
	}
	if p, ok := errors.AsType[*outbox.Problem](problem); !ok || !p.Fatal {
		return nil // it could not be looked at
	}
	text := problem.Error()
	r.uncovered.Store(&text)
	if r.mending.Note(problem) {
		select {
		case r.uncover <- struct{}{}:
		default:
		}
	}
	return nil
}

// end takes note of a gap once more when the term is over: a comparison that was under way may have ended a recovery since.
func (r *recovery) end() {
	if r.passedOver.Load() {
		r.noteGap(context.Background())
	}
}

// noteGap notes in the checkpoint that the stream passes events over. An error shows elsewhere; end notes it once more.
func (r *recovery) noteGap(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	if err := r.slot.NoteGap(ctx, r.term); err != nil {
		r.log.Debug("the gap could not be noted", "error", err)
	}
}
