package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// The scenarios of this file measure the agent beside pgstream, if the command line asks for it:
// on the same machine, cluster and receiver, with the same producer, and in turn. Each measurement
// has a database of its own, with the same outbox, and only the system that is measured runs.
//
// The two do not promise the same (docs/testing.md). A delivery of the agent counts once the agent
// has recorded it, and one of pgstream once the receiver has answered.

// peerEndpoints is how many endpoints get each event beside one that is slow.
const peerEndpoints = 50

// match is what both systems have to do.
type match struct {
	name string
	urls []string
	load load
	cost bool // report the processor time, too
}

// effort is what a system has done.
type effort struct {
	rate   float64       // deliveries a second
	own    time.Duration // processor time of the system for 100,000 deliveries
	server time.Duration // that of PostgreSQL, with the app's INSERTs, which are the same for both
}

func (e effort) total() time.Duration { return e.own + e.server }

// preparePeers finds pgstream, or says why it is left out.
func (b *bench) preparePeers(ctx context.Context) (err error) {
	var why leftOutError
	b.peer, err = b.findPgstream(ctx)
	if errors.As(err, &why) {
		b.leaveOut(why)
		return nil
	}
	b.report.peer = "pgstream " + pgstreamVersion
	if b.pgstream != "" {
		b.report.peer = filepath.Base(b.pgstream) // of any version
	}
	return err
}

func (b *bench) peersOneEndpoint(ctx context.Context) error {
	return b.match(ctx, match{name: "1 endpoint", urls: []string{b.customers.url(sound, 0)}, load: b.full(1, 1), cost: true})
}

// peersSlowEndpoint has endpoints at addresses of their own. pgstream keeps two idle connections to
// an address, so with one address for all it would make most of its connections anew.
func (b *bench) peersSlowEndpoint(ctx context.Context) error {
	urls := []string{b.customers.hostURL(slow, 0)}
	for i := 1; i < peerEndpoints; i++ {
		urls = append(urls, b.customers.hostURL(sound, i))
	}
	name := fmt.Sprintf("%d endpoints for each event, one of which answers after %d ms", peerEndpoints, slowAnswer.Milliseconds())
	return b.match(ctx, match{name: name, urls: urls, load: b.full(1, peerEndpoints)})
}

// match measures the agent and pgstream in turn. If pgstream fails, it is left out from then on.
func (b *bench) match(ctx context.Context, m match) error {
	if b.peer == "" {
		return nil
	}
	var agents, peers []effort
	for range b.rounds {
		agent, err := b.withAgent(ctx, m)
		if err != nil {
			return err
		}
		peer, err := b.withPgstream(ctx, m)
		if err != nil && ctx.Err() == nil {
			b.leaveOut(leftOutError{"it has failed: " + err.Error()})
			return nil
		}
		if err != nil {
			return err
		}
		agents, peers = append(agents, agent), append(peers, peer)
		b.say("  agent %s, %s; %s %s, %s; ratio %.2f", perSecond(agent.rate), processorTime(agent),
			b.report.peer, perSecond(peer.rate), processorTime(peer), agent.rate/peer.rate)
	}
	b.report.compare(m, agents, peers)
	return nil
}

// leaveOut measures pgstream no more, and says why.
func (b *bench) leaveOut(why leftOutError) {
	b.peer = ""
	b.say("  %v", why)
	b.report.leftOut = why.Error()
}

// withAgent measures the agent.
func (b *bench) withAgent(ctx context.Context, m match) (e effort, err error) {
	d, err := b.newDatabase(ctx, agentOptions{})
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, d.drop(ctx)) }()
	for i, url := range m.urls {
		if err := d.endpoint(ctx, fmt.Sprintf("ep_%d", i), venue(0), url); err != nil {
			return e, err
		}
	}
	if err := d.warm(ctx, m.load); err != nil {
		return e, err
	}
	return d.effort(d.agent, func() (delivered, error) { return d.deliver(ctx, m.load) })
}

// withPgstream measures pgstream.
func (b *bench) withPgstream(ctx context.Context, m match) (e effort, err error) {
	d, err := b.newDatabase(ctx, agentOptions{})
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, d.drop(ctx)) }()
	p, err := newPgstream(ctx, d, b.peer, m.urls)
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, p.stop(ctx)) }()
	warmUp := m.load
	warmUp.length /= 2
	if _, err := p.deliver(ctx, warmUp); err != nil {
		return e, err
	}
	return d.effort(p.process, func() (delivered, error) { return p.deliver(ctx, m.load) })
}

// effort does work and returns what it has cost.
func (d *database) effort(system *testenv.Process, work func() (delivered, error)) (e effort, err error) {
	server, own, err := d.processorTimes(system)
	if err != nil {
		return e, err
	}
	r, err := work()
	if err != nil {
		return e, err
	}
	serverAfter, ownAfter, err := d.processorTimes(system)
	if err != nil {
		return e, err
	}
	per := func(t time.Duration) time.Duration {
		return time.Duration(float64(t) * 100_000 / float64(r.deliveries))
	}
	return effort{rate: r.rate(), own: per(ownAfter - own), server: per(serverAfter - server)}, nil
}

// processorTimes returns the processor times of PostgreSQL and of the system that delivers.
func (d *database) processorTimes(system *testenv.Process) (server, own time.Duration, err error) {
	if server, err = d.b.cluster.CPU(); err != nil {
		return 0, 0, err
	}
	own, _, err = testenv.CPU(system.PID)
	return server, own, err
}

func processorTime(e effort) string {
	return fmt.Sprintf("%.1f s + PostgreSQL %.1f s", e.own.Seconds(), e.server.Seconds())
}
