package agent

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
)

// This file is the app of the model test: the statements that the contract allows, at random.

func (p *endpointsPlay) pick(from ...string) string { return from[p.random.IntN(len(from))] }
func (p *endpointsPlay) venue() string              { return p.pick("v1", "v1", "v2", "v3") }
func (p *endpointsPlay) id() string                 { return p.ids[p.random.IntN(len(p.ids))] }

// url is of a server that belongs to the venue, bad now and then.
func (p *endpointsPlay) url(venue string) secret.Text {
	if p.random.IntN(8) == 0 {
		return secret.New(p.pick("bad", "ftp://x.example/", "https://u:p@x.example/"))
	}
	return secret.New(fmt.Sprintf("https://%s.example/%d", venue, p.random.IntN(3)))
}

func (p *endpointsPlay) secret() secret.Text {
	if p.random.IntN(10) == 0 {
		return secret.New("")
	}
	return secret.New(p.pick("s1", "s2"))
}

// patterns are good and bad ones, double ones and none.
func (p *endpointsPlay) patterns() []string {
	if p.wide && p.random.IntN(4) > 0 {
		return []string{"*"}
	}
	events := make([]string, p.random.IntN(4))
	for i := range events {
		events[i] = p.pick("*", "lead.*", "lead.*", "lead.a.*", "lead.created", "lead.created", "lead.a.b", "pay.*", "pay.done",
			"lead*", "", "*.x")
	}
	return events
}

// insert registers one endpoint, or several, at ids that may have been there before.
func (p *endpointsPlay) insert(table *endpointsTable) {
	n := 1 + p.random.IntN(3)
	if p.wide && p.random.IntN(2) == 0 {
		n = len(p.ids)
	}
	for i := range n {
		id := p.id()
		if n == len(p.ids) {
			id = p.ids[i]
		}
		if _, exists := table.rows[id]; exists {
			continue
		}
		e := outbox.Endpoint{
			ID: id, Venue: p.venue(), Events: p.patterns(), Secret: p.secret(), Disabled: p.random.IntN(6) == 0, Generation: 1, Created: p.now,
		}
		if p.wide && i > 10 {
			e.Venue = "v1"
		}
		e.URL = p.url(e.Venue)
		p.write(table, e)
	}
}

func (p *endpointsPlay) write(table *endpointsTable, e outbox.Endpoint) {
	table.rows[e.ID] = e
	table.changes = append(table.changes, changed(e))
	p.servers[server{e.ID, e.URL.Reveal(), e.Venue}] = true
	if !p.wide {
		p.say("    %s of %s: events %q, url %s, secret %q, disabled %t, generation %d",
			e.ID, e.Venue, e.Events, e.URL.Reveal(), e.Secret.Reveal(), e.Disabled, e.Generation)
	}
}

// some returns a row, those of a venue, or none.
func (p *endpointsPlay) some(table *endpointsTable) (rows []outbox.Endpoint) {
	id, venue, all := p.id(), p.venue(), p.random.IntN(6) == 0
	for _, e := range table.rows {
		if e.ID == id || all && e.Venue == venue {
			rows = append(rows, e)
		}
	}
	slices.SortFunc(rows, func(a, b outbox.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	return rows
}

// updating makes a statement that changes rows, as the table's trigger lets it.
func updating(set func(*endpointsPlay, *outbox.Endpoint)) func(*endpointsPlay, *endpointsTable) {
	return func(p *endpointsPlay, table *endpointsTable) {
		for _, e := range p.some(table) {
			before := e
			set(p, &e)
			if before.Disabled && !e.Disabled {
				e.Generation++
			}
			p.write(table, e)
		}
	}
}

func (p *endpointsPlay) remove(table *endpointsTable) {
	for _, e := range p.some(table) {
		delete(table.rows, e.ID)
		table.changes = append(table.changes, removed(e.ID))
		p.say("    delete %s", e.ID)
	}
}

func (p *endpointsPlay) truncate(table *endpointsTable) {
	clear(table.rows)
	table.changes = append(table.changes, truncated)
	p.say("    truncate")
}

// transaction commits statements, events and replays to the table, and returns what the stream
// brings of it.
func (p *endpointsPlay) transaction() (parts []*outbox.Batch) {
	p.now = p.now.Add(time.Second)
	p.xid++
	p.lsn += 10
	p.say("transaction %d", p.xid)
	events := 1
	if p.wide {
		events = 1 + p.random.IntN(12)
	}
	for range 1 + p.random.IntN(6) {
		switch p.random.IntN(8) {
		case 0, 1, 2, 3:
			for range events {
				p.insertEvent()
			}
		case 4:
			p.table.changes = append(p.table.changes, outbox.Change{Replay: &outbox.Replay{ID: fmt.Sprint("r", p.random.Uint32())}})
		default:
			p.statement()
		}
	}
	changes := p.table.changes
	p.table.changes = nil
	for len(parts) == 0 || len(changes) > 0 {
		n := len(changes)
		if p.random.IntN(4) == 0 { // a large one comes in parts
			n = p.random.IntN(n + 1)
		}
		parts = append(parts, &outbox.Batch{Changes: changes[:n:n], XID: p.xid, Commit: p.lsn, Committed: p.now})
		changes = changes[n:]
	}
	parts[len(parts)-1].End = p.lsn + 5
	return parts
}

func (p *endpointsPlay) statement() {
	total := 0
	for _, s := range endpointStatements {
		total += s.weight
	}
	n := p.random.IntN(total)
	for _, s := range endpointStatements {
		if n -= s.weight; n < 0 {
			p.say("  %s", s.name)
			s.do(p, &p.table)
			return
		}
	}
}

func (p *endpointsPlay) insertEvent() {
	e := &outbox.Event{
		ID: fmt.Sprint("e", len(p.events)+1), Venue: p.venue(), Data: []byte("1"),
		Type: p.pick("lead.created", "lead.a.b", "lead.a", "pay.done", "other"),
	}
	p.events[e.ID] = e
	p.table.changes = append(p.table.changes, outbox.Change{Event: e})
	if !p.wide {
		p.say("  event %s of %s: %s", e.ID, e.Venue, e.Type)
	}
}
