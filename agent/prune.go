package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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

// pruning deletes what is older than the retention.
type pruning struct {
	pruner    *outbox.Pruner
	retention time.Duration // outbox.retention, zero for ever
	log       *slog.Logger
	pruned    *prometheus.CounterVec     // by table
	known     func(*outbox.Problem) bool // reports whether the preflight has found it
	troubles  map[outbox.PrunedTable]*backoff.Trouble
}

// run prunes again and again until ctx ends. It begins after the first comparison of the term, which takes the horizon that it goes by.
func (r *pruning) run(ctx context.Context, compared <-chan struct{}) {
	if r.retention == 0 {
		return
	}
	select {
	case <-compared:
	case <-ctx.Done():
		return
	}
	r.troubles = map[outbox.PrunedTable]*backoff.Trouble{}
	for {
		r.once(ctx)
		if !backoff.Sleep(ctx, min(pruneInterval, r.retention/4)) { // a retention that short is a test's
			return
		}
	}
}

// once makes one run.
func (r *pruning) once(ctx context.Context) {
	began := time.Now()
	if err := r.pruner.Begin(ctx); err != nil {
		r.note(ctx, everyTable, err)
		return
	}
	r.note(ctx, everyTable, nil)
	total := outbox.Pruned{}
	for _, table := range pruneOrder {
		err := r.table(ctx, table, total)
		if ctx.Err() != nil {
			return
		}
		r.note(ctx, table, err)
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
func (r *pruning) table(ctx context.Context, table outbox.PrunedTable, total outbox.Pruned) error {
	for {
		began := time.Now()
		pruned, done, err := r.pruner.Step(ctx, table)
		for from, n := range pruned {
			r.pruned.WithLabelValues(string(from)).Add(float64(n))
			total[from] += n
		}
		if err != nil || done || !backoff.Sleep(ctx, pruneShare*time.Since(began)) {
			return err
		}
	}
}

// note takes note of whether a table can be pruned. What the preflight has found is known.
func (r *pruning) note(ctx context.Context, table outbox.PrunedTable, err error) {
	if problem, is := errors.AsType[*outbox.Problem](err); ctx.Err() != nil || is && r.known(problem) {
		return
	}
	trouble := r.troubles[table]
	if trouble == nil {
		trouble = &backoff.Trouble{Log: r.log, Level: slog.LevelWarn, Begins: "old rows are not pruned; trying again", Ends: "pruning goes on"}
		r.troubles[table] = trouble
	}
	trouble.Note(err, "table", table)
}
