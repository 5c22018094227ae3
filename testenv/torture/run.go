package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// carryOut makes a run and writes its files. It ends everything that it starts, whatever happens.
func carryOut(ctx context.Context, c config, dir string, say func(string, ...any)) (err error) {
	watch := stopwatch{time.Now()}
	w, err := newWorld(ctx, c, dir, watch)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.startAgents(ctx); err != nil {
		return err
	}

	// The schedule counts from here. The files count from the begin of the run.
	main, side := newSchedule(c.seed, c.length(), c.only)
	begin := watch.now()
	for _, track := range [][]stroke{main, side} {
		for i := range track {
			track[i].At += begin
			say("  plan %s", track[i])
		}
	}
	if err := w.describe(c); err != nil {
		return err
	}

	load, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	writers := &writers{
		url: w.cluster.RoleURL(appRole, databaseName), rate: c.rate, venues: w.venues, clock: watch,
		writes: w.files.writes, endings: w.files.endings,
	}
	operator := &operator{
		url: w.cluster.URL(databaseName), endpoints: w.endpoints, clock: watch, operations: w.files.operations,
		random: rand.New(rand.NewPCG(c.seed, 4)),
	}
	t := &tormentor{
		cluster: w.cluster, database: w.cluster.URL(databaseName), agents: w.agents, receivers: w.receivers, clock: watch,
		faults: w.files.faults, say: say,
	}
	waitForWriters := writers.start(load, c.seed)
	var aside sync.WaitGroup
	aside.Go(func() { operator.run(load) }) // ends when load ends, as the writers do
	var tracks sync.WaitGroup               // the tracks end with their strokes, or with ctx
	tracks.Go(func() { t.run(ctx, main) })
	tracks.Go(func() { t.run(ctx, side) })
	tracks.Wait()
	// Keep up the load until the end, and a little longer if the last fault was late.
	pause(ctx, max(leadOut, begin+c.length()-watch.now()))
	stopLoad()
	waitForWriters()
	aside.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}

	say("the faults are over at %.1fs; settling", watch.now().Seconds())
	if err := w.settle(ctx, operator, c.patience, say); err != nil {
		return err
	}
	if err := w.rest(ctx); err != nil {
		return err
	}
	if err := w.endAgents(ctx); err != nil {
		return err
	}
	if err := w.saveUnseen(); err != nil {
		return err
	}
	say("settled at %.1fs; judging", watch.now().Seconds())
	return w.dump(ctx)
}
