package main

import (
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

func TestEndpoint_WantsWhatItsPatternsName(t *testing.T) {
	for _, c := range []struct {
		patterns, eventType string
		want                bool
	}{
		{"*", "lead.created", true},
		{"lead.*", "lead.created", true},
		{"lead.*", "leads.created", false},
		{"lead.created", "lead.created", true},
		{"lead.created", "lead.created_again", false},
		{"proposal.signed payment.received", "payment.received", true},
		{"proposal.signed payment.received", "payment.refunded", false},
	} {
		e := &endpoint{events: strings.Fields(c.patterns)}
		if got := e.wants(c.eventType); got != c.want {
			t.Errorf("%s wants %s: %t, want %t", c.patterns, c.eventType, got, c.want)
		}
	}
}

func TestFailsFor_RecoversAfterItsTime(t *testing.T) {
	answers := failsFor(4 * time.Second)
	first := time.Now()
	for _, c := range []struct {
		after  time.Duration
		status int
	}{{0, 500}, {3999 * time.Millisecond, 500}, {4 * time.Second, 0}, {time.Hour, 0}} {
		if got := answers(testenv.Received{At: first.Add(c.after)}).Status; got != c.status {
			t.Errorf("after %s it answers %d, want %d", c.after, got, c.status)
		}
	}
}

// The venues must have each way to register an endpoint, a venue with two endpoints, and one with
// none.
func TestMakeVenues_ShowsEveryCase(t *testing.T) {
	ways := map[registration]bool{}
	paths := map[string]bool{}
	sizes := map[int]bool{}
	for _, v := range makeVenues() {
		sizes[len(v.endpoints)] = true
		for _, e := range v.endpoints {
			ways[e.registered] = true
			if paths[e.path] {
				t.Errorf("two endpoints have the path %s", e.path)
			}
			paths[e.path] = true
		}
	}
	if !ways[bySQL] || !ways[byCLI] || !ways[byTOML] || !sizes[0] || !sizes[2] {
		t.Errorf("registered by %v, numbers of endpoints %v", ways, sizes)
	}
}
