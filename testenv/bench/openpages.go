package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// The scenario of this file is many people who have a page of the console open while events are
// delivered. Each page asks as its script does.

const (
	// openPages is how many are open: half of them the overview, half the live log.
	openPages     = 200
	overviewEvery = 5 * time.Second
	logEvery      = 2 * time.Second
)

// besidePages measures an endpoint in turn with and without the pages.
func (b *bench) besidePages(ctx context.Context) (err error) {
	d, err := b.newDatabase(ctx, agentOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.drop(ctx)) }()
	if err := d.endpoint(ctx, "ep_sound", venue(0), b.customers.url(sound, 0)); err != nil {
		return err
	}
	l := b.full(1, 1)
	if err := d.warm(ctx, l); err != nil {
		return err
	}
	site, err := d.openConsole(ctx)
	if err != nil {
		return err
	}
	var rates, ratios []float64
	var answered, failed int64
	for range b.rounds {
		quiet, err := d.deliver(ctx, l)
		if err != nil {
			return err
		}
		open := site.open(ctx)
		r, err := d.deliver(ctx, l)
		open.close()
		if err != nil {
			return err
		}
		answered, failed = answered+open.answered.Load(), failed+open.failed.Load()
		rates, ratios = append(rates, r.rate()), append(ratios, r.rate()/quiet.rate())
		b.say("  with %d pages: %s, without them %s, ratio %.2f; %d answers, %d failures", openPages, perSecond(r.rate()), perSecond(quiet.rate()), r.rate()/quiet.rate(), open.answered.Load(), open.failed.Load())
	}
	if failed > 0 {
		return fmt.Errorf("%d requests of open pages failed; the agent's log ends:\n%s", failed, testenv.LogTail(d.file("log")))
	}
	ratio := median(ratios)
	b.report.add(row{
		scenario: fmt.Sprintf("1 endpoint, %d pages of the console are open", openPages), value: perSecond(median(rates)),
		compared: fmt.Sprintf("without them; %d answers", answered), ratio: fmt.Sprintf("%.2f", ratio),
		goal: fmt.Sprintf("at least %.2f", goalBeside), reached: ratio >= goalBeside,
	})
	return nil
}

// pagesOpen are pages that ask every few seconds.
type pagesOpen struct {
	answered, failed atomic.Int64
	cancel           context.CancelFunc
	pages            sync.WaitGroup
}

func (p *pagesOpen) close() {
	p.cancel()
	p.pages.Wait()
}

// open opens the pages, one after another within the first seconds, as people do.
func (s *consoleSite) open(ctx context.Context) *pagesOpen {
	ctx, cancel := context.WithCancel(ctx)
	p := &pagesOpen{cancel: cancel}
	for i := range openPages {
		path, every := "/console/live", overviewEvery
		switch i % 4 {
		case 1:
			path, every = "/console/deliveries/live?position=0", logEvery
		case 3:
			path, every = "/console/v/"+venue(0)+"/deliveries/live?position=0", logEvery
		}
		p.pages.Go(func() {
			timer := time.NewTimer(every * time.Duration(i) / openPages)
			defer timer.Stop()
			for {
				select {
				case <-timer.C:
				case <-ctx.Done():
					return
				}
				_, _, err := s.get(ctx, path)
				switch {
				case ctx.Err() != nil:
					return
				case err != nil:
					p.failed.Add(1)
				default:
					p.answered.Add(1)
				}
				timer.Reset(every)
			}
		})
	}
	return p
}
