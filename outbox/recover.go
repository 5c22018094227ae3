package outbox

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/quintago/webhook-agent/crashpoint"
)

// giveLimit is how many pairs of an event and an endpoint one transaction of a comparison handles.
// It is small enough that the ledger can record other deliveries between two such transactions,
// however many endpoints want one event.
const giveLimit = 1000

// giveRows asks the Ledger to add the missing rows of events. It returns how many were missing.
func (w *partWalk) giveRows(ctx context.Context, l *Ledger, events []found) (int64, error) {
	done := make(chan jobResult, 1)
	return l.await(ctx, &recoverJob{sql: w.mapping.giveSQL(w.to.Coverage.streamed()), args: w.args, found: events, recovered: l.cfg.Recovered, done: done}, done)
}

// recoverJob adds the missing rows of events, a bounded number in each step.
type recoverJob struct {
	sql   string
	args  func(further values) []any
	found []found
	// first is the first event that is not done. after is the endpoint behind which its rows go on.
	first int
	after string

	// These are the results of the last step.
	nextFirst int
	nextAfter string
	endpoints []string // one for each new row

	added     int64
	recovered func(n int) // LedgerConfig.Recovered
	failed    error
	done      chan<- jobResult // has room for one value
}

func (j *recoverJob) step(ctx context.Context, tx querier) (finished bool, err error) {
	piece := j.piece()
	relations, places := make([]uint32, len(piece)), make([]pgtype.TID, len(piece))
	for i, f := range piece {
		relations[i], places[i] = f.relation, f.place
	}
	var (
		last   string
		looked int64
	)
	err = tx.QueryRow(ctx, j.sql, j.args(values{"relations": relations, "places": places, "after": j.after, "limit": giveLimit})...).Scan(&last, &looked, &j.endpoints)
	j.nextFirst, j.nextAfter = j.first+len(piece), ""
	if len(piece) == 1 && looked == giveLimit {
		j.nextFirst, j.nextAfter = j.first, last // the event's venue has more endpoints
	}
	return j.nextFirst == len(j.found), err
}

// piece returns the events of the next step: one event, or as many as together have giveLimit
// endpoints at most.
func (j *recoverJob) piece() []found {
	rest := j.found[j.first:]
	if j.after != "" {
		return rest[:1]
	}
	n, endpoints := 1, rest[0].endpoints
	for n < len(rest) && endpoints+rest[n].endpoints <= giveLimit {
		endpoints += rest[n].endpoints
		n++
	}
	return rest[:n]
}

func (j *recoverJob) committed() (requeued []string) {
	j.first, j.after = j.nextFirst, j.nextAfter
	j.added += int64(len(j.endpoints))
	if j.recovered != nil && len(j.endpoints) > 0 {
		j.recovered(len(j.endpoints))
	}
	slices.Sort(j.endpoints)
	requeued, j.endpoints = slices.Compact(j.endpoints), nil
	crashpoint.Hit(crashpoint.InSweep)
	if j.failed != nil || j.first == len(j.found) {
		j.done <- jobResult{added: j.added, err: j.failed}
	}
	return requeued
}

func (j *recoverJob) pause() time.Duration { return 0 }

func (j *recoverJob) abandon(_ context.Context, _ querier, reason string) error {
	j.endpoints, j.failed = nil, fmt.Errorf("give events their rows: %s", reason)
	return nil
}
