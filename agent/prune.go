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
	// pruneInterval is the time between two runs that delete rows older than outbox.retention.
	pruneInterval = time.Minute
	// pruneShare limits the cost of pruning: after each transaction it rests for this many times
	// the time that the transaction took.
	pruneShare = 4
	// muchPruned is how many rows a run must delete for a line in the log.
	muchPruned = 100_000
)

// everyTable stands for all tables in a log message.
const everyTable outbox.PrunedTable = "all"

// pruneOrder is the order of tables that outbox.Pruner requires.
var pruneOrder = []outbox.PrunedTable{outbox.PrunedOutbox, outbox.PrunedDeliveries, outbox.PrunedReplays, outbox.PrunedRemoved}

// pruning deletes rows that are older than outbox.retention.
type pruning struct {
	pruner    *outbox.Pruner
	retention time.Duration // outbox.retention; zero means for ever
	log       *slog.Logger
	pruned    *prometheus.CounterVec // by table
	// Reports whether the preflight has found and logged this problem.
	known    func(*outbox.Problem) bool
	troubles map[outbox.PrunedTable]*backoff.Trouble
}

// run prunes, run after run, until ctx ends. It waits until compared is closed, which is after the
// first complete comparison of the term: that one stores the horizon that pruning needs.
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
		// Only tests have a retention that short.
		if !backoff.Sleep(ctx, min(pruneInterval, r.retention/4)) {
			return
		}
	}
}

// once makes one run over all tables.
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

// table prunes one table, and rests between the transactions. It adds the deleted rows to total.
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

// note logs once when a table cannot be pruned, and once when it can again. It skips a problem that
// the preflight has logged.
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
