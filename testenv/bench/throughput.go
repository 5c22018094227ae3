package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// scenario is one part of the run.
type scenario struct {
	name    string
	measure func(*bench, context.Context) error
}

// peerScenarios are measured if the command line asks for them and pgstream can be had.
var peerScenarios = []scenario{
	{"peers: 1 endpoint", (*bench).peersOneEndpoint},
	{"peers: a slow endpoint", (*bench).peersSlowEndpoint},
}

var scenarios = []scenario{
	{"throughput to 1 endpoint", (*bench).oneEndpoint},
	{"throughput to 10 endpoints", (*bench).tenEndpoints},
	{"throughput to slow endpoints", (*bench).slowEndpoints},
	{"throughput to many endpoints", (*bench).manyEndpoints},
	{"throughput over TLS", (*bench).overTLS},
	{"latency", onEndpoint((*bench).latency)},
	{"isolation: the tenth hangs", (*bench).besideHanging},
	{"isolation: the tenth refuses", (*bench).besideRefusing},
	{"isolation: the tenth is late", (*bench).besideLate},
	{"isolation: the tenth has a backlog", (*bench).besideBacklog},
	{"growth", (*bench).growth},
	{"log", (*bench).pages},
	{"hammered API", (*bench).besideHammering},
	{"open pages", (*bench).besidePages},
	{"burst", onEndpoint((*bench).burst)},
	{"sizes: a large fan-out", onEndpoint((*bench).largeFanout)},
	{"sizes: all endpoints change", onEndpoint((*bench).manyChanges)},
	{"sizes: all endpoints are due", onEndpoint((*bench).manyDue)},
	{"sizes: a database that is far away", onEndpoint((*bench).farDatabase)},
	{"sizes: a slot is lost", onEndpoint((*bench).lostSlot)},
	{"sizes: large bodies", (*bench).largeBodies},
	{"sizes: large bodies that wait", (*bench).hangingBodies},
	{"cost", onEndpoint((*bench).cost)},
	{"idle", onEndpoint((*bench).atRest)},
}

// onEndpoint makes a scenario from a measurement of a database that has one sound endpoint, of the
// first venue.
func onEndpoint(measure func(*bench, context.Context, *database) error) func(*bench, context.Context) error {
	return func(b *bench, ctx context.Context) (err error) {
		d, err := b.newDatabase(ctx, agentOptions{})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.drop(ctx)) }()
		if err := d.endpoint(ctx, "ep_1", venue(0), b.customers.url(sound, 0)); err != nil {
			return err
		}
		return measure(b, ctx, d)
	}
}

// These are the goals of the agent on 2 cores.
const (
	goalOne       = 0.75
	goalTen       = 1.10
	goalSlow      = 0.95
	goalMany      = 1.80
	goalTLS       = 0.95
	goalBeside    = 0.97
	goalGrown     = 0.90
	goalP99       = 10 * time.Millisecond
	goalHalfP99   = 15 * time.Millisecond
	goalBare      = 2.0
	goalMemory    = 256 << 20
	goalLag       = 2 * time.Second
	goalLagSize   = 64 << 20
	goalRows      = 1.0
	goalWAL       = 390             // bytes for a delivery
	goalProcessor = 5 * time.Second // for 100,000 deliveries, agent and PostgreSQL together
	goalBystander = time.Second
	goalFarLead   = 40 * time.Second
	goalCore      = 0.005
	goalQueries   = 1.0
	goalFirstPage = 20 * time.Millisecond
	goalPage      = 100 * time.Millisecond
)

func (b *bench) measure(ctx context.Context) error {
	chosen := scenarios
	if b.peers {
		// Who has to install something should learn it before the others are measured.
		if err := b.preparePeers(ctx); err != nil {
			return err
		}
		if b.peer != "" {
			chosen = slices.Concat(scenarios, peerScenarios)
		}
	}
	for _, s := range chosen {
		if !b.only.MatchString(s.name) {
			continue
		}
		b.say("%s: %s", time.Now().Format(time.TimeOnly), s.name)
		if err := s.measure(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	b.report.print(b.out)
	if b.markdown {
		b.report.printMarkdown(b.out)
	}
	return nil
}

// contest measures the agent and the floor in turn.
type contest struct {
	name        string
	goal        float64 // 0 for none
	options     agentOptions
	concurrency int // of the floor; the agent's is in its options
	// noClient leaves the floor with the agent's client out. The connections that it keeps would
	// come to those that the agent keeps, which may be more than a process may have open.
	noClient bool
	load     load
	venues   int
	urls     func(venue int) []string
}

func (b *bench) oneEndpoint(ctx context.Context) error {
	return b.contest(ctx, contest{
		name: "throughput, 1 endpoint", goal: goalOne, concurrency: 16, load: b.full(1, 1), venues: 1,
		urls: func(int) []string { return []string{b.customers.url(sound, 0)} },
	})
}

func (b *bench) tenEndpoints(ctx context.Context) error {
	return b.contest(ctx, contest{
		name: "throughput, 10 endpoints for each event", goal: goalTen, concurrency: 160, load: b.full(1, 10), venues: 1,
		urls: func(int) (urls []string) {
			for i := range 10 {
				urls = append(urls, b.customers.url(sound, i))
			}
			return urls
		},
	})
}

func (b *bench) slowEndpoints(ctx context.Context) error {
	return b.contest(ctx, contest{
		name: "throughput, 50 endpoints at 20 ms, 64 requests at a time", goal: goalSlow, concurrency: 64, options: agentOptions{Concurrency: 64},
		load: b.full(50, 1), venues: 50,
		urls: func(v int) []string { return []string{b.customers.url(slow, v)} },
	})
}

func (b *bench) manyEndpoints(ctx context.Context) error {
	return b.contest(ctx, contest{
		name: fmt.Sprintf("throughput, %d endpoints at addresses of their own, in turn", b.venues), goal: goalMany, concurrency: 256, noClient: true, load: b.full(b.venues, 1), venues: b.venues,
		urls: func(v int) []string { return []string{b.customers.hostURL(sound, v)} },
	})
}

func (b *bench) overTLS(ctx context.Context) error {
	return b.contest(ctx, contest{
		name: "throughput, 1 endpoint over TLS", goal: goalTLS, concurrency: 16, load: b.full(1, 1), venues: 1,
		urls: func(int) []string { return []string{b.customers.tlsURL(sound, 0)} },
	})
}

func (b *bench) contest(ctx context.Context, c contest) (err error) {
	d, err := b.newDatabase(ctx, c.options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.drop(ctx)) }()
	var urls []string
	for v := range c.venues {
		for i, url := range c.urls(v) {
			if err := d.endpoint(ctx, fmt.Sprintf("ep_%06d_%d", v, i), venue(v), url); err != nil {
				return err
			}
			urls = append(urls, url)
		}
	}
	if err := d.warm(ctx, c.load); err != nil {
		return err
	}
	var (
		rates, floors, clients, ratios []float64
		most                           lag
	)
	for range b.rounds {
		task := floorTask{URLs: urls, Concurrency: c.concurrency, Length: b.stretch, CAFile: d.file("ca")}
		floor, err := ask[floorResult](ctx, floorRole, task)
		if err != nil {
			return err
		}
		if task.Client = !c.noClient; task.Client {
			client, err := ask[floorResult](ctx, floorRole, task)
			if err != nil {
				return err
			}
			clients = append(clients, client.rate())
		}
		r, err := d.deliver(ctx, c.load)
		if err != nil {
			return err
		}
		rate := floor.rate()
		rates, floors, ratios = append(rates, r.rate()), append(floors, rate), append(ratios, r.rate()/rate)
		most.add(r.lag)
		b.say("  agent %s, floor %s, ratio %.2f, lag %s, %s, %s", perSecond(r.rate()), perSecond(rate), r.rate()/rate,
			r.lag.age.Round(time.Millisecond), mebibytes(r.lag.bytes), r.processors)
	}
	line := row{
		scenario: c.name, value: perSecond(median(rates)), ratio: fmt.Sprintf("%.2f", median(ratios)),
		compared: "floor " + perSecond(median(floors)),
	}
	if !c.noClient {
		line.compared += ", with the agent's client " + perSecond(median(clients))
	}
	if c.goal > 0 {
		line.goal, line.reached = fmt.Sprintf("at least %.2f", c.goal), median(ratios) >= c.goal
	}
	b.report.add(line)
	b.reportLag(c.name, most)
	return nil
}

// warm starts the agent and lets it deliver. So what follows finds connections, plans and limits as
// they are in the long run.
func (d *database) warm(ctx context.Context, l load) error {
	if err := d.start(ctx); err != nil {
		return err
	}
	l.length /= 2
	_, err := d.deliver(ctx, l)
	return err
}

func (b *bench) reportLag(scenario string, l lag) {
	b.report.add(row{
		scenario: "slot lag: " + scenario, value: fmt.Sprintf("%.1f s, %s", l.age.Seconds(), mebibytes(l.bytes)),
		goal: "at most 2 s, 64 MiB", reached: l.age <= goalLag && l.bytes <= goalLagSize,
	})
}
