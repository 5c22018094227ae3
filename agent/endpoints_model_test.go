package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/lanes"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// The test plays random histories of the table of endpoints: every statement that the contract
// allows, events, replays, and loads of the state. They go to the router, its subscriptions and the
// lanes. A naive model of the table says for each event which endpoints get a delivery, and whether
// it is sent: exactly those of its venue (P5) with a matching pattern at that place of the history
// (P10).
func TestEndpoints_EachEventGoesToThoseThatStoodThereWhenItWasCommitted(t *testing.T) {
	t.Parallel()
	histories := uint64(2000)
	if testing.Short() {
		histories /= 4
	}
	webhook := newWebhook(t)
	m := newMetrics("test", &outbox.Counts{})
	for seed := range histories {
		synctest.Test(t, func(t *testing.T) { playEndpoints(t, seed, webhook, m) })
		if t.Failed() {
			return // one history is enough to read
		}
	}
}

// endpointStatements are the statements that an app may run on endpoints, with their frequency.
var endpointStatements = []struct {
	weight int
	name   string
	do     func(*endpointsPlay, *endpointsTable)
}{
	{10, "insert", (*endpointsPlay).insert},
	{3, "update venue", updating(func(p *endpointsPlay, e *outbox.Endpoint) { e.Venue = p.venue() })},
	{4, "update venue, url", updating(func(p *endpointsPlay, e *outbox.Endpoint) {
		e.Venue = p.venue()
		e.URL = p.url(e.Venue)
	})},
	{4, "update url", updating(func(p *endpointsPlay, e *outbox.Endpoint) { e.URL = p.url(e.Venue) })},
	{4, "update events", updating(func(p *endpointsPlay, e *outbox.Endpoint) { e.Events = p.patterns() })},
	{2, "update secret", updating(func(p *endpointsPlay, e *outbox.Endpoint) { e.Secret = p.secret() })},
	{2, "update previous_secret", updating(func(p *endpointsPlay, e *outbox.Endpoint) {
		e.Previous, e.PreviousUntil = secret.New(p.pick("old", "older")), p.now.Add(time.Hour)
	})},
	{4, "disable", updating(func(_ *endpointsPlay, e *outbox.Endpoint) { e.Disabled = true })},
	{5, "enable", updating(func(_ *endpointsPlay, e *outbox.Endpoint) { e.Disabled = false })},
	{2, "update nothing", updating(func(*endpointsPlay, *outbox.Endpoint) {})},
	{5, "delete", (*endpointsPlay).remove},
	{1, "truncate", (*endpointsPlay).truncate},
}

// endpointsTable is webhooks.endpoints, with the changes that the statements of a transaction have
// made to it.
type endpointsTable struct {
	rows    map[string]outbox.Endpoint
	changes []outbox.Change
}

// modelKey identifies a delivery, and fate is what may happen to it.
type (
	modelKey struct{ endpointID, eventID string }
	fate     uint8
)

const (
	fateSent fate = 1 << iota
	fateMissed
)

func (f fate) String() string {
	return [...]string{"none", "sent", "missed", "sent or missed"}[f]
}

// server is where an endpoint of a venue has had its events sent.
type server struct{ endpointID, url, venue string }

// modelRow is an endpoint of the model at the place of the history that the router has reached.
type modelRow struct {
	outbox.Endpoint
	life int // counts how often the id was registered
}

// endpointsPlay is one history.
type endpointsPlay struct {
	t      *testing.T
	random *rand.Rand
	router *router
	said   []string // the history so far, to be shown

	now     time.Time
	xid     uint32
	lsn     outbox.LSN
	events  map[string]*outbox.Event
	servers map[server]bool
	lives   int
	ids     []string
	wide    bool // a venue has so many endpoints that events go through the backlog

	table   endpointsTable      // all that is committed
	view    map[string]modelRow // what the stream has brought so far
	want    map[modelKey]fate
	open    map[modelKey]int // life of the endpoint of those that want fateSent and may still become missed
	stalled bool
	replays []string

	mu      sync.Mutex // guards what follows
	targets map[*sink.Target]string
	urls    map[*sink.Target]string
	tracked map[modelKey]bool
	got     map[modelKey]fate
	told    []string // replays
	holds   map[*outbox.Hold]bool
}

func playEndpoints(t *testing.T, seed uint64, webhook *sink.Webhook, m *metrics) {
	p := &endpointsPlay{
		t: t, random: rand.New(rand.NewPCG(seed, 9)), now: time.Unix(1e9, 0), xid: 60, lsn: 300,
		table: endpointsTable{rows: map[string]outbox.Endpoint{}}, view: map[string]modelRow{},
		events: map[string]*outbox.Event{}, servers: map[server]bool{}, want: map[modelKey]fate{}, open: map[modelKey]int{},
		targets: map[*sink.Target]string{}, urls: map[*sink.Target]string{}, tracked: map[modelKey]bool{}, got: map[modelKey]fate{},
		holds: map[*outbox.Hold]bool{},
	}
	p.wide = seed%40 == 7
	for i := range map[bool]int{false: 3 + p.random.IntN(6), true: 100}[p.wide] {
		p.ids = append(p.ids, fmt.Sprint("ep", i))
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d:\n%s", seed, strings.Join(p.said, "\n"))
		}
	})
	log := slog.New(slog.DiscardHandler)
	d := config.Default().Delivery
	played := lanes.New(t.Context(), lanes.Config{
		Concurrency: d.Concurrency, EndpointConcurrency: d.EndpointConcurrency, DisableAfter: d.DisableAfter,
		Retries: d.Retries, Lengthen: func(d time.Duration) time.Duration { return d }, QueueBytes: int(d.QueueMemory), Attempt: p.attempt, Leads: func() bool { return true },
		Now: time.Now, Write: p.take, Meter: m, Log: log, Aside: func(outbox.Subject) bool { return false },
	})
	t.Cleanup(func() { played.Stop(t.Context()) })
	p.router = &router{
		subs: newSubscriptions(), lanes: played, track: p.track, write: p.take, metrics: m, log: log,
		target: func(e *outbox.Endpoint) (*sink.Target, error) {
			target := webhook.Target(e.URL.Reveal(), e.Secret, sink.Former{Secret: e.Previous, Until: e.PreviousUntil})
			p.mu.Lock()
			defer p.mu.Unlock()
			p.targets[target], p.urls[target] = e.ID, e.URL.Reveal()
			err := target.Err()
			return target, err
		},
		seal: func(*outbox.Endpoint) {}, removed: func(string) {}, tune: func(int) {},
		term: outbox.Term{LSN: 100, LookupUntil: 200},
	}
	p.play()
}

// play plays the history and waits for the end of everything.
func (p *endpointsPlay) play() {
	p.insert(&p.table)
	p.table.changes = nil
	p.must(p.router.load(p.t.Context(), p.loads()))
	for range 4 + p.random.IntN(24) {
		switch p.random.IntN(12) {
		case 0:
			p.stall(!p.stalled)
		case 1, 2:
			p.expand()
		case 3:
			p.reload()
		default:
			p.route(p.transaction())
		}
	}
	for len(p.router.backlog.queue) > 0 {
		p.expand()
	}
	p.stall(false)
	p.compare()
}

// compare compares what happened to each event with the model.
func (p *endpointsPlay) compare() {
	p.mu.Lock()
	defer p.mu.Unlock()
	keys := map[modelKey]bool{}
	for key := range p.want {
		keys[key] = true
	}
	for key := range p.got {
		keys[key] = true
	}
	for key := range keys {
		if want, got := p.want[key], p.got[key]; want != got && (got == 0 || want&got == 0) {
			p.t.Errorf("%s to %s: %s, want %s", key.eventID, key.endpointID, got, want)
		}
	}
	if !slices.Equal(p.told, p.replays) {
		p.t.Errorf("replays %v were taken up, want %v", p.told, p.replays)
	}
	for hold, ended := range p.holds {
		if !ended {
			p.t.Errorf("hold %p has no last piece", hold)
		}
	}
	if n := len(p.router.subs.byID); n != len(p.view) {
		p.t.Errorf("%d subscriptions at the end, want %d", n, len(p.view))
	}
	if n := len(p.router.lanes.Endpoints()); n != len(p.view) {
		p.t.Errorf("%d lanes at the end, want %d", n, len(p.view))
	}
}

func (p *endpointsPlay) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *endpointsPlay) say(format string, args ...any) {
	p.said = append(p.said, fmt.Sprintf(format, args...))
}

// route hands a transaction to the router and to the model.
func (p *endpointsPlay) route(parts []*outbox.Batch) {
	for _, b := range parts {
		for _, c := range b.Changes {
			p.see(b, c)
		}
		p.must(p.router.route(p.t.Context(), p.t.Context(), b))
	}
	p.settle()
}

// see applies a change to the model, at its place in the history.
func (p *endpointsPlay) see(b *outbox.Batch, c outbox.Change) {
	loaded := p.router.snapshot.Sees(b.XID)
	switch {
	case c.Event != nil:
		for id, e := range p.view {
			if e.Venue != c.Event.Venue || !naivelyWants(e.Events, c.Event.Type) || loaded && e.Created.After(b.Committed) {
				continue
			}
			key := modelKey{id, c.Event.ID}
			if p.want[key] = fateMissed; naivelyOn(&e.Endpoint) {
				p.want[key], p.open[key] = fateSent, e.life
			}
		}
	case loaded:
	case c.Replay != nil:
		p.replays = append(p.replays, c.Replay.ID)
	case c.Endpoint.AllRemoved:
		for id := range p.view {
			p.become(id, nil)
		}
	case c.Endpoint.Removed:
		p.become(c.Endpoint.ID, nil)
	default:
		p.become(c.Endpoint.ID, c.Endpoint.Endpoint)
	}
}

// become gives the model's endpoint its next row; nil means that it is gone. When it is not sent to
// any more, what waits for it becomes missed, unless it was sent before.
func (p *endpointsPlay) become(id string, row *outbox.Endpoint) {
	before, existed := p.view[id]
	after := modelRow{life: before.life}
	if row == nil {
		delete(p.view, id)
	} else {
		if !existed {
			p.lives++
			after.life = p.lives
		}
		after.Endpoint = *row
		p.view[id] = after
	}
	if !existed || row != nil && naivelyOn(row) && row.Venue == before.Venue {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.open {
		if key.endpointID != id {
			continue
		}
		if p.stalled && p.tracked[key] {
			p.want[key] = fateMissed
			delete(p.open, key)
		} else {
			p.want[key] = fateSent | fateMissed
		}
	}
}

// settle lets all attempts end. What is sent now stays sent.
func (p *endpointsPlay) settle() {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.open {
		if !p.stalled && p.tracked[key] {
			delete(p.open, key)
		}
	}
}

func (p *endpointsPlay) stall(stalled bool) {
	p.say("stall %t", stalled)
	p.stalled = stalled
	p.router.lanes.Stall(stalled)
	p.settle()
}

// expand lets the router continue its backlog. An endpoint that is off at this moment does not get
// what waited for it there.
func (p *endpointsPlay) expand() {
	if len(p.router.backlog.queue) == 0 {
		return
	}
	p.say("expand")
	waited := map[modelKey]int{}
	for key, life := range p.open {
		if !p.tracked[key] {
			waited[key] = life
		}
	}
	p.must(p.router.expand(p.t.Context(), p.t.Context()))
	synctest.Wait()
	for key, life := range waited {
		e := p.view[key.endpointID]
		if p.tracked[key] && (e.life != life || !naivelyOn(&e.Endpoint)) {
			p.want[key] = fateMissed
			delete(p.open, key)
		}
	}
	p.settle()
}

// reload loads a state into the router that is ahead of the stream, and then routes the
// transactions up to it.
func (p *endpointsPlay) reload() {
	p.say("ahead of a reload:")
	var ahead []*outbox.Batch
	for range p.random.IntN(3) {
		ahead = append(ahead, p.transaction()...)
	}
	p.say("reload")
	for id, before := range p.view {
		if e, exists := p.table.rows[id]; !exists || !e.Created.Equal(before.Created) {
			p.become(id, nil)
		}
	}
	for id, e := range p.table.rows {
		p.become(id, &e)
	}
	p.must(p.router.reload(p.t.Context(), p.loads()))
	p.settle()
	p.route(ahead)
}

// loads returns the state of the table, which has seen all transactions so far.
func (p *endpointsPlay) loads() outbox.State {
	s := outbox.State{Due: map[string]time.Time{}}
	for _, id := range slices.Sorted(maps.Keys(p.table.rows)) {
		e := p.table.rows[id]
		s.Endpoints = append(s.Endpoints, outbox.EndpointState{Endpoint: &e})
		if _, known := p.view[id]; !known {
			p.become(id, &e)
		}
	}
	var err error
	s.Snapshot, err = outbox.ParseSnapshot(fmt.Sprintf("%d:%d:", p.xid+1, p.xid+1))
	p.must(err)
	return s
}

// naivelyWants reports whether valid patterns match.
func naivelyWants(patterns []string, of string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		prefix, below := strings.CutSuffix(pattern, ".*")
		return pattern == "*" || below && strings.HasPrefix(of, prefix+".") || !below && pattern == of
	})
}

// naivelyOn reports whether an endpoint is enabled and can be sent to.
func naivelyOn(e *outbox.Endpoint) bool {
	wrong := slices.ContainsFunc(e.Events, func(pattern string) bool { return pattern == "" || pattern == "lead*" || pattern == "*.x" })
	return !e.Disabled && len(e.Events) > 0 && !wrong && strings.HasPrefix(e.URL.Reveal(), "https://v") && e.Secret.Reveal() != ""
}

// attempt is lanes.Config.Attempt. It is a server that accepts everything, and checks that each
// event is of its own venue.
func (p *endpointsPlay) attempt(_ context.Context, _ *outbox.Delivery, r sink.Request) sink.Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := modelKey{p.targets[r.Target], r.EventID}
	if p.got[key] != 0 {
		p.t.Errorf("%s to %s is sent after it was %s", key.eventID, key.endpointID, p.got[key])
	}
	p.got[key] = fateSent
	event := p.events[key.eventID]
	if !bytes.Equal(r.Body, event.Envelope()) {
		p.t.Errorf("%s to %s carries %s", key.eventID, key.endpointID, r.Body)
	}
	if url := p.urls[r.Target]; !p.servers[server{key.endpointID, url, event.Venue}] {
		p.t.Errorf("%s of %s is sent to %s at %s, which never was of that venue", key.eventID, event.Venue, key.endpointID, url)
	}
	return sink.Result{Code: 200}
}

// track replaces Ledger.Track.
func (p *endpointsPlay) track(_ context.Context, b *outbox.Tracked) error {
	p.mu.Lock()
	for _, d := range b.Deliveries {
		key := modelKey{d.EndpointID, d.EventID}
		if p.tracked[key] {
			p.t.Errorf("%s to %s is tracked twice", d.EventID, d.EndpointID)
		}
		p.tracked[key] = true
	}
	if b.Opens != nil {
		p.holds[b.Opens] = false
	}
	if b.Piece != nil {
		if ended, opened := p.holds[b.Piece]; !opened || ended {
			p.t.Errorf("a piece belongs to a hold that is open: %t, ended: %t", opened, ended)
		}
		p.holds[b.Piece] = b.Last
	}
	p.mu.Unlock()
	return p.record(b.Records...)
}

// take replaces Ledger.Write.
func (p *endpointsPlay) take(_ context.Context, entries ...outbox.Entry) error {
	for _, e := range entries {
		switch e := e.(type) {
		case *outbox.Record:
			if err := p.record(e); err != nil {
				return err
			}
		case outbox.Replay:
			p.mu.Lock()
			p.told = append(p.told, e.ID)
			p.mu.Unlock()
		case outbox.Disabling:
			p.t.Errorf("%s is disabled by the agent", e.EndpointID)
		}
	}
	return nil
}

func (p *endpointsPlay) record(results ...*outbox.Record) error {
	p.mu.Lock()
	for _, r := range results {
		key := modelKey{r.Delivery.EndpointID, r.Delivery.EventID}
		if r.Status == outbox.Missed {
			if p.got[key] != 0 {
				p.t.Errorf("%s to %s is missed after it was %s", key.eventID, key.endpointID, p.got[key])
			}
			p.got[key] = fateMissed
		}
	}
	p.mu.Unlock()
	if len(results) > 0 {
		p.router.lanes.Committed(results)
	}
	return nil
}
