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
	// reconcileInterval is the time between two comparisons of the outbox with the delivery log
	// while all is well. uncoveredInterval is that time while a publication does not contain the
	// outbox, because then only the comparison delivers.
	reconcileInterval = 3 * time.Minute
	uncoveredInterval = 5 * time.Second
	// reconcileShare limits the cost of the comparison: after each one, it rests for this many
	// times the time that it took.
	reconcileShare = 50
	// barrierInterval is the wait before a comparison that failed is tried again.
	barrierInterval = time.Second
	// noteTimeout limits the time for what an ending term still writes.
	noteTimeout = 2 * time.Second
)

// errCoverage ends a term whose stream no longer contains what it did when the term began. The next
// term begins with a recovery.
var errCoverage = errors.New("the publications or the outbox's tables have changed; the stream begins anew and the outbox is compared with the delivery log")

// stage is the progress of the recovery of a term.
type stage int

const (
	// sweeping is the stage before the first comparison. That one waits for no transaction, so that
	// events that the stream missed are delivered soon.
	sweeping stage = iota
	// completing is the stage before the second comparison. That one sees all transactions that
	// were open when the gap ended, so it waits until they have ended.
	completing
	// wellKnown is the stage after that. A term without a gap begins with it.
	wellKnown
)

// recovery finds the events that the stream has not brought, by comparing the outbox with the
// delivery log. It compares at once and completely after a gap, now and then while all is well, and
// all the time while the stream does not bring every event. It runs beside the stream.
type recovery struct {
	db     *outbox.DB
	slot   *outbox.Slot
	log    *slog.Logger
	mend   func(context.Context) // makes what is missing of the publications where it may
	term   outbox.Term
	ledger *outbox.Ledger

	// Events may have been missed, and the comparison is not complete.
	recovering atomic.Bool
	// Why the stream does not bring every event; nil while it does.
	uncovered atomic.Pointer[string]
	// passedOver reports that the stream has missed events in this term, or may have.
	passedOver atomic.Bool
	// uncover wakes run when uncovered is set. look sends and does not wait, so one place is
	// enough.
	uncover chan struct{}
	// reloads asks the router to reload endpoints and replays. The router closes the channel that
	// it receives when it has done so.
	reloads chan chan<- struct{}
	// looked is closed after the first look at the database's vitals. run waits for it, so that it
	// can use the same connection and need not open one.
	looked    chan struct{}
	hasLooked func() // closes looked
	// compared is closed after the first complete comparison. Pruning waits for it.
	compared chan struct{}
	mending  backoff.Trouble // that the stream does not bring every event
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

// run makes one comparison after the other until ctx ends. After a gap, the first one finds what
// the stream missed, and the second one completes the recovery. While the stream does not bring
// every event, it does not bring every change of an endpoint and every replay either. So these are
// reloaded before each comparison.
func (r *recovery) run(ctx context.Context) {
	at := wellKnown
	if r.term.Gap != "" {
		at = sweeping
	}
	var total int64 // deliveries that this recovery has found so far
	hasCompared := sync.OnceFunc(func() { close(r.compared) })
	// Other parts report what is wrong with the database. This message says that the comparison
	// waits for it.
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
			r.logRecovered(total, at, uncovered)
			hasCompared()
			at, total = wellKnown, 0
			wait = max(reconcileInterval, reconcileShare*took)
			if uncovered {
				wait = max(uncoveredInterval, reconcileShare*took)
			}
		case at != wellKnown:
			wait = barrierInterval // a recovery continues at its stage
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

// compare makes one comparison. recovered is the number of deliveries found, also when it fails;
// took is how long the database worked on it. It returns an error that names the oldest blocking
// transaction while transactions are open which the completing comparison must see. It returns
// errCoverage when recovery.look is about to end the term.
func (r *recovery) compare(ctx context.Context, at stage, uncovered bool) (recovered int64, took time.Duration, err error) {
	// The order of the steps keeps the promises. Events that the horizon sees and that the stream
	// brings must be recorded before missing ones are looked for.
	horizon, err := r.slot.Horizon(ctx)
	if err != nil {
		return 0, 0, err
	}
	if !uncovered && !horizon.Coverage.Continues(r.term.Coverage) {
		// A horizon of now would hide from the next term what the stream has missed.
		return 0, 0, errCoverage
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

// reload asks the router to reload the endpoints and replays, and waits for it.
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

// isOpen reports whether events may have been missed that no comparison has found yet.
func (r *recovery) isOpen() bool { return r.recovering.Load() || r.uncovered.Load() != nil }

// logRecovered ends a recovery, and logs what it or a comparison has found.
func (r *recovery) logRecovered(recovered int64, at stage, uncovered bool) {
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

// look returns errCoverage when the stream may no longer contain what it did when the term began.
// When it does not bring every event now, and the agent cannot repair that, the term goes on and
// lives on comparisons: that is better than to deliver nothing. In either case the next term begins
// with a recovery.
func (r *recovery) look(ctx context.Context) error {
	now, err := r.db.Coverage(ctx)
	if err != nil {
		return nil //nolint:nilerr // the ledger and the stream use the same server and report the error
	}
	if now.Continues(r.term.Coverage) {
		if r.uncovered.Load() != nil {
			return errCoverage // the publications are as before, but were not for a while
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
		return nil //nolint:nilerr // the check was cut off, so its result means nothing
	case problem == nil:
		return errCoverage
	}
	if p, ok := errors.AsType[*outbox.Problem](problem); !ok || !p.Fatal {
		return nil // the check failed, so nothing is known
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

// end records the gap again when the term is over. A comparison that was under way may have ended
// the recovery since, and with it the record.
func (r *recovery) end() {
	if r.passedOver.Load() {
		r.noteGap(context.Background())
	}
}

// noteGap records in the checkpoint that the stream misses events. An error is only logged at level
// debug: other parts report it, and end tries again.
func (r *recovery) noteGap(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	if err := r.slot.NoteGap(ctx, r.term); err != nil {
		r.log.Debug("the gap could not be noted", "error", err)
	}
}
