package agent

import (
	"context"
	"errors"
	"time"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
)

const (
	// pruneInterval is how often what has become older than the retention is deleted.
	pruneInterval = time.Minute
	// pruneShare bounds what pruning may cost: after each transaction it rests that many times as long as that took.
	pruneShare = 4
	// muchPruned is how many rows a run must delete to be worth a line in the log.
	muchPruned = 100_000
)

// everyTable stands for all of them in a message.
const everyTable outbox.PrunedTable = "all"

// pruneOrder is that of the rules of outbox.Pruner.
var pruneOrder = []outbox.PrunedTable{outbox.PrunedOutbox, outbox.PrunedDeliveries, outbox.PrunedReplays}

// prune deletes what is older than the retention, again and again, until ctx ends. It begins after the first comparison of the term,
// which takes the horizon that it goes by.
func (s *session) prune(ctx context.Context) {
	retention := s.cfg.Outbox.Retention
	if retention == 0 {
		return
	}
	select {
	case <-s.compared:
	case <-ctx.Done():
		return
	}
	run := pruneRun{session: s, pruner: s.slot.NewPruner(s.term), told: map[outbox.PrunedTable]string{}}
	for {
		run.once(ctx)
		if !backoff.Sleep(ctx, min(pruneInterval, retention/4)) { // a retention that short is a test's
			return
		}
	}
}

// pruneRun is what runs of prune have in common.
type pruneRun struct {
	*session
	pruner *outbox.Pruner
	told   map[outbox.PrunedTable]string // the last error of each table that was logged
}

// once makes one run.
func (r *pruneRun) once(ctx context.Context) {
	began := time.Now()
	if err := r.pruner.Begin(ctx); err != nil {
		r.tell(ctx, everyTable, err)
		return
	}
	r.tell(ctx, everyTable, nil)
	total := outbox.Pruned{}
	for _, table := range pruneOrder {
		err := r.table(ctx, table, total)
		if ctx.Err() != nil {
			return
		}
		r.tell(ctx, table, err)
	}
	var rows int64
	for _, n := range total {
		rows += n
	}
	if rows >= muchPruned {
		r.log.Info("rows older than outbox.retention were deleted", "outbox", total[outbox.PrunedOutbox], "deliveries", total[outbox.PrunedDeliveries],
			"attempts", total[outbox.PrunedAttempts], "replays", total[outbox.PrunedReplays], "took", time.Since(began).Round(time.Second))
	}
}

// table prunes one table, resting between the transactions.
func (r *pruneRun) table(ctx context.Context, table outbox.PrunedTable, total outbox.Pruned) error {
	for {
		began := time.Now()
		pruned, done, err := r.pruner.Step(ctx, table)
		for from, n := range pruned {
			r.metrics.pruned.WithLabelValues(string(from)).Add(float64(n))
			total[from] += n
		}
		if err != nil || done || !backoff.Sleep(ctx, pruneShare*time.Since(began)) {
			return err
		}
	}
}

// tell logs why a table is not pruned once, when it changes, and that it is again. What the preflight has found is known.
func (r *pruneRun) tell(ctx context.Context, table outbox.PrunedTable, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text == r.told[table] || ctx.Err() != nil {
		return
	}
	r.told[table] = text
	problem, isProblem := errors.AsType[*outbox.Problem](err)
	switch {
	case err == nil:
		r.log.Info("pruning goes on", "table", table)
	case isProblem && r.warned[problem.Thing+": "+problem.Reason]:
	default:
		r.log.Warn("old rows are not pruned; trying again", "table", table, "error", err)
	}
}
